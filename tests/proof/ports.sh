#!/bin/sh
# SPDX-License-Identifier: MIT
#
# ports.sh [PART...]: iou on other machines and with another C library. The parts:
#   i386   32-bit programs on the ring of this kernel: the Check program, the simulation, the faults, hello, walk
#   musl   static programs with musl on the ring of this kernel: smoke.c, hello, walk
#   arm64  the Check program in QEMU, on the cloud kernel of Debian's release $KERNEL
# C library, liburing and Check are those of the releases $RELEASES (for arm64, of the last), fetched into a folder below
# $B, once. CC makes the tests' own tools. SUITE= runs one suite only.
set -eu
: "${B:?the build folder}" "${CC:=cc}" "${MAKE:=make}" "${RELEASES:=bookworm trixie}" "${KERNEL:=trixie}"
cd "$(dirname "$0")/../.."
[ $# != 0 ] || set -- i386 musl arm64
mkdir -p "$B/ports"
top=$(cd "$B/ports" && pwd)
. tests/proof/debs.sh
. tests/proof/vm.sh

passed=0 failed=0 skipped=0
skip() { echo "SKIP $part: $*"; skipped=$((skipped + 1)); }
fail() { echo "FAIL $part: $*"; failed=$((failed + 1)); }

# Are these programs there? Else skip the part.
have() {
	for name; do
		command -v "$name" >/dev/null || { skip "needs $name"; return 1; }
	done
}

# sysroot RELEASE ARCH PACKAGE...: $dir/tree gets liburing, the kernel's headers, and the packages.
sysroot() {
	dir=$top/$2-$1
	[ ! -f "$dir/ready" ] || return 0
	(
		debs_open "$dir" "$1" "$2"
		shift 2
		debs_unpack linux-libc-dev liburing-dev "$@"
		debs_close
		[ -e tree/lib ] || ln -s usr/lib tree/lib # as newer releases have it
		: >ready
	) || { skip "the packages of $1 could not be fetched"; return 1; }
}

# compiles COMPILER [ARGUMENT...]: without a warning.
compiles() {
	for std in c11 gnu17; do
		for source in iou.c iou_fallback.c; do
			"$@" -std=$std -Wall -Wextra -Werror -O2 -I. -pthread -c -o "$dir/quiet.o" $source || return
		done
	done
	for std in c99 c11 c17; do
		"$@" -std=$std -Wall -Wextra -Wpedantic -Werror -I. -fsyntax-only -x c iou.h || return
	done
}
check_compiles() {
	if compiles "$@"; then passed=$((passed + 1)); else fail "$* does not compile iou without a warning"; fi
}

# make_port GOAL...: files below $dir, by $compiler, with $pkg_config and $ldflags. A warning is a failure.
make_port() {
	for goal; do
		set -- "$@" "$dir/$goal"
		shift
	done
	set -- "$@" B="$dir" CC="$compiler" PKG_CONFIG="$pkg_config" LDFLAGS="$ldflags" SAN= HAVE_GLIB= HAVE_CRYPTO=
	if ! "$MAKE" --no-print-directory "$@" >"$dir/make.log" 2>&1; then
		cat "$dir/make.log"
		fail "it does not build"
		return 1
	fi
	if grep -F '[-W' "$dir/make.log"; then fail "warnings"; fi
}

# make_glibc FOLDER GOAL...: the same, with the C library, liburing and Check in that folder of $dir/tree.
make_glibc() {
	# shellcheck disable=SC2086
	check_compiles $compiler
	! command -v clang >/dev/null || check_compiles clang --target="${compiler%%-gcc*}" --sysroot="$dir/tree"
	export PKG_CONFIG_SYSROOT_DIR="$dir/tree" PKG_CONFIG_LIBDIR="$dir/tree/usr/lib/$1/pkgconfig"
	shift
	make_port "$@" && status=0 || status=$?
	unset PKG_CONFIG_SYSROOT_DIR PKG_CONFIG_LIBDIR
	return "$status"
}

# Can such programs be run here, and have a ring? Asks hello.
runs() {
	said=$("$dir/examples/hello" README.md 2>&1) || true
	case $said in
	*' lines') ;;
	*) skip "hello does not run here: $said"; return 1 ;;
	esac
}

