#!/bin/sh
# Softphones from Debian chat through the real program.
#
#     tests/smoke/run.sh [--allow-missing] [--algorithms LIST] PROGRAM
#
# Needs python3, sipsak, sipp (package sip-tester), baresip (baresip-core) and linphonec
# (linphone-cli). A check whose client is not installed fails; with --allow-missing it is skipped.
# --algorithms sets that key of ysipchan.conf, to see which softphones cope with which challenges.
#
# Prints `ok NAME` or `FAILED NAME` with the log, ends with `N passed, N failed`; the exit status
# says whether all is well. Everything runs in a network namespace of its own where the system
# permits that, on the machine's loopback otherwise; ports are found free, files are temporary.
set -u

[ $# -gt 0 ] || { echo "usage: $0 [--allow-missing] [--algorithms LIST] PROGRAM" >&2; exit 2; }
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 2
directory=$(mktemp -d) || exit 2
export PYTHONUTF8=1
driver=
# The driver ends its softphones and the server itself.
trap 'rm -rf "$directory"' EXIT
trap '[ -z "$driver" ] || kill "$driver"; wait; exit 2' HUP INT TERM

if unshare -n true 2>/dev/null; then
  namespace='unshare -n'
elif unshare -r -n true 2>/dev/null; then
  namespace='unshare -r -n'
else
  namespace=
  echo "note: no network namespace is permitted here, using the machine's loopback"
fi
# The command is a list of words.
# shellcheck disable=SC2086
$namespace python3 "$here/smoke.py" --directory "$directory" "$@" </dev/null &
driver=$!
wait $driver
