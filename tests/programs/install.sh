#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Installs into a scratch place, as a package does (DESTDIR) and as a person does (prefix), and builds programs
# outside of the tree: through pkg-config, shared and static, and from a package without libiou.so; by copying three
# files, or two; in C++. Looks at each installed file, and that uninstall leaves nothing. If SHARED=no is given (a static
# toolchain), there is no libiou.so to look at. (symbols.sh looks at what is exported.)
#
# Words are split on purpose.
# shellcheck disable=SC2015,SC2086,SC2046
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
pc=${PKG_CONFIG:-pkg-config}
unset pkgconfigdir datarootdir docdir mandir url

fail() { echo "FAIL: $*"; exit 1; }
quietly() { # a warning counts as an error
	"$@" >"$dir/out" 2>&1 || { cat "$dir/out"; fail "$*"; }
	[ ! -s "$dir/out" ] || { cat "$dir/out"; fail "not quiet: $*"; }
}
# The plain library, whatever is being tested: sanitizers are not what people install.
to() { ${MAKE:-make} -s B="$dir/build" SAN= CFLAGS='-O2 -g' CPPFLAGS= LDFLAGS= "$@"; }
listing() { (cd "$1" && find . ! -type d | LC_ALL=C sort); }

version=$(sed -n 's/^#define IOU_VERSION_[A-Z]* //p' iou.h | paste -sd .)
soname=libiou.so.${version%%.*}
shared=yes
[ "${SHARED:-}" != no ] || shared=

# ---- Where things go ------------------------------------------------------------------------------------
to lib >/dev/null
touch "$dir/built"
quietly to install prefix=/opt/iou libdir=/opt/iou/lib64 includedir=/opt/iou/include/x DESTDIR="$dir/dest"
[ -z "$(find "$dir/build" -newer "$dir/built")" ] || fail "install made $(find "$dir/build" -newer "$dir/built")"
want() {
	for file in include/x/iou.h lib64/libiou.a lib64/pkgconfig/iou.pc; do echo "./$file"; done
	[ ! $shared ] || for file in libiou.so $soname libiou.so.$version; do echo "./lib64/$file"; done
	for file in LICENSE CHANGELOG.md README.md docs/*.md docs/*.svg; do
		[ ! -f "$file" ] || echo "./share/doc/iou/$file"
	done
	echo ./share/man/man7/iou.7
	for page in life engines ops loop threads inspect; do echo "./share/man/man3/iou_$page.3"; done
	sed -n 's/^IOU_API .*[ *]\(iou_[a-z_]*\)(.*/.\/share\/man\/man3\/\1.3/p' iou.h
}
want | LC_ALL=C sort >"$dir/want"
listing "$dir/dest/opt/iou" | diff "$dir/want" - || fail "installed (>) something else than it should (<)"
grep -q "$dir" -r "$dir/dest/opt/iou/lib64/pkgconfig" && fail "iou.pc names DESTDIR"
export PKG_CONFIG_PATH="$dir/dest/opt/iou/lib64/pkgconfig"
for pair in prefix=/opt/iou libdir=/opt/iou/lib64 includedir=/opt/iou/include/x; do
	[ "$($pc --variable=${pair%=*} iou)" = "${pair#*=}" ] || fail "iou.pc: $pair is $($pc --variable=${pair%=*} iou)"
done
grep -qx 'URL: file:///opt/iou/share/doc/iou/README.md' "$PKG_CONFIG_PATH/iou.pc" || fail "iou.pc: URL"
[ "$($pc --modversion iou)" = "$version" ] || fail "iou.pc: version $($pc --modversion iou), not $version"
quietly to uninstall prefix=/opt/iou libdir=/opt/iou/lib64 includedir=/opt/iou/include/x DESTDIR="$dir/dest"
[ -z "$(listing "$dir/dest")" ] || fail "uninstall left $(listing "$dir/dest")"
[ ! -e "$dir/dest/opt/iou/share/doc/iou" ] || fail "uninstall left its folder"

# ---- Programs against an installed iou -------------------------------------------------------------------
prefix=$dir/usr
quietly to install prefix="$prefix" libdir="$prefix/lib" includedir="$prefix/include" DESTDIR= \
	mandir="$prefix/man" url=https://example.org/iou
grep -qx 'URL: https://example.org/iou' "$prefix/lib/pkgconfig/iou.pc" || fail "iou.pc: not the URL that was given"
[ "$(readlink "$prefix/man/man3/iou_run.3")" = iou_loop.3 ] && [ -f "$prefix/man/man3/iou_run.3" ] ||
	fail "iou_run.3 is no link to iou_loop.3"
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig"
mkdir "$dir/src" "$dir/c++"
cp examples/hello.c "$dir/src"
seq 1234 >"$dir/input"
cd "$dir"

