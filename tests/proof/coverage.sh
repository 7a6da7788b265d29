#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Lines and branches of iou.c that ran: in the Check program, the simulation, and the faults, all built with gcov.
# Ends with the sums; $B/coverage/uncovered lists what did not. B, and what `make` passes on, as for mutants.sh.
# Words are split on purpose.
# shellcheck disable=SC2086
set -u
: "${B:?the build folder}" "${CC:=cc}" "${JOBS:=$(nproc)}" "${RUNS:=300000}"
cd "$(dirname "$0")/../.." || exit 1
here=$PWD
command -v gcov >/dev/null || { echo "SKIP coverage: needs gcov"; exit 0; }
rm -rf "$B/coverage"
mkdir -p "$B/coverage"
dir=$(cd "$B/coverage" && pwd)
# One object: all programs add to its counts. Branches as in the source, not as optimized.
(cd "$dir" && $CC $FLAGS -O0 -I"$here" -fprofile-arcs -ftest-coverage -fprofile-update=atomic -c -o iou.o "$here/iou.c") ||
	exit 1
program() {
	$CC $FLAGS -I. -fprofile-arcs -o "$dir/$1" "${@:2}" tests/proof/gcov.c "$dir/iou.o" \
		-Wl,--wrap=abort,--wrap=_exit $LIBS
}
program check $CHECK_OBJECTS $CHECK_LIBS || exit 1
program sim $SIM_SRC $SIM_WRAPS || exit 1
program faults tests/proof/faults.c $FAULT_WRAPS || exit 1

"$dir/check" >"$dir/check.log" 2>&1 || { echo "FAIL check"; tail -n 5 "$dir/check.log"; }
"$dir/sim" -s 1 -n "$RUNS" -j "$JOBS" >"$dir/sim.log" 2>&1 || { echo "FAIL sim"; tail -n 3 "$dir/sim.log"; }
"$dir/faults" -j "$JOBS" >"$dir/faults.log" 2>&1 || { echo "FAIL faults"; tail -n 3 "$dir/faults.log"; }
(cd "$dir" && gcov -b -c -o . iou.o >gcov.log 2>&1)
[ -f "$dir/iou.c.gcov" ] || { echo "FAIL coverage: no counts"; cat "$dir/gcov.log"; exit 1; }

awk '
	/^ *#####:/ { print "line" substr($0, 10) }
	/^ *[0-9-]+\*?: *[0-9]+:/ || /^ *#####:/ { text = $0; sub(/^[^:]*: */, "", text) }
	/^branch .*(taken 0|never executed)/ { print "branch " $2 " of " text }
' "$dir/iou.c.gcov" >"$dir/uncovered"
sed -n "/File '.*iou.c'/,/^\$/p" "$dir/gcov.log" | awk '
	/Lines executed/ { lines = $0; sub(/.*executed:/, "", lines) }
	/Branches executed/ { executed = $0; sub(/.*executed:/, "", executed) }
	/Taken at least once/ { taken = $0; sub(/.*once:/, "", taken) }
	END { print "coverage: lines " lines ", branches taken " taken ", branches reached " executed }'
echo "coverage: what is not covered is listed in $B/coverage/uncovered"
