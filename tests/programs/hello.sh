#!/bin/sh
# SPDX-License-Identifier: MIT
#
# examples/hello counts lines as wc does, and says in one line what went wrong.
# shellcheck disable=SC2015,SC2086
set -eu
hello=$B/examples/hello
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

fail() { echo "FAIL: $*"; exit 1; }
same() { # ARGUMENT, what it counts
	got=$("$hello" "$1") || fail "hello $1: status $?"
	[ "$got" = "$2 lines" ] || fail "hello $1: '$got', not '$2 lines'"
}
refused() { # ARGUMENT, what it says
	status=0
	"$hello" "$1" >"$dir/out" 2>"$dir/err" || status=$?
	[ $status = 1 ] || fail "hello $1: status $status, not 1"
	[ ! -s "$dir/out" ] || fail "hello $1: printed $(cat "$dir/out")"
	[ "$(cat "$dir/err")" = "hello: $1: $2" ] || fail "hello $1: said '$(cat "$dir/err")'"
}

: >"$dir/empty"
printf 'no end of line' >"$dir/one"
seq 200000 >"$dir/long"
same "$dir/empty" 0
same "$dir/one" 0
same "$dir/long" 200000
same README.md "$(grep -c '' README.md)"
got=$(seq 100000 | "$hello")
[ "$got" = "100000 lines" ] || fail "hello on a pipe: $got"
# Bad usage, output that cannot be written.
status=0
"$hello" README.md README.md >"$dir/out" 2>"$dir/err" || status=$?
[ "$status $(cat "$dir/err")" = "2 usage: hello [FILE]" ] && [ ! -s "$dir/out" ] || fail "two files: status $status"
status=0
"$hello" README.md >/dev/full 2>"$dir/err" || status=$?
[ "$status $(cat "$dir/err")" = "1 hello: standard output: No space left on device" ] || fail "a full disk: status $status"
refused "$dir/none" "No such file or directory"
refused "$dir" "Is a directory"
