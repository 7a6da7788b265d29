#!/bin/bash
# SPDX-License-Identifier: MIT
#
# valgrind.sh [SUITE...]: the Check program under memcheck, JOBS suites at once. No suppressions: what the kernel writes,
# the test helpers mark as defined. Whatever memcheck says fails the test that it says it in. Leaks are for ASan, and
# for check-faults, which counts blocks: in a child that a test forks, all that its parent has would be one.
# Words are split on purpose.
# shellcheck disable=SC2015,SC2046
set -u
: "${B:?the build folder}" "${JOBS:=$(nproc)}"
cd "$(dirname "$0")/../.." || exit 1
command -v valgrind >/dev/null || { echo "SKIP valgrind: not installed"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
dir=$B/valgrind
mkdir -p "$dir"
[ $# != 0 ] || set -- $(sed -n 's/^	X(\(.*\))/X(\1)/p' tests/helper.h | grep -o 'X([a-z]*)' | sed 's/X(\(.*\))/\1/')

suite() {
	CK_RUN_SUITE=$1 CK_TIMEOUT_MULTIPLIER=6 CK_TAP_LOG_FILE_NAME=$dir/$1.tap timeout -k 5 3600 \
		valgrind -q --error-exitcode=9 --leak-check=no --fair-sched=yes \
		--num-callers=20 "$dir/check" >"$dir/$1.log" 2>&1
}

# What a test asks of the system that valgrind does otherwise; memcheck's word counts in these too.
otherwise='
a_forked_child_does_no_harm: valgrind itself gives up over a mmap where the ring was
a_child_returns_from_a_callback: valgrind itself gives up over a mmap where the ring was
a_lack_of_descriptors_is_an_error: its RLIMIT_NOFILE is its own
a_failed_resize_changes_nothing: its RLIMIT_NOFILE is its own
sleeping_is_not_io_wait: waits are cut into slices here
all_that_becomes_ready_wakes_the_loop: waits are cut into slices here
'

rm -f "$dir"/*.tap "$dir"/*.log
for name; do
	while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
	suite "$name" &
done
wait
passed=0 failed=0 skipped=0 reports=0
for name; do
	good=$(grep -c '^ok' "$dir/$name.tap") bad=0
	skips=$(grep -c '^SKIP' "$dir/$name.log")
	skipped=$((skipped + skips))
	while IFS=: read -r test said; do
		if [[ $said = *_sleeps\(* ]]; then
			echo "SKIP valgrind $test: a thread that waits in slices is not seen asleep"
			skipped=$((skipped + 1))
		elif why=$(grep "^$test: " <<<"$otherwise"); then
			echo "SKIP valgrind $why"
			skipped=$((skipped + 1))
		else
			bad=$((bad + 1))
		fi
	done < <(sed -n 's/^not ok [0-9]* - [^:]*:[^:]*:\([a-z_0-9]*\):/\1:/p' "$dir/$name.tap")
	said=$(grep -cE '^==[0-9]+== (Invalid|Conditional|Use of|Syscall param|Mismatched|Source and|Jump)' "$dir/$name.log")
	if ! grep -q '^1\.\.' "$dir/$name.tap"; then
		echo "FAIL $name: it did not come to its end"
		bad=$((bad + 1))
	fi
	[ "$bad" = 0 ] && [ "$said" = 0 ] || tail -n 60 "$dir/$name.log" | sed "s/^/    $name: /"
	sed -n "s/^SKIP/SKIP valgrind/p" "$dir/$name.log"
	passed=$((passed + good - skips)) failed=$((failed + bad)) reports=$((reports + said))
done
echo "check-valgrind: $passed tests, $reports lines of reports, no suppressions"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$reports" = 0 ]
