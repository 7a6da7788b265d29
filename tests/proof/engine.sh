#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The engine of iou_fallback.c against the kernel's ring (see engine.c): as it is; with ASan and
# UBSan; with clang's TSan; and with newer system calls refused by strace, as old kernels and
# filters do, after which the answers must stay the same. B and CC are the Makefile's. Arguments
# are passed on to engine.
set -u
: "${B:=build}" "${CC:=cc}"
cd "$(dirname "$0")/../.." || exit 1
out=$B/engine
mkdir -p "$out" || exit 1
passed=0 failed=0 skipped=0

skip() { # WAY WHY
	echo "SKIP engine: $1 ($2)"
	skipped=$((skipped + n_cases))
}

run() { # WAY COMMAND...
	way=$1
	shift
	"$@" >"$out/log" 2>&1
	sum=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$out/log")
	sum=${sum:-0 1}
	[ "${sum#* }" = 0 ] || { echo "not ok - engine: $way"; sed 's/^/# /' "$out/log"; }
	passed=$((passed + ${sum% *})) failed=$((failed + ${sum#* }))
}

build() { # NAME COMPILER FLAG...
	name=$1 cc=$2
	shift 2
	set -- -std=gnu11 -g -Wall -Wextra -Wshadow -I. "$@"
	$cc "$@" -O1 -Dmalloc=engine_malloc -Dcalloc=engine_calloc \
		-Dpthread_create=engine_pthread_create -c -o "$out/$name.o" iou_fallback.c &&
		$cc "$@" -o "$out/$name" tests/proof/engine.c "$out/$name.o" -luring -pthread
}

build plain "$CC" && run plain "$out/plain" "$@"
n_cases=$((passed + failed))
build asan "$CC" -fsanitize=address,undefined && run 'ASan and UBSan' "$out/asan" "$@"
if command -v clang >/dev/null; then
	build tsan clang -fsanitize=thread && run TSan "$out/tsan" "$@"
else
	skip TSan 'no clang'
fi

# A bad address is a fault without statx(2); RWF_NOWAIT of the program's own needs preadv2.
for refuse in epoll_pwait2:error=ENOSYS epoll_pwait2:error=EPERM openat2:error=ENOSYS \
	statx:error=ENOSYS preadv2,pwritev2:error=EOPNOTSUPP; do
	case $refuse in
	statx*) but='~files' ;;
	preadv2*) but='~read_pipe' ;;
	*) but='~none' ;;
	esac
	if command -v strace >/dev/null; then
		run "$refuse" strace -f -qq -o /dev/null -e "trace=${refuse%%:*}" \
			-e "inject=$refuse" "$out/plain" "$but" "$@"
	else
		skip "$refuse" 'no strace'
	fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] && [ $passed != 0 ]
