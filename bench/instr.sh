#!/bin/sh
# SPDX-License-Identifier: MIT
#
# bench/instr.sh: instructions per op, counted by callgrind, against bench/instr.bounds. The same program runs twice
# on inputs of two sizes, so that starting up drops out. A neighbour's load does not change the counts, another
# compiler or liburing a little. New bounds: bench/instr.sh -w, with what is measured plus 5 %.
set -u
: "${B:?the build folder}"
cd "$(dirname "$0")" || exit 1
few=6400 many=25600 write=
[ "${1:-}" != -w ] || write=yes
case $B in /*) ;; *) B=../$B ;; esac
skip() {
	echo "SKIP instr: $*"
	echo "0 passed, 0 failed, 1 skipped"
	exit 77
}

command -v valgrind >/dev/null || skip 'valgrind is not installed'
[ -x "$B/bench/instr" ] || skip 'bench/instr is not built'
arch=$(uname -m)
grep -q "^[a-z0-9]* $arch " instr.bounds || [ $write ] || skip "no bounds for $arch"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# count KIND N: instructions, in user space, of all threads.
count() {
	set -- --tool=callgrind --callgrind-out-file=/dev/null "$B/bench/instr" "$1" "$2"
	timeout 120 valgrind "$@" >"$log" 2>&1 || {
		cat "$log" >&2
		return 1
	}
	awk '/ Collected : / { print $4 }' "$log"
}

# each KIND BOUND: instructions per op, of up to four counts the least: with threads, a busy machine adds some.
each() {
	least=
	for _ in 1 2 3 4; do
		a=$(count "$1" $few) && b=$(count "$1" $many) || return 1
		n=$(((b - a) / (many - few)))
		[ "$least" ] && [ "$least" -le "$n" ] || least=$n
		[ "$least" -gt "${2:-0}" ] || break
	done
	echo "$least"
}

passed=0 failed=0 bounds=
for kind in nop nop1 job post timer; do
	bound=$(awk -v kind=$kind -v arch="$arch" '$1 == kind && $2 == arch { print $3 }' instr.bounds)
	if ! each=$(each $kind "$bound"); then
		# A kernel or sandbox that refuses io_uring to valgrind is no failure of ours.
		grep -q 'iou_new' "$log" && skip 'no io_uring here'
		failed=$((failed + 1))
		continue
	fi
	bounds="$bounds$kind $arch $((each * 105 / 100 + 1))
"
	if [ $write ] || [ "$each" -le "$bound" ]; then
		echo "  ok    $kind: $each instructions, bound ${bound:-none}"
		passed=$((passed + 1))
	else
		echo "  FAIL  $kind: $each instructions, bound $bound"
		failed=$((failed + 1))
	fi
done
if [ $write ]; then
	grep '^#' instr.bounds >"$log"
	grep -v -e '^#' -e " $arch " instr.bounds >>"$log"
	printf '%s' "$bounds" >>"$log"
	cat "$log" >instr.bounds
fi
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
