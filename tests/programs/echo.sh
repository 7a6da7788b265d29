#!/bin/sh
# SPDX-License-Identifier: MIT
#
# examples/echo under load: what each test of tests/programs/echo_client.c does is said there.
# shellcheck disable=SC2015
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
echo=$B/examples/echo client=$dir/client

fail() { echo "FAIL: $*"; cat "$dir/err"; exit 1; }
run() { # TEST [OPTION...]
	test=$1
	shift
	"$client" "$test" "$echo" -p 0 "$@" >"$dir/out" 2>"$dir/err"
}
try() { # TEST [OPTION...]
	test=$1
	shift
	run "$test" "$@" || fail "$test $*: status $?"
	echo "ok: $test $*"
}

${CC:-cc} -O2 -g -Wall -Wextra -Wshadow -Wstrict-prototypes -o "$client" tests/programs/echo_client.c
try storm
try storm -c 50
try shortage
said=$(grep -c '^echo: accept: Too many open files$' "$dir/err") || fail "no shortage seen"
[ "$said" -ge 2 ] && [ "$said" -lt 50 ] || fail "$said messages about two times of shortage"
try full
try broken
try cap -c 8
try stop-alone
# In these it matters who is quick, which the neighbours may not allow at once.
for quick in 'idle -t 1' stop-idle stop-asked stop 'stop-cap -c 5' stop-busy 'stop-paused -c 2' stop-twice; do
	# shellcheck disable=SC2086
	run $quick || run $quick || try $quick
done

for wrong in '-p 65536' '-p x' '-p -1' '-c 0' '-t 1s' '-x' 'stray'; do
	status=0
	# shellcheck disable=SC2086
	"$echo" $wrong >"$dir/out" 2>"$dir/err" || status=$?
	[ $status = 2 ] && [ -s "$dir/err" ] && [ ! -s "$dir/out" ] || fail "echo $wrong: status $status"
done
