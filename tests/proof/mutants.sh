#!/bin/bash
# SPDX-License-Identifier: MIT
#
# mutants.sh [NAME...]: does a fault in iou.c make a test fail? Each line of mutants.txt is one, made in a copy. Then
# the simulation is tried (for a second), the Check program, the faults, and the simulation for longer, until one fails.
# fallback-* are faults in iou_fallback.c, seam-* in what iou.c does for it: engine.c is tried (for the former), and the
# Check program with IOU_ENGINE=fallback.
# B has what `make` built of the tests; JOBS at once. WITH="check" leaves the others out. What newer-* does only shows
# with a liburing newer than 2.3: such a fault is left out unless it is named; liburing.sh does.
# Words are split on purpose.
# shellcheck disable=SC2046,SC2086
set -u
: "${B:?the build folder}" "${CC:=cc}" "${JOBS:=$(nproc)}" "${WITH:=sim fine check faults sim-long}"
cd "$(dirname "$0")/../.." || exit 1
top=$B/mutants
rm -rf "$top"
mkdir -p "$top"
top=$(cd "$top" && pwd)
: >"$top/results"
trap 'kill $(jobs -p) 2>/dev/null' EXIT

# Run it for so many seconds at most; 0 where it went well. A hang is a failure; the simulation looks for those itself,
# by CPU time, and is not to be failed by a busy machine.
within() { timeout -k 2 "$@" >>"$dir/log" 2>&1; }

# Tests that failed, as CASE/TEST. $excused fail without the fault too, or not each time: they catch nothing.
excused=none
bad_tests() {
	sed -n 's/^not ok [0-9]* - [^:]*:\([^:/]*\):\([a-z_0-9]*\):.*/\1\/\2/p' "$1" 2>/dev/null |
		grep -vE "/($excused)\$"
}

# fails PROGRAM CASE/TEST: does that test fail in that program?
fails() {
	rm -f "$dir/again"
	CK_RUN_CASE=${2%%/*} IOU_TEST_SLOW=1 CK_TAP_LOG_FILE_NAME=$dir/again timeout -k 2 900 "$1" >>"$dir/log" 2>&1
	bad_tests "$dir/again" | grep -qx "$2"
}

# The Check program takes a while, most of it asleep: end it with the first test that fails, fails again, and does not
# without the fault. Leaves its name in $caught_by. Broken off twice is failed.
check() {
	local excused=$excused pid
	for _ in 1 2; do
		rm -f "$dir/tap"
		IOU_TEST_SLOW=1 CK_TIMEOUT_MULTIPLIER=0.5 CK_TAP_LOG_FILE_NAME=$dir/tap \
			timeout -k 2 900 "$dir/check" >>"$dir/log" 2>&1 &
		pid=$!
		while :; do
			local over=1 test
			kill -0 $pid 2>/dev/null && over=
			while test=$(bad_tests "$dir/tap" | head -1) && [ -n "$test" ]; do
				caught_by=${test##*/}
				if [ "$dir" = "$good" ] || { fails "$dir/check" "$test" && ! fails "$good/check" "$test"; }; then
					kill $pid 2>/dev/null
					wait $pid 2>/dev/null
					return 1
				fi
				excused="$excused|$caught_by"
			done
			[ -z "$over" ] || break
			sleep 0.2
		done
		wait $pid
		grep -q '^1\.\.' "$dir/tap" && return 0
	done
	caught_by='it breaks off'
	return 1
}

check_on() { # WAY
	case $1 in
	check) check ;;
	fallback) IOU_ENGINE=fallback check ;;
	esac
}

# What a test is linked of is as `make` does it, but for the object with the fault.
object() { if [ -f "$dir/$1" ]; then echo "$dir/$1"; else echo "$good/$1"; fi; }
compile() { # FILE OBJECT FLAG...
	$CC $FLAGS -w -I. "${@:3}" -c -o "$dir/$2" "$1"
}
refusing='-Dmalloc=engine_malloc -Dcalloc=engine_calloc -Dpthread_create=engine_pthread_create'
link_sim() { $CC $FLAGS -I. -o "$dir/sim" $SIM_SRC "$dir/iou.o" $SIM_WRAPS $LIBS; }
link_fine() {
	eval "$SMALL" '<"$dir/iou.c"' | $CC $FLAGS -w -I. -fsanitize=thread -x c -c -o "$dir/fine.o" - 2>>"$dir/log" &&
		$CC $FLAGS -DSIM_FINE -DROUND_MAX=3 -I. -o "$dir/fine" $SIM_SRC tests/sim/atomics.c "$dir/fine.o" $SIM_WRAPS $LIBS
}
link_faults() { $CC $FLAGS -I. -o "$dir/faults" tests/proof/faults.c "$dir/iou.o" $FAULT_WRAPS $LIBS; }
link_check() {
	$CC $FLAGS -o "$dir/check" $CHECK_OBJECTS "$(object iou.o)" "$(object iou_fallback.o)" $CHECK_LIBS $LIBS
}
link_fallback() { link_check; }
link_engine() {
	compile "$dir/iou_fallback.c" refusing.o $refusing &&
		$CC $FLAGS -I. -o "$dir/engine" "$good/engine.o" "$dir/refusing.o" $LIBS
}

