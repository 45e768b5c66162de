#!/bin/sh
# What others wrote against what is written here: softphones from Debian chat through the real
# program, and our client talks to Kamailio, sipp and softphones.
#
#     tests/smoke/run.sh [--allow-missing] [--algorithms LIST] PROGRAM
#     tests/smoke/run.sh interop [--allow-missing] [--sipmsg PROGRAM] CLIENT
#
# Both need python3, sipp (package sip-tester), baresip (baresip-core) and linphonec (linphone-cli);
# the first also sipsak, the second kamailio, and CLIENT is what tests/smoke/client.cpp is built to.
# A check whose program is not installed fails; with --allow-missing it is skipped.
# --sipmsg checks PROGRAM's send and receive, too.
# --algorithms sets that key of ysipchan.conf, to see which softphones cope with which challenges.
#
# Prints `ok NAME` or `FAILED NAME` with the log, ends with `N passed, N failed`; the exit status
# says whether all is well. Everything runs in a network namespace of its own where the system
# permits that, on the machine's loopback otherwise; ports are found free, files are temporary.
set -u

[ $# -gt 0 ] || {
  echo "usage: $0 [interop] [--allow-missing] [--algorithms LIST] PROGRAM" >&2
  exit 2
}
script=smoke.py
if [ "$1" = interop ]; then
  script=interop.py
  shift
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 2
directory=$(mktemp -d) || exit 2
export PYTHONUTF8=1
driver=
# The driver ends its softphones and the server itself.
trap 'rm -rf "$directory"' EXIT
trap '[ -z "$driver" ] || kill "$driver"; wait; exit 2' HUP INT TERM

isolated=--isolated
if unshare -m -n true 2>/dev/null; then
  namespace='unshare -m -n'
elif unshare -r -m -n true 2>/dev/null; then
  namespace='unshare -r -m -n'
else
  namespace=''
  isolated=''
  echo "note: no network namespace is permitted here, using the machine's loopback"
fi
# The command is a list of words.
# shellcheck disable=SC2086
$namespace python3 "$here/$script" --directory "$directory" $isolated "$@" </dev/null &
driver=$!
wait $driver
