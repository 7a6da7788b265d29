#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Each fault of tests/proof/mutants.txt still changes something: lines that moved or were renamed leave none behind, which
# only `make check-mutants` would tell, an hour later.
set -eu
out=$(mktemp)
trap 'rm -f "$out"' EXIT
tab=$(printf '\t')
grep -v '^#' tests/proof/mutants.txt | while IFS="$tab" read -r name script; do
	[ "$name" ] || continue
	case $name in fallback-*) file=iou_fallback.c ;; *) file=iou.c ;; esac
	if sed "$script" $file 2>&1 | cmp -s - $file; then echo "FAIL: $name changes nothing in $file"; fi
done >"$out"
cat "$out"
[ ! -s "$out" ]