ways() { # NAME
	case $1 in
	fallback-*) echo engine fallback ;;
	seam-*) echo fallback check ;;
	*) echo "$WITH" ;;
	esac
}

# Says who caught it, on stdout; nothing where it survives.
catch() { # WAY...
	for by; do
		link_"${by%-long}" 2>>"$dir/log" || { echo "UNLINKED $by"; return; }
		case $by in
		sim) within 3600 "$dir/sim" -s 1 -n 100000 -j 1 || { echo sim; return; } ;;
		fine) within 3600 "$dir/fine" -s 1 -n 100000 -j 1 || { echo "sim, step by step"; return; } ;;
		check | fallback) check_on $by || { echo "$by: $caught_by"; return; } ;;
		engine) within 300 "$dir/engine" -x || { echo engine; return; } ;;
		faults) IOU_FAULTS_TIMEOUT=20 within 3600 "$dir/faults" -x -j "$JOBS" || { echo faults; return; } ;;
		sim-long) within 3600 "$dir/sim" -s 1000000 -n 5000000 -j 1 || { echo "sim, for long"; return; } ;;
		esac
	done
}

one() { # NAME SCRIPT
	local file=iou
	[[ $1 != fallback-* ]] || file=iou_fallback
	dir=$top/$1
	mkdir -p "$dir"
	sed "$2" $file.c >"$dir/$file.c"
	if cmp -s $file.c "$dir/$file.c"; then
		echo "BROKEN $1: changes nothing"
	elif ! compile "$dir/$file.c" $file.o 2>"$dir/log"; then
		echo "BROKEN $1: does not compile: $(grep -m1 error: "$dir/log")"
	else
		began=$SECONDS
		by=$(catch $(ways "$1"))
		if [[ $by = UNLINKED* ]]; then
			echo "BROKEN $1: $by"
		elif [ -n "$by" ]; then
			echo "caught $1 ($((SECONDS - began)) s, $by)"
		else
			echo "SURVIVED $1"
		fi
	fi
	rm -f "$dir/sim" "$dir/fine" "$dir/check" "$dir/faults" "$dir/engine" "$dir"/*.o
}

wanted() { # NAME
	case $1 in
	'' | '#'*) return 1 ;;
	newer-*) [ -n "$names" ] || return 1 ;;
	esac
	[ -z "$names" ] || [[ " $names " = *" $1 "* ]]
}
names=$*

# What fails without a fault put in catches nothing: a test of the Check program is excused, the others must be good.
good=$top/none
dir=$good
mkdir -p "$dir"
cp iou.c iou_fallback.c "$dir"
compile iou.c iou.o && compile iou_fallback.c iou_fallback.o && compile tests/proof/engine.c engine.o -O0 || exit 1
needed=$(while IFS='	' read -r name script; do
	if wanted "$name"; then ways "$name" | tr ' ' '\n'; fi
done <tests/proof/mutants.txt | sort -u)
needed=$(for by in $WITH engine fallback; do echo "$needed" | grep -x "$by"; done | paste -sd ' ')
for by in $needed; do
	[ $by = check ] || [ $by = fallback ] || continue
	while link_check && ! check_on $by; do
		[[ $caught_by != *' '* ]] || { echo "FAIL mutants: the Check program breaks off"; exit 1; }
		echo "excused: $caught_by, which fails without a fault too"
		excused="$excused|$caught_by"
	done
done
by=$(catch $needed)
if [ -n "$by" ]; then
	echo "FAIL mutants: without any fault put in, this fails: $by"
	exit 1
fi

while IFS='	' read -r name script; do
	wanted "$name" || continue
	while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
	one "$name" "$script" </dev/null | tee -a "$top/results" &
done <tests/proof/mutants.txt
wait
n=$(wc -l <"$top/results") caught=$(grep -c '^caught' "$top/results")
grep -v '^caught' "$top/results" | sort
echo "check-mutants: $n faults put in, $caught caught, $((n - caught)) not"
[ "$n" != 0 ] && [ "$n" = "$caught" ]
