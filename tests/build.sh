#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The Makefile's manners: quiet, CC and the flags are the user's, each way to build has a folder of its own, what
# was built is not built again, other flags are noticed, and what is wrong is said in one line.
# shellcheck disable=SC2015,SC2016
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
cc=${CC:-cc} make=${MAKE:-make}
unset B CC SAN V T CFLAGS CPPFLAGS LDFLAGS AR DESTDIR prefix PREFIX

# A tree of its own with little in it: its library is one function.
mkdir "$dir/tree" "$dir/tree/examples" "$dir/tree/tests"
cp -r Makefile iou.h iou.pc.in "$dir/tree"
cp -r .ci "$dir/tree"
cd "$dir/tree"
cat >iou.c <<'END'
#include "iou.h"
const char *iou_version(void)
{
	return "0";
}
END
printf '#include "iou.h"\nint main(void)\n{\n\treturn iou_version()[0] != 48;\n}\n' >examples/tiny.c
printf 'int main(void)\n{\n\treturn 0;\n}\n' >tests/main.c

run() { # ARGUMENT...: its exit status is $status, its output is in $dir/out
	status=0
	$make "$@" >"$dir/out" 2>&1 || status=$?
}
good() { run "$@"; [ $status = 0 ] || { cat "$dir/out"; fail "make $*: status $status"; }; }
bad() { run "$@"; [ $status != 0 ] || { cat "$dir/out"; fail "make $*: status 0"; }; }
said() { grep -Eq -- "$1" "$dir/out" || { cat "$dir/out"; fail "nothing like '$1'"; }; }
silent() { [ ! -s "$dir/out" ] || { cat "$dir/out"; fail "not quiet"; }; }

good
[ -f build/libiou.a ] && [ -f build/libiou.so.0 ] && [ -x build/examples/tiny ] || fail "not everything was built"
said '^  CC	build/iou.o$'
grep -v '^  [A-Z]*	build/' "$dir/out" && fail "more than one line for each file"
good
silent
touch iou.h
good
said '	build/iou.o$'
said '	build/examples/tiny$'

good -B V=0
said '^  CC	build/iou.o$'
good -B -s
silent

# Others than cc and gcc, the sanitizers, and NDEBUG have folders of their own, and leave build/ as it is.
good SAN=address
said '	build/address/examples/tiny$'
good CFLAGS=-DNDEBUG
said '	build/NDEBUG/iou.o$'
ln -s "$(command -v "${cc%% *}")" "$dir/other-cc"
good CC="$dir/other-cc" CPPFLAGS=-DNDEBUG
said '	build/other-cc-NDEBUG/iou.o$'
good
silent
good B="$dir/elsewhere"
[ -x "$dir/elsewhere/examples/tiny" ] || fail "B= is not heard"

# What the user says stands in the commands, after our own; other flags build again, here or from the environment.
good V=1 CC='cc -DIN_CC' CPPFLAGS=-DIN_CPP CFLAGS='-O1 -DIN_C' LDFLAGS=-Wl,-O1 AR='ar -v'
said '^cc -DIN_CC .* -DIN_CPP -O1 -DIN_C .*iou.c$'
said '-Wl,-O1'
said 'ar -v rcs build/libiou.a'
grep -q -- '-O2' "$dir/out" && fail "CFLAGS are added to"
CFLAGS=-O0 good V=1
said ' -O0 .*iou.c$'

# Errors: one line of ours, and make's own.
bad SAN=memory
said 'SAN=memory: address or thread'
bad CC=no-such-compiler
said "^iou: no C compiler 'no-such-compiler'"
bad CFLAGS=-fno-such-flag
said 'no-such-flag'
mkdir "$dir/empty"
printf '#error no such header\n' >"$dir/empty/liburing.h"
bad CPPFLAGS="-I$dir/empty"
said "^iou: liburing's headers are not installed: run 'make deps'"
bad check PKG_CONFIG=false
said "^iou: Check is not installed: run 'make deps'"
[ "$(grep -vc '^  [A-Z]*	' "$dir/out")" -le 2 ] || { cat "$dir/out"; fail "more than one line"; }
bad check T='main nosuch check'
said "T=main nosuch: the tests are check( |$)"
[ "$(wc -l <"$dir/out")" = 1 ] || { cat "$dir/out"; fail "it builds before it says so"; }
bad no-such-goal
said "No rule to make target 'no-such-goal'"

# Goals after `deps` run when it is done, in the order given; where it fails they do not.
printf 'echo "deps: $1"; exit ${DEPS_STATUS:-0}\n' >.ci/deps
good deps clean all
[ "$(grep -n '^deps: deps$' "$dir/out")" = "1:deps: deps" ] || { cat "$dir/out"; fail "deps is not first"; }
[ -f build/libiou.a ] || fail "deps clean all: all was not last"
good -j4 deps deps-dev all
[ "$(grep -c ^deps: "$dir/out")" = 2 ] || fail "deps deps-dev: $(cat "$dir/out")"
rm -r build
DEPS_STATUS=1 bad deps all
[ ! -e build ] || fail "all ran though deps failed"

good help SAN=memory
said 'make check '

# Installing says what is put where, and what is taken away again.
good
good install prefix="$dir/a prefix"
said "^  INSTALL	$dir/a prefix/include/iou.h$"
said "^  INSTALL	$dir/a prefix/lib/libiou.so$"
n=$(wc -l <"$dir/out")
good uninstall prefix="$dir/a prefix"
said "^  RM	$dir/a prefix/lib/pkgconfig/iou.pc$"
[ "$n" = "$(wc -l <"$dir/out")" ] && [ "$n" = 6 ] || fail "$n lines for six files"
[ -z "$(find "$dir/a prefix" ! -type d)" ] || fail "uninstall left something"
good clean
[ ! -e build ] || fail "clean left something"