runs() { # PROGRAM
	got=$(LD_LIBRARY_PATH="$prefix/lib" "$@" "$dir/input") || fail "$1 ended with status $?"
	[ "$got" = "1234 lines" ] || fail "$1: $got"
}
needs() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }

if [ $shared ]; then
	readelf -d "$prefix/lib/libiou.so.$version" | grep -q "SONAME.*\[$soname\]" || fail "SONAME is not $soname"
	quietly $CC -Wall -Wextra -o shared src/hello.c $($pc --cflags --libs iou)
	needs shared | grep -qx "$soname" || fail "shared: needs $(needs shared)"
	needs shared | grep -q liburing && fail "shared: a client of libiou.so should not name liburing"
	readelf -V shared | grep -q 'Name: IOU_' || fail "shared: asks for no version of libiou.so"
	runs ./shared
fi

# libiou.a with a shared libc, then all static (where the system has static libraries).
quietly $CC -Wall -Wextra -o archive src/hello.c $($pc --cflags iou) "$prefix/lib/libiou.a" \
	$($pc --static --libs-only-l liburing) -pthread
needs archive | grep -q libiou && fail "archive: needs $(needs archive)"
runs ./archive
if echo 'int main(void){return 0;}' | $CC -static -x c -o /dev/null - -luring -pthread 2>/dev/null; then
	quietly $CC -Wall -Wextra -static -o static src/hello.c $($pc --static --cflags --libs iou)
	runs ./static
fi

# From a package without libiou.so, with and without --static.
(cd "$OLDPWD" && quietly to install SHARED=no prefix="$dir/archives" libdir="$dir/archives/lib" DESTDIR=)
for static in '' --static; do
	quietly $CC -Wall -Wextra -o alone src/hello.c \
		$(PKG_CONFIG_PATH="$dir/archives/lib/pkgconfig" $pc $static --cflags --libs iou)
	needs alone | grep -q libiou && fail "SHARED=no: needs $(needs alone)"
	runs ./alone
done

# ---- By copying three files, or two ----------------------------------------------------------------------
cp "$OLDPWD/iou.c" "$OLDPWD/iou_fallback.c" "$OLDPWD/iou.h" src
(cd src && quietly $CC -Wall -Wextra -o ../copied hello.c iou.c iou_fallback.c -luring -pthread)
runs ./copied
(cd src && quietly $CC -Wall -Wextra -o ../copied hello.c iou.c -luring -pthread)
[ -n "${REFUSED:-}" ] || runs ./copied

# ---- From C++ --------------------------------------------------------------------------------------------
cxx=
for name in "${CXX:-c++}" g++ clang++; do
	if command -v "$name" >/dev/null; then cxx=$name; break; fi
done
cat >c++/lines.cc <<'END'
#include <iou.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

struct Text {
	std::string bytes;
	iou_t *iou;
	long lines;
};

static int count(void *data) noexcept
{
	Text *text = static_cast<Text *>(data);
	text->lines = std::count(text->bytes.begin(), text->bytes.end(), '\n');
	return 0;
}

static int print(void *data) noexcept
{
	std::cout << static_cast<Text *>(data)->lines << " lines\n";
	return 0;
}

static int on_read(void *data) noexcept
{
	Text *text = static_cast<Text *>(data);
	return iou_async(text->iou, count, data, print, data);
}

int main(int, char **argv)
{
	Text text = {std::string(65536, ' '), iou_new(8), 0};
	iou_op_t *op = text.iou ? iou_op_new(text.iou) : nullptr;
	int result = -1, fd = open(argv[1], O_RDONLY);

	if (op) {
		io_uring_prep_read(op->sqe, fd, &text.bytes[0], text.bytes.size(), 0);
		iou_op_queue(text.iou, op, on_read, &text);
		result = iou_run(text.iou);
	}
	iou_free(text.iou);
	return result != 0;
}
END
if [ -n "$cxx" ]; then
	quietly "$cxx" -std=c++11 -Wall -Wextra -o lines c++/lines.cc $($pc --cflags --libs iou) \
		$($pc --cflags --libs liburing)
	runs ./lines
fi

# ---- And gone again --------------------------------------------------------------------------------------
cd "$OLDPWD"
quietly to uninstall prefix="$prefix" libdir="$prefix/lib" includedir="$prefix/include" DESTDIR= mandir="$prefix/man"
[ -z "$(listing "$prefix")" ] || fail "uninstall left $(listing "$prefix")"
[ -n "$cxx" ] || echo "SKIP install: the part in C++ (no C++ compiler)"
[ -z "${REFUSED:-}" ] || echo "SKIP install: running two copied files (io_uring is refused here)"
