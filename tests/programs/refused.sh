#!/bin/sh
# SPDX-License-Identifier: MIT
#
# `make check` where io_uring is refused: one line says so and names what is skipped, the rest is tested, and that is
# no failure. Nothing is skipped because iou fails.
# shellcheck disable=SC2015
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }

${CC:-cc} -O2 -Wall -Wextra -Wshadow -Wstrict-prototypes -o "$dir/refuse" tests/programs/refuse.c
"$dir/refuse" setup EPERM true || { echo "SKIP refused: no seccomp filter here"; exit 77; }

# Whatever the kernel refuses, and however.
for how in 'setup EPERM' 'setup ENOSYS' 'enter EPERM' 'all EPERM' 'all ENOSYS'; do
	case $how in *EPERM) want='Operation not permitted' ;; *) want='Function not implemented' ;; esac
	# shellcheck disable=SC2086
	[ "$("$dir/refuse" $how "$B/tests/check" refused)" = "$want" ] || fail "$how goes unnoticed"
done
[ "${REFUSED:-}" ] || [ -z "$("$B/tests/check" refused)" ] || fail "io_uring is not refused here"

# run NAME...: what tests/run says without io_uring, in a folder of its own.
mkdir -p "$dir/build/tests"
case $B in /*) ;; *) B=$PWD/$B ;; esac
ln -s "$B/tests/check" "$dir/build/tests/check"
run() {
	B=$dir/build "$dir/refuse" all EPERM sh tests/run "$@" >"$dir/out" 2>&1 || { cat "$dir/out"; fail "tests/run $*"; }
}
run check timer hello walk install
[ "$(head -1 "$dir/out")" = "  SKIP check timer hello walk: io_uring is refused here (Operation not permitted)" ] &&
	[ "$(grep -c refused "$dir/out")" = 2 ] && [ "$(tail -1 "$dir/out")" = "1 passed, 0 failed, 4 skipped" ] ||
	{ cat "$dir/out"; fail "not what it should say"; }
