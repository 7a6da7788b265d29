#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The manual pages, as installed. They say what iou.h says: each word of its comments, and of each function the
# threads and the errors, read from the header by another way than man/make.awk's. Each function has a page that
# is found by its name. mandoc has nothing to complain about, each awk makes the same pages, iou(7)'s program
# compiles and runs, and a header that make.awk cannot read is an error.
#
# Words are split on purpose.
# shellcheck disable=SC2015,SC2046,SC2086
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0
fail() { echo "FAIL: $*"; failed=1; }

back=$(printf '\b') # mandoc's bold is a letter twice
unset mandir datarootdir prefix V
${MAKE:-make} -s B="$B" install DESTDIR="$dir" prefix=/usr libdir=/usr/lib includedir=/usr/include >"$dir/out" 2>&1 ||
	{ cat "$dir/out"; exit 1; }
man=$dir/usr/share/man
pages="iou_life iou_engines iou_ops iou_loop iou_threads iou_inspect"
functions=$(sed -n 's/^IOU_API .*[ *]\(iou_[a-z_]*\)(.*/\1/p' iou.h)
[ $(echo "$functions" | wc -l) -ge 38 ] || fail "only these functions in iou.h:" $functions

# ---- A page for each function, and none for others -------------------------------------------------------
for name in $functions; do
	page=$man/man3/$name.3
	[ -f "$page" ] || { fail "no page for $name"; continue; }
	grep -Eqx "\.Nm $name( ,)?" "$page" && grep -qx "\.Fo $name" "$page" || fail "$name.3 is not the page of $name"
done
for page in "$man"/man3/*; do
	name=$(basename "$page" .3)
	echo $functions $pages | tr ' ' '\n' | grep -qx "$name" || fail "$name.3 is the page of nothing"
done
for name in $pages; do cat "$man/man3/$name.3"; done >"$dir/pages"
cat "$dir/pages" "$man/man7/iou.7" | sed -n 's/.*\.Xr \(iou[a-z_]*\) \([1-9]\).*/\1 \2/p' | sort -u |
	while read -r name n; do [ -f "$man/man$n/$name.$n" ] || echo "$name($n)"; done >"$dir/missing"
