#!/bin/sh
# sipmsg in somebody else's hands:
#   test_as_dependency.sh subproject         as a Meson subproject
#   test_as_dependency.sh installed BUILD    installed from the build directory, by pkg-config
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
root=$(dirname -- "$(dirname -- "$here")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "$*" >&2
  exit 1
}

case $1 in
  subproject)
    cp -R "$here/consumer" "$work/consumer"
    mkdir "$work/consumer/subprojects"
    ln -s "$root" "$work/consumer/subprojects/sipmsg"
    meson setup "$work/build" "$work/consumer"
    meson test -C "$work/build"
    if [ "$(grep -c '"file":' "$work/build/compile_commands.json")" -ne 1 ]; then
      fail "as a subproject sipmsg must build nothing of its own"
    fi ;;
  installed)
    DESTDIR=$work meson install -C "$2" --no-rebuild
    pc=$(find "$work" -name sipmsg.pc)
    [ -n "$pc" ] || fail "sipmsg.pc was not installed"
    export PKG_CONFIG_PATH="${pc%/*}" PKG_CONFIG_SYSROOT_DIR="$work"
    [ "$(pkg-config --modversion sipmsg)" = "$("$root/tools/amalgamate.py" --version)" ] ||
      fail "sipmsg.pc states another version"
    # shellcheck disable=SC2046
    c++ -std=c++17 "$here/consumer/main.cpp" -o "$work/consumer" $(pkg-config --cflags --libs sipmsg)
    "$work/consumer"
    "$(find "$work" -path '*/bin/sipmsg')" --version ;;
esac
