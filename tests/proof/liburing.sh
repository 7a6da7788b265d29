#!/bin/sh
# SPDX-License-Identifier: MIT
#
# liburing.sh [RELEASE...]: the Check program, the scripts that build something and a short
# simulation, with the liburing and the kernel headers of these Debian releases. Also a fault in
# iou.c that only a newer liburing shows: the simulation must fail with it. apt fetches them into a
# folder below $B, once; nothing is installed. RUNS: sequences of the simulation.
set -eu
: "${B:?the build folder}" "${CC:=cc}" "${MAKE:=make}" "${JOBS:=1}" "${RUNS:=200000}"
cd "$(dirname "$0")/../.."
[ $# != 0 ] || set -- trixie sid
. tests/proof/debs.sh

skip() { echo "SKIP liburing: $*"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
command -v apt-get >/dev/null || skip "needs apt-get, to fetch newer ones"
command -v dpkg >/dev/null || skip "needs dpkg, to unpack newer ones"
mkdir -p "$B/liburing"
top=$(cd "$B/liburing" && pwd)

# fetch FOLDER RELEASE: libraries and headers in FOLDER/tree, their versions in FOLDER/versions.
fetch() (
	[ ! -f "$1/versions" ] || return 0
	debs_open "$1" "$2" "$(dpkg --print-architecture)"
	debs_unpack liburing2 liburing-dev linux-libc-dev
	for package in liburing-dev linux-libc-dev; do
		apt-cache show --no-all-versions $package | sed -n 's/^Version: \(.*\)-.*/\1/p'
	done | paste -sd ' ' >versions.new
	debs_close
	mv versions.new versions
)

# use TREE: from now on compilers find this liburing before the system's, and so do their programs.
use() {
	shared=$(ls "$1"/usr/lib/*/liburing.so.2)
	libraries=${shared%/*}
	headers=$1/usr/include:$1/usr/include/${libraries##*/}
	export C_INCLUDE_PATH="$headers" CPLUS_INCLUDE_PATH="$headers"
	export LD_RUN_PATH="$libraries" PKG_CONFIG_PATH="$libraries/pkgconfig"
	# LIBRARY_PATH would not do: the linker looks there after the system's folders. So a script
	# of each compiler's name adds an option.
	rm -rf "${1:?}/bin"
	mkdir "$1/bin"
	for compiler in "${CC%% *}" cc gcc clang c++ g++ clang++; do
		real=$(command -v "$compiler") || continue
		options=-L$libraries
		case $("$real" --version) in
		*clang*) options="$options -Wno-unused-command-line-argument" ;; # without a link
		esac
		printf '#!/bin/sh\nexec %s %s "$@"\n' "$real" "$options" >"$1/bin/${compiler##*/}"
		chmod +x "$1/bin/${compiler##*/}"
	done
	export PATH="$1/bin:$PATH"
}

# is_used VERSION TREE PROGRAM: true if compilers find headers and library of that version, and
# PROGRAM runs with the library.
is_used() {
	cat >"$2/version.c" <<-'END_OF_C'
		#include "iou.h"
		int main(void)
		{
			printf("%d.%d, ", IO_URING_VERSION_MAJOR, IO_URING_VERSION_MINOR);
			printf("%d.%d\n", io_uring_major_version(), io_uring_minor_version());
			return 0;
		}
	END_OF_C
	$CC -I. -o "$2/version" "$2/version.c" -luring || return 1
	found=$("$2/version")
	[ "$found" = "$1, $1" ] || { echo "headers, library: $found, not $1"; return 1; }
	ldd "$3" | grep -q "liburing.so.2 => $2/" || { ldd "$3"; return 1; }
}

# run TARGET...: make it in $build. The output goes to $log, and is shown if it fails.
run() {
	"$MAKE" --no-print-directory -j"$JOBS" B="$build" "$@" >"$log" 2>&1 && return
	echo "FAIL $name: make $*"
	sed 's/^/    /' "$log"
	return 1
}

# suite VERSION FOLDER: run all of it, and leave the counts in FOLDER/sum.
suite() {
	build=$2/build log=$2/log
	use "$2/tree"
	run check T='check docs echo header hello install sum walk' || true
	sed -n "s/^ *SKIP/SKIP $name:/p" "$log"
	sum=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$log")
	read -r passed failed skipped <<-END
		${sum:-0 1 0}
	END
	for more in "check-sim-part RUNS=$RUNS" 'check-mutants WITH=sim T=newer-own-sqe-over-dirt'; do
		# shellcheck disable=SC2086 # words
		if run $more; then
			passed=$((passed + 1))
		else
			failed=$((failed + 1))
		fi
	done
	is_used "$1" "$2/tree" "$build/tests/check" || failed=$((failed + 1))
	echo "$passed $failed $skipped" >"$2/sum"
}

passed=0 failed=0 skipped=0 told=
for release; do
	folder=$top/$release
	if ! fetch "$folder" "$release"; then
		echo "SKIP liburing: $release's could not be fetched"
		skipped=$((skipped + 1))
		continue
	fi
	began=$(date +%s)
	read -r version kernel <"$folder/versions"
	name="liburing $version"
	(suite "$version" "$folder")
	read -r p f s <"$folder/sum"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s)) told="$told $version"
	echo "$name, headers of Linux $kernel:" \
		"$p passed, $f failed, $s skipped, $(($(date +%s) - began)) s"
done
echo "check-liburing:${told:- none}"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
