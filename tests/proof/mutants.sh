#!/bin/bash
# SPDX-License-Identifier: MIT
#
# mutants.sh [NAME...]: does a fault in iou.c make a test fail? Each line of mutants.txt is one, made in a copy. Then
# the simulation is tried (for a second), the Check program, the faults, and the simulation for longer, until one fails.
# B has what `make` built of the tests; JOBS at once. WITH="check" leaves the others out.
set -u
: "${B:?the build folder}" "${CC:=cc}" "${JOBS:=$(nproc)}" "${WITH:=sim fine check faults sim-long}"
cd "$(dirname "$0")/../.." || exit 1
top=$B/mutants
rm -rf "$top"
mkdir -p "$top"
top=$(cd "$top" && pwd)
trap 'kill $(jobs -p) 2>/dev/null' EXIT

# Run it for so many seconds at most; 0 where it went well. A hang is a failure.
within() { timeout -k 2 "$@" >>"$dir/log" 2>&1; }

# The first test that failed, but for those that fail without a fault too: clocks are not kept on a busy machine.
ignored=none
bad_test() { sed -n 's/^not ok [^:]*:[^:]*:\([a-z_0-9]*\):.*/\1/p' "$dir/tap" 2>/dev/null | grep -vxE "$ignored" | head -1; }

# The Check program takes a while, most of it asleep: end it with the first test that fails. Broken off is failed.
check() {
	rm -f "$dir/tap"
	IOU_TEST_SLOW=1 CK_TIMEOUT_MULTIPLIER=0.5 CK_TAP_LOG_FILE_NAME=$dir/tap \
		timeout -k 2 200 "$dir/check" >>"$dir/log" 2>&1 &
	local pid=$!
	while kill -0 $pid 2>/dev/null; do
		if [ -n "$(bad_test)" ]; then
			kill $pid 2>/dev/null
			wait $pid 2>/dev/null
			return 1
		fi
		sleep 0.2
	done
	wait $pid
	[ -z "$(bad_test)" ] && grep -q '^1\.\.' "$dir/tap"
}

# What a test is linked of is as `make` does it, but for iou.o.
link_sim() { $CC $FLAGS -I. -o "$dir/sim" $SIM_SRC "$dir/iou.o" $SIM_WRAPS $LIBS; }
link_fine() {
	$CC $FLAGS -w -I. -fsanitize=thread -c -o "$dir/fine.o" "$dir/iou.c" 2>>"$dir/log" &&
		$CC $FLAGS -I. -o "$dir/fine" $SIM_SRC tests/sim_atomics.c "$dir/fine.o" $SIM_WRAPS $LIBS
}
link_faults() { $CC $FLAGS -I. -o "$dir/faults" tests/faults.c "$dir/iou.o" $FAULT_WRAPS $LIBS; }
link_check() { $CC $FLAGS -o "$dir/check" $CHECK_OBJECTS "$dir/iou.o" $CHECK_LIBS $LIBS; }

# Says who caught it, on stdout; nothing where it survives.
catch() {
	for by in $WITH; do
		link_"${by%-long}" 2>>"$dir/log" || { echo "UNLINKED $by"; return; }
		case $by in
		sim) within 20 "$dir/sim" -s 1 -n 100000 -j 1 || { echo sim; return; } ;;
		fine) within 60 "$dir/fine" -s 1 -n 100000 -j 1 || { echo "sim, step by step"; return; } ;;
		check) check || { echo "check: $(bad_test)"; return; } ;;
		faults) IOU_FAULTS_TIMEOUT=5 within 300 "$dir/faults" -x -j "$JOBS" || { echo faults; return; } ;;
		sim-long) within 300 "$dir/sim" -s 1000000 -n 5000000 -j 1 || { echo "sim, for long"; return; } ;;
		esac
	done
}

one() { # NAME SCRIPT
	dir=$top/$1
	mkdir -p "$dir"
	sed "$2" iou.c >"$dir/iou.c"
	if cmp -s iou.c "$dir/iou.c"; then
		echo "BROKEN $1: changes nothing"
	elif ! $CC $FLAGS -w -I. -c -o "$dir/iou.o" "$dir/iou.c" 2>"$dir/log"; then
		echo "BROKEN $1: does not compile: $(grep -m1 error: "$dir/log")"
	else
		began=$SECONDS
		by=$(catch)
		if [[ $by = UNLINKED* ]]; then
			echo "BROKEN $1: $by"
		elif [ -n "$by" ]; then
			echo "caught $1 ($((SECONDS - began)) s, $by)"
		else
			echo "SURVIVED $1"
		fi
	fi
	rm -f "$dir/sim" "$dir/fine" "$dir/fine.o" "$dir/check" "$dir/faults" "$dir/iou.o"
}

# What fails without a fault put in catches nothing: a test of the Check program is ignored, the others must be good.
dir=$top/none
mkdir -p "$dir"
cp iou.c "$dir/iou.c"
$CC $FLAGS -w -I. -c -o "$dir/iou.o" "$dir/iou.c" || exit 1
if [[ $WITH = *check* ]]; then
	while link_check && ! check; do
		[ -n "$(bad_test)" ] || { echo "FAIL mutants: the Check program breaks off"; exit 1; }
		echo "ignored: $(bad_test), which fails without a fault too"
		ignored="$ignored|$(bad_test)"
	done
fi
by=$(catch)
if [ -n "$by" ]; then
	echo "FAIL mutants: without any fault in iou.c, this fails: $by"
	exit 1
fi
rm -r "$dir"

while IFS='	' read -r name script; do
	case $name in '' | '#'*) continue ;; esac
	[ $# = 0 ] || [[ " $* " = *" $name "* ]] || continue
	while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
	one "$name" "$script" </dev/null | tee -a "$top/results" &
done <tests/proof/mutants.txt
wait
n=$(wc -l <"$top/results") caught=$(grep -c '^caught' "$top/results")
grep -v '^caught' "$top/results" | sort
echo "check-mutants: $n faults put in, $caught caught, $((n - caught)) not"
[ "$n" = "$caught" ]
