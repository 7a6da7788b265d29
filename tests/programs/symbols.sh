#!/bin/sh
# SPDX-License-Identifier: MIT
#
# What the built libraries export: the functions that the headers declare, which libiou.map lists, each with
# its version there, and nothing else. In libiou.a, visibility alone decides, in libiou.so both.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0
fail() { echo "FAIL: $*"; failed=1; }
command -v readelf >/dev/null || { echo "SKIP symbols: no readelf"; exit 77; }

cat iou.h iou_*.h 2>/dev/null | sed -n 's/^IOU_API .*[ *]\(iou_[a-z_]*\)(.*/\1/p' | LC_ALL=C sort >"$dir/declared"
[ "$(wc -l <"$dir/declared")" -ge 38 ] || fail "only $(wc -l <"$dir/declared") functions found in the headers"
[ "$(wc -l <"$dir/declared")" = "$(cat iou.h iou_*.h 2>/dev/null | grep -c '^IOU_API')" ] ||
	fail "not each IOU_API is followed by its function in one line"

# libiou.map: "NAME VERSION" a line. Comments may name functions, too.
awk '
	/\/\*/ { comment = 1 }
	!comment && /^IOU_[0-9.]+ \{$/ { version = $1; next }
	!comment && /^local:/ { version = "" }
	!comment && version && /^\tiou_[a-z_]+;$/ { print substr($1, 1, length($1) - 1), version; next }
	!comment && version && !/^global:$/ { print "cannot read: " $0 }
	/\*\// { comment = 0 }
' libiou.map | LC_ALL=C sort >"$dir/map"
cut -d' ' -f1 "$dir/map" >"$dir/mapped"
diff "$dir/declared" "$dir/mapped" || fail "libiou.map lists (>) something else than the headers declare (<)"

# Defined here, and visible to others: "NAME" or "NAME@@VERSION".
visible() {
	readelf -W "$@" | awk '$5 ~ /^(GLOBAL|WEAK)$/ && $6 ~ /^(DEFAULT|PROTECTED)$/ && $7 ~ /^[0-9]+$/ { print $8 }' |
		grep -v '^__' | LC_ALL=C sort # with a sanitizer, its own names too
}
visible -s "$B/libiou.a" >"$dir/archived"
diff "$dir/declared" "$dir/archived" || fail "libiou.a exports (>) something else than the headers declare (<)"

library=$B/libiou.so
if [ -e "$library" ]; then
	visible --dyn-syms "$library" | sed 's/@@/ /' >"$dir/exported"
	diff "$dir/map" "$dir/exported" || fail "libiou.so exports (>) something else than libiou.map lists (<)"
	soname=libiou.so.$(sed -n 's/^#define IOU_VERSION_MAJOR //p' iou.h)
	readelf -d "$library" | grep -q "SONAME.*\[$soname\]" || fail "SONAME is not $soname"
else
	echo "SKIP symbols: the part about libiou.so (there is none)"
fi
exit $failed