[ ! -s "$dir/missing" ] || fail "pages refer to" $(cat "$dir/missing")
version=$(sed -n 's/^#define IOU_VERSION_[A-Z]* //p' iou.h | paste -sd .)
[ "$(grep -c "^iou $version (libiou" "$dir/pages")" = 6 ] || fail "the pages are of another version than $version"

# ---- Which threads, and which errors: "NAME THREADS" and "NAME ERROR" lines of both -----------------------
# The header: a comment and the functions right below it. An error for a thread that does not own the iou is
# the rule for all that belong to the loop's thread and can return one.
awk '
	/^\/\*/ { text = "" }
	/^(\/\*| \*)/ { text = text " " $0; next }
	/^$/ { text = "" }
	/^IOU_API/ && match($0, /iou_[a-z_]+\(/) {
		name = substr($0, RSTART, RLENGTH - 1)
		threads = text
		sub(/\] *(\*\/)? *$/, "", threads)
		sub(/.*\[/, "", threads)
		print name, "threads:", threads
		errors = index(text, "Errors: ") ? text : ""
		sub(/.*Errors:/, "", errors)
		if (threads ~ /^loop thread/ && threads !~ /as said/ && $0 !~ /^IOU_API void [a-z]/) errors = errors " EEXIST"
		while (match(text, /\*   -E[A-Z0-9]+ /)) { # a list of results
			errors = errors " " substr(text, RSTART + 5, RLENGTH - 6)
			text = substr(text, RSTART + RLENGTH)
		}
		while (match(errors, /E[A-Z0-9]+/)) {
			# RLIMIT_MEMLOCK and the like are no errors
			if (substr(errors, RSTART - 1, 1) !~ /[A-Z_]/ && substr(errors, RSTART + RLENGTH, 1) != "_")
				print name, substr(errors, RSTART, RLENGTH)
			errors = substr(errors, RSTART + RLENGTH)
		}
	}
' iou.h | LC_ALL=C sort -u >"$dir/of-header"
awk '
	/^\.S[hs] / { n = 0; part = $1 " " $2; for (i = 2; i <= NF && $1 == ".Ss"; i++) { sub(/,/, "", $i); of[++n] = $i } }
	part ~ /^\.Ss/ && /^Any thread may call (it|them)\.$/ { told("any thread") }
	part ~ /^\.Ss/ && /^Any thread may call (it|them), and signal handlers\.$/ { told("any thread, signal handlers") }
	part ~ /^\.Ss/ && /^Call (it|them) on the loop.s thread\.$/ { told("loop thread") }
	part ~ /^\.Ss/ && /^Call (it|them) on the loop.s thread, or as said\.$/ { told("loop thread, or as said") }
	part ~ /^\.Ss/ && /^Call (it|them) on the loop.s thread, or in the op.s own job\.$/ {
		told("loop thread, or the op\047s own job")
	}
	part == ".Sh ERRORS" && /^\.(Pp|El|Sh)/ { fresh = 1 }
	part == ".Sh ERRORS" && /^\.Fn/ && fresh { n = 0; fresh = 0; joined = 1 }
	part == ".Sh ERRORS" && /^\.Fn/ && joined { of[++n] = $2 }
	part == ".Sh ERRORS" && /^return/ { joined = 0 }
	part == ".Sh ERRORS" && /^\.It/ {
		for (i = 2; i <= NF; i++) if ($i ~ /^E[A-Z0-9]+$/ && $i != "Er") for (j = 1; j <= n; j++) print of[j], $i
	}
	function told(threads) { for (i = 1; i <= n; i++) print of[i], "threads:", threads }
' "$dir/pages" | LC_ALL=C sort -u >"$dir/of-pages"
[ $(wc -l <"$dir/of-header") -ge 100 ] || fail "only $(wc -l <"$dir/of-header") threads and errors found in iou.h"
diff "$dir/of-header" "$dir/of-pages" || fail "threads and errors: the pages (>) differ from iou.h (<)"

# ---- Each awk makes the same pages; a header that cannot be read is an error -------------------------------
for awk in mawk gawk original-awk "busybox awk"; do
	$awk 'BEGIN { exit }' >/dev/null 2>&1 || continue
	for page in iou.7 iou_life.3 iou_engines.3 iou_ops.3 iou_loop.3 iou_threads.3 iou_inspect.3; do
		$awk -v page="$page" -f man/make.awk iou.h man/iou.7.in | cmp - "$man/man${page##*.}/$page" ||
			fail "$awk makes another $page"
	done
done
unreadable() { # SED WHAT: the header with that fault in it
	mkdir -p "$dir/fault"
	sed "$1" iou.h >"$dir/fault/iou.h"
	! cmp -s iou.h "$dir/fault/iou.h" || fail "the header has no place for: $2"
	for page in iou.7 iou_life.3 iou_engines.3 iou_ops.3 iou_loop.3 iou_threads.3 iou_inspect.3; do
		(cd "$dir/fault" && awk -v page=$page -f "$OLDPWD/man/make.awk" iou.h "$OLDPWD/man/iou.7.in") \
			>/dev/null 2>"$dir/fault/said" || { grep -q "iou.h:[0-9]*: " "$dir/fault/said" && return; }
	done
	fail "make.awk takes $2"
}
unreadable 's/^\/\* ---- Ops -/\/* ---- Operations -/' "a section that it does not know"
unreadable 's/^\( \* .*\)\[any thread, signal handlers\]/\1/' "a function without a word on threads"
unreadable 's/\[loop thread\]/[some thread]/' "a tag that it does not know"
unreadable 's/iou_bh_schedule() overrides/iou_bh_shedule() overrides/' "the name of no function"
unreadable 's/-EBUSY (ring ops are in flight)/-EBUSY/' "an error without its reason"
unreadable 's/^ \* Who owns an op$/ * Owners/' "an introduction without a part that iou(7) takes"

# ---- What mandoc shows ------------------------------------------------------------------------------------
if command -v mandoc >/dev/null; then
	for page in "$man"/man3/iou_*.3 "$man/man7/iou.7"; do
		[ ! -h "$page" ] || continue
		mandoc -T lint "$page" 2>/dev/null | grep -v 'referenced manual not found' && fail "$(basename "$page")"
	done

	# Each word of the header's comments is in the pages as often. What changes there, changes here, too.
	awk '
		/^\/\* ---- / { on = 1; next }
		/^#ifdef IOU_BACKEND/ { exit }
		on && /\/\*/ { comment = 1 }
		comment { text = $0; sub(/^.*\/\*/, "", text); sub(/\*\/.*/, "", text); print text }
		/\*\// { comment = 0 }
		on && /^IOU_API/ { text = $0 }
	' iou.h | tr '\n' ' ' | sed -e 's/ \*  *-E[A-Z]*  /&&/g' -e 's/"Engines" below/iou_engines/g' \
		-e 's/\[[a-z, '\'']*thread[a-z, '\'']*\]//g' -e 's/Errors://g' >"$dir/header-text"
	for page in $pages; do
		mandoc -T ascii -O width=200 "$man/man3/$page.3" | sed "s/.$back//g" |
			sed -n '/^DESCRIPTION/,/^SEE ALSO/p'
	done >"$dir/page-text"
	for file in header page; do
		tr -cs 'A-Za-z0-9_' '\n' <"$dir/$file-text" | LC_ALL=C sort | uniq -c |
			awk '$2 != "" { print $2, $1 }' >"$dir/$file-words"
	done
	[ $(wc -l <"$dir/header-words") -ge 700 ] || fail "only $(wc -l <"$dir/header-words") words found in iou.h"
	awk 'NR == FNR { n[$1] = $2; next } $2 > n[$1] { print "  " $1 ": " $2 " in iou.h, " n[$1] + 0 " in the pages" }' \
		"$dir/page-words" "$dir/header-words" >"$dir/lost"
	[ ! -s "$dir/lost" ] || { cat "$dir/lost"; fail "words of iou.h are not in the pages"; }
else
	echo "SKIP man: what mandoc says of the pages (it is not installed)"
fi

# ---- man finds them ----------------------------------------------------------------------------------------
reader=
for name in man mman; do
	! $name -M /usr/share/man -w man >/dev/null 2>&1 || { reader=$name; break; }
done
if [ $reader ]; then
	for name in $functions $pages iou; do
		$reader -M "$man" -w $name >/dev/null 2>&1 || fail "$reader does not find $name"
	done
	MANPAGER=cat PAGER=cat MANWIDTH=80 $reader -M "$man" iou_op_new 2>"$dir/said" | sed "s/.$back//g" >"$dir/out"
	grep -q 'iou_op_new(iou_t \*iou);' "$dir/out" && [ ! -s "$dir/said" ] ||
		{ cat "$dir/said" "$dir/out"; fail "$reader iou_op_new"; }
else
	echo "SKIP man: whether man finds the pages (it is not installed, or has no pages)"
fi

# ---- iou(7)'s program --------------------------------------------------------------------------------------
sed -n '/^\.Sh EXAMPLES/,/^\.Ed/p' "$man/man7/iou.7" | sed -e 1,/^\.Bd/d -e /^\.Ed/d -e 's/\\-/-/g' -e 's/\\e/\\/g' \
	>"$dir/example.c"
[ $(wc -l <"$dir/example.c") -ge 20 ] || fail "iou(7) has no program"
if [ "${SAN:-}" ]; then
	echo "SKIP man: running the program of iou(7) (it is linked without a sanitizer)"
elif ${CC:-cc} -Wall -Wextra -Werror -I"$dir/usr/include" -o "$dir/example" "$dir/example.c" "$dir/usr/lib/libiou.a" \
	$(${PKG_CONFIG:-pkg-config} --libs liburing) -pthread; then
	[ "${REFUSED:-}" ] || "$dir/example" LICENSE | cmp - LICENSE || fail "the program of iou(7)"
else
	fail "the program of iou(7) does not compile"
fi
exit $failed