# Tests by tests/run, whose last line is the sum.
run_tests() {
	B=$dir CC=$CC MAKE=$MAKE sh tests/run "$@" >"$dir/run.log" 2>&1 || true
	sed '$d' "$dir/run.log"
	# shellcheck disable=SC2046
	set -- $(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$dir/run.log")
	passed=$((passed + ${1:-0})) failed=$((failed + ${2:-1})) skipped=$((skipped + ${3:-0}))
}

# Programs that end with a line about it, and with 0 where it went well.
run_programs() {
	for program; do
		# shellcheck disable=SC2086
		if "$dir/tests/"$program >"$dir/run.log" 2>&1; then
			passed=$((passed + 1))
			sed -n '$s/^/  /p' "$dir/run.log"
		else
			cat "$dir/run.log"
			fail "$program"
		fi
	done
}

port_i386() { # RELEASE
	have i686-linux-gnu-gcc pkg-config apt-get || return 0
	sysroot "$1" i386 libc6 libc6-dev liburing2 check libsubunit-dev libsubunit0 || return 0
	# About fields that are _Atomic and of 64 bits, which iou.c shares with no other program.
	compiler="i686-linux-gnu-gcc --sysroot=$dir/tree -Wno-psabi" pkg_config=pkg-config
	# Not static: what the simulation and the faults wrap is then wrapped inside the C library too.
	ldflags="-Wl,-dynamic-linker,$dir/tree/lib/ld-linux.so.2"
	ldflags="$ldflags -Wl,-rpath,$dir/tree/lib/i386-linux-gnu:$dir/tree/usr/lib/i386-linux-gnu"
	make_glibc i386-linux-gnu tests/check tests/sim tests/faults tests/smoke tests/handoff tests/destroy \
		examples/hello examples/walk examples/echo || return 0
	runs || return 0
	run_tests "${SUITE:-check}" hello walk
	run_programs smoke 'handoff 200000' 'destroy 20' 'sim -n 200000' faults
}

port_musl() { # RELEASE
	have musl-gcc apt-get dpkg || return 0
	sysroot "$1" "$(dpkg --print-architecture)" || return 0
	# The kernel's and liburing's headers alone: those of the other C library are not to be found.
	mkdir -p "$dir/include" "$dir/lib"
	ln -sf "$dir"/tree/usr/include/*/asm "$dir/tree/usr/include/asm-generic" "$dir/tree/usr/include/linux" \
		"$dir/tree/usr/include/liburing" "$dir/tree/usr/include/liburing.h" "$dir/include/"
	ln -sf "$dir"/tree/usr/lib/*/liburing.a "$dir/lib/"
	compiler="musl-gcc -isystem $dir/include" pkg_config=false ldflags="-static -L$dir/lib"
	# shellcheck disable=SC2086
	check_compiles $compiler
	make_port tests/smoke tests/handoff tests/destroy examples/hello examples/walk examples/echo || return 0
	runs || return 0
	run_tests hello walk
	run_programs smoke 'handoff 200000' 'destroy 20'
}

port_arm64() {
	have aarch64-linux-gnu-gcc qemu-system-aarch64 pkg-config busybox apt-get || return 0
	for release in $RELEASES; do :; done
	sysroot "$release" arm64 libc6-dev check libsubunit-dev busybox-static || return 0
	compiler="aarch64-linux-gnu-gcc --sysroot=$dir/tree" ldflags=-static pkg_config='pkg-config --static'
	make_glibc aarch64-linux-gnu tests/check || return 0
	vm_kernel "$top/kernel-$KERNEL" "$KERNEL" arm64 || { skip "$KERNEL's kernel could not be fetched"; return 0; }
	aarch64-linux-gnu-strip -o "$dir/check" "$dir/tests/check"
	vm_initrd "$dir" "$dir/check" "$(find "$dir/tree" -name busybox -type f -perm /100)"
	began=$(date +%s)
	vm_boot "$top/kernel-$KERNEL" "$dir/initrd" ttyAMA0 \
		qemu-system-aarch64 -machine virt -accel tcg -cpu max,pauth-impdef=on || true
	vm_tell arm64 "$top/kernel-$KERNEL" $(($(date +%s) - began))
}

for part; do
	case $part in
	i386 | musl)
		for release in $RELEASES; do
			echo "---- $part, with the packages of $release"
			"port_$part" "$release"
		done ;;
	arm64)
		echo "---- $part"
		port_arm64 ;;
	*) echo "ports: no part '$part': i386, musl or arm64" >&2; exit 2 ;;
	esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
