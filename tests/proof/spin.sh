#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The wake-up protocols: tests/proof/wake.pml checked by spin, with each of its broken variants, which must fail; then
# HANDOFFS real ones on one CPU, and as many on two.
set -eu
: "${B:?the build folder}" "${CC:=cc}" "${HANDOFFS:=10000000}"
cd "$(dirname "$0")/../.."
mkdir -p "$B/spin"
model=$PWD/tests/proof/wake.pml
handoff=$(cd "$(dirname "$B/tests/handoff")" && pwd)/handoff
cd "$B/spin"
states=0 models=0 broken=0 skipped=0

# Leaves the number of errors in $errors.
verify() {
	rm -f pan pan.* ./*.trail
	spin "$@" -a "$model" >spin.log
	$CC -O1 -w -DSAFETY -DCOLLAPSE -o pan pan.c
	./pan -m100000 >pan.log
	errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log)
	if grep -q 'max search depth too small' pan.log; then errors=1; fi
	n=$(sed -n 's/ *\([0-9]*\) states, stored.*/\1/p' pan.log)
	states=$((states + n))
}

if command -v spin >/dev/null; then
	for variant in "-DLOOP" "-DLOOP -DWAKERS=3 -DPOSTS=1" "-DWORKERS=1" "-DWORKERS=2" \
		"-DWORKERS=3 -DJOBS=3 -DEARLY=0" "-DLOST=1 -DWORKERS=1" "-DLOST=1 -DWORKERS=2" "-DFREE"; do
		# shellcheck disable=SC2086
		verify $variant
		[ "$errors" = 0 ] || { echo "FAIL wake.pml $variant"; cat pan.log; exit 1; }
		models=$((models + 1))
	done
	for variant in "-DLOOP -DBROKEN=1" "-DLOOP -DBROKEN=2" "-DLOOP -DBROKEN=3" "-DLOOP -DBROKEN=4" "-DBROKEN=5" \
		"-DBROKEN=6" "-DBROKEN=7" "-DBROKEN=8" "-DLOST=1 -DBROKEN=9" "-DFREE -DBROKEN=10" "-DFREE -DBROKEN=11"; do
		# shellcheck disable=SC2086
		verify $variant
		[ "$errors" != 0 ] || { echo "FAIL wake.pml $variant: it should fail"; exit 1; }
		broken=$((broken + 1))
	done
else
	echo "SKIP spin: not installed"
	skipped=1
fi

told='' n_handoffs=0
for cpus in 0 0,1; do
	if taskset -c $cpus true 2>/dev/null; then
		said=$(taskset -c $cpus "$handoff" "$HANDOFFS")
		told="$told; CPU $cpus: $said"
		n_handoffs=$((n_handoffs + 1))
	else
		echo "SKIP handoff on CPU $cpus: not there"
		skipped=$((skipped + 1))
	fi
done
echo "check-spin: $models models without error, $broken broken ones caught, $states states$told"
echo "$((models + broken + n_handoffs)) passed, 0 failed, $skipped skipped"
