#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The Makefile's manners: quiet, CC and the flags are the user's, each way to build has a folder of its own, what
# was built is not built again, other flags are noticed, and what is wrong is said in one line. `make install`
# installs what was built and compiles nothing, whoever calls it and wherever from.
# shellcheck disable=SC2015,SC2016
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
[ "${SHARED:-}" != no ] || { echo "SKIP build: it needs a libiou.so, and SHARED=no was said"; exit 77; }
cc=${CC:-cc} make=${MAKE:-make}
unset B CC SAN ENGINE V T CFLAGS CPPFLAGS LDFLAGS AR SHARED DESTDIR PREFIX
unset prefix libdir includedir pkgconfigdir datarootdir docdir

# A tree of its own with little in it: its library is one function.
mkdir "$dir/tree" "$dir/tree/examples" "$dir/tree/tests"
cp -r Makefile install.mk iou.h iou.pc.in LICENSE CHANGELOG.md "$dir/tree"
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
bad ENGINE=ring2
said 'ENGINE=ring2: fallback or ring'
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

good help SAN=memory ENGINE=none
said 'make check '

# The library alone, and without libiou.so; one that was there before does not stay.
good clean lib
[ -f build/libiou.a ] && [ -f build/libiou.so.0 ] || fail "make lib: no library"
[ ! -e build/examples ] || fail "make lib builds the examples"
good SHARED=no
[ -x build/examples/tiny ] || fail "SHARED=no: no examples"
[ ! -e build/libiou.so.0 ] && [ ! -e build/libiou.so ] || fail "SHARED=no leaves libiou.so there"
cat >"$dir/static-cc" <<'END'
#!/bin/sh
for word; do case $word in -shared | -fPIC) echo "a static toolchain"; exit 1 ;; esac; done
exec cc "$@"
END
chmod +x "$dir/static-cc"
bad CC="$dir/static-cc"
good CC="$dir/static-cc" SHARED=no

# From another folder, named in any way, it runs in its own.
mkdir "$dir/a folder"
cp -r . "$dir/a folder/tree"
rm -r "$dir/a folder/tree/build"
cd "$dir/a folder"
good -f tree/Makefile
[ -f tree/build/libiou.a ] && [ -x tree/build/examples/tiny ] || fail "make -f: not everything was built"
good -f "$dir/a folder/tree/Makefile" clean lib
[ -f tree/build/libiou.a ] && [ ! -e tree/build/examples ] || fail "make -f clean lib"
bad -f tree/Makefile check T=nosuch
said 'T=nosuch: the tests are check'
[ "$(ls)" = tree ] || fail "make -f left something here: $(ls)"
cd "$dir/tree"

# Installing says what is put where, and what is taken away again.
good
good install prefix="$dir/a prefix"
said "^  INSTALL	$dir/a prefix/include/iou.h$"
said "^  INSTALL	$dir/a prefix/lib/libiou.so$"
n=$(wc -l <"$dir/out")
good uninstall prefix="$dir/a prefix"
said "^  RM	$dir/a prefix/lib/pkgconfig/iou.pc$"
[ "$n" = "$(wc -l <"$dir/out")" ] && [ "$n" = 8 ] || fail "$n lines for eight files"
[ -z "$(find "$dir/a prefix" ! -type d)" ] || fail "uninstall left something"
[ ! -e "$dir/a prefix/share/doc/iou" ] || fail "uninstall left its folder"
good install V=1 DESTDIR="$dir/a prefix/of a package"
said "^install -m 644 iou.h '$dir/a prefix/of a package/usr/local/include/iou.h'$"
said " iou.pc.in > '$dir/a prefix/of a package/usr/local/lib/pkgconfig/iou.pc'"
[ -f "$dir/a prefix/of a package/usr/local/share/doc/iou/LICENSE" ] || fail "no LICENSE"

# installs FOLDER [ARGUMENT...]: puts there what lies in FOLDER, and does nothing else.
installs() {
	folder=$1
	shift
	rm -rf "$dir/to"
	good install DESTDIR="$dir/to" "$@"
	grep -v '^  INSTALL	' "$dir/out" && fail "install $*: not only installs"
	cmp "$folder/libiou.a" "$dir/to/usr/local/lib/libiou.a" || fail "install $*: not what was built"
	if [ -e "$folder/libiou.so.0" ]; then
		cmp "$folder/libiou.so.0" "$dir/to/usr/local/lib/libiou.so" || fail "install $*: not what was built"
	else
		[ -z "$(find "$dir/to" -name '*.so*')" ] || fail "install $*: where does libiou.so come from?"
	fi
}

# What was built last, with any flags and by any compiler, sanitizers aside; or what is named.
good CFLAGS=-O3 CPPFLAGS=-DOTHERS
installs build
CFLAGS=-O1 installs build
good CC="$dir/other-cc" CFLAGS=-DNDEBUG
good SAN=address
installs build/other-cc-NDEBUG
installs build/other-cc-NDEBUG CC="$dir/other-cc" CFLAGS=-DNDEBUG
installs build/address SAN=address
installs "$dir/elsewhere" B="$dir/elsewhere"
rm -r build/other-cc-NDEBUG
installs build
good CFLAGS=-DNDEBUG lib SHARED=no
installs build/NDEBUG
good
installs build
rm -rf "$dir/to"
good install SHARED=no DESTDIR="$dir/to"
[ -f "$dir/to/usr/local/lib/libiou.a" ] && [ -z "$(find "$dir/to" -name '*.so*')" ] || fail "install SHARED=no"

# What was changed since is neither compiled now nor installed as it was.
touch -d '+1 second' iou.h
bad install DESTDIR="$dir/never"
said "iou.h changed after build/libiou.a was built: run 'make'"
[ ! -e "$dir/never" ] || fail "something was installed"
touch iou.h

# If there is nothing yet, the library is built first, and not the examples.
rm -r build
good -j4 install DESTDIR="$dir/first"
said '	build/iou.o$'
[ -f "$dir/first/usr/local/lib/libiou.so" ] && [ ! -e build/examples ] || fail "install from nothing"

# Another user, who may not write here, builds elsewhere and installs what is here; files are readable in spite of
# the umask. (On a file server root is nobody, too.)
mkdir "$dir/theirs"
chmod 755 "$dir" && chmod -R a+rX,a-w . && chmod 777 "$dir/theirs"
command="umask 077; $make lib B='$dir/theirs/build' && $make -j2 install DESTDIR='$dir/theirs/to'"
if [ "$(id -u)" != 0 ]; then
	sh -c "$command" >"$dir/out" 2>&1 || { cat "$dir/out"; fail "install in a tree that is not writable"; }
elif command -v su >/dev/null && su nobody -s /bin/sh -c true 2>/dev/null; then
	su nobody -s /bin/sh -c "$command" >"$dir/out" 2>&1 || { cat "$dir/out"; fail "install by another user"; }
else
	echo "SKIP build: make install by another user (no su to nobody)"
	mkdir "$dir/theirs/to"
fi
[ -z "$(find "$dir/theirs/to" ! -type l ! -perm -044)" ] || fail "unreadable: $(find "$dir/theirs/to" ! -perm -044)"
chmod -R u+w .

good clean
[ ! -e build ] || fail "clean left something"
