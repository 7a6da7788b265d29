#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The engine of iou_fallback.c against the kernel's ring: see engine.c.
#
#     tests/proof/engine.sh [FOLDER]     build in FOLDER (a new one in /tmp), and run
#
# Four runs of both (plain, ASan and UBSan, clang's TSan), and the engine alone with newer system
# calls refused by strace: its answers must stay the same. A sanitizer or strace that is missing is
# said and left out.
set -u
cd "$(dirname "$0")/../.." || exit 1
out=${1:-$(mktemp -d /tmp/iou-engine-build.XXXX)}
mkdir -p "$out" || exit 1
failed=0

# build NAME COMPILER FLAG...
build() {
	name=$1 cc=$2
	shift 2
	"$cc" -std=gnu11 -g -O1 -Wall -Wextra -Wshadow "$@" -I. -Dmalloc=engine_malloc \
		-Dcalloc=engine_calloc -Dpthread_create=engine_pthread_create \
		-c -o "$out/$name.o" iou_fallback.c &&
	"$cc" -std=gnu11 -g -O1 -Wall -Wextra "$@" -I. -o "$out/$name" tests/proof/engine.c \
		"$out/$name.o" -luring -pthread
}

# run NAME COMPILER FLAG...
run() {
	echo "== $1"
	build "$@" || { echo "not built"; failed=1; return; }
	"$out/$1" || failed=1
}

run plain "${CC:-cc}"
run asan "${CC:-cc}" -fsanitize=address,undefined
command -v clang >/dev/null && run tsan clang -fsanitize=thread || echo "no clang: no TSan"

# Around calls that kernels from 4.18 on, or filters, may lack. `files` writes to a bad address,
# which is a fault without statx(2); RWF_NOWAIT of the program's own needs preadv2.
command -v strace >/dev/null || { echo "no strace: nothing refused"; exit $failed; }
for refuse in epoll_pwait2:error=ENOSYS epoll_pwait2:error=EPERM openat2:error=ENOSYS \
	statx:error=ENOSYS preadv2,pwritev2:error=EOPNOTSUPP; do
	calls=${refuse%%:*}
	set -- kinds offsets write recv tty link timeouts fifos splices many
	[ "$calls" = statx ] || set -- "$@" files
	"$out/plain" -f "$@" >"$out/expected"
	strace -f -qq -o /dev/null -e "trace=$calls" -e "inject=$refuse" "$out/plain" -f "$@" \
		>"$out/got" 2>&1
	echo "== $refuse"
	diff "$out/expected" "$out/got" || failed=1
done
[ $failed = 0 ] && rm -r "$out"
exit $failed
