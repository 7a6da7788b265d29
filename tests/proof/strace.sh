#!/bin/bash
# SPDX-License-Identifier: MIT
#
# The programs of tests/proof/faults.c once more, with real system calls that fail: strace puts the error where the kernel
# would, so that liburing's own calls are among them. Each once, each error, the first N calls of each kind.
set -u
: "${B:?the build folder}" "${JOBS:=$(nproc)}"
cd "$(dirname "$0")/../.." || exit 1
faults=$B/tests/faults
if ! strace -o /dev/null -e inject=getpid:error=EPERM true 2>/dev/null; then
	echo "SKIP strace: not installed, or not allowed here"
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# The loader and libc come first: how many calls of this name before the first ring is set up?
before() {
	strace -f -qq -e trace="$1",io_uring_setup "$faults" -s ring 2>&1 >/dev/null | sed '/io_uring_setup/,$d' |
		grep -c "$1("
}
n_mmaps=$(before mmap)

one() { # SCENARIO CALL HOW ERROR N
	local first=0
	[ "$2" != mmap ] || first=$((n_mmaps - 1)) # the last of those is iou's
	if IOU_FAULTS_ERROR=$4 timeout 200 strace -f -qq -o "$dir/$1.$2.$3.$5" -e trace="$2" \
		-e inject="$2:$3:when=$((first + $5))" "$faults" -s "$1" 2>"$dir/err.$BASHPID"; then
		if grep -q INJECTED "$dir/$1.$2.$3.$5"; then echo ok; else echo none; fi
	else
		echo "FAIL $1: $2 $3 when=$5: $(tail -n 1 "$dir/err.$BASHPID")"
	fi
	rm -f "$dir/$1.$2.$3.$5" "$dir/err.$BASHPID"
}

while read -r call how error n; do
	for scenario in ring cancel jobs threads embed free overflow nested resize burst; do
		for ((i = 1; i <= n; i++)); do echo "$scenario $call $how $error $i"; done
	done
done >"$dir/list" <<'END'
io_uring_enter error=EINTR EINTR 8
io_uring_enter error=EAGAIN EAGAIN 8
io_uring_enter error=EBUSY EBUSY 8
io_uring_enter error=ENOMEM ENOMEM 8
io_uring_enter retval=0 EAGAIN 8
io_uring_setup error=ENOMEM ENOMEM 2
io_uring_setup error=EMFILE EMFILE 2
io_uring_setup error=EPERM EPERM 2
io_uring_setup error=ENOSYS ENOSYS 2
io_uring_setup error=EINVAL EINVAL 2
io_uring_register error=ENOMEM ENOMEM 4
io_uring_register error=EPERM EPERM 4
io_uring_register error=EINVAL EINVAL 4
eventfd2 error=EMFILE EMFILE 2
timerfd_create error=EMFILE EMFILE 1
clone3 error=EAGAIN EAGAIN 3
mmap error=ENOMEM ENOMEM,EAGAIN 6
END
while read -r scenario call how error i; do
	while [ "$(jobs -rp | wc -l)" -ge $((JOBS * 2)) ]; do wait -n; done
	one "$scenario" "$call" "$how" "$error" "$i" >>"$dir/results" &
done <"$dir/list"
wait
grep '^FAIL' "$dir/results"
n=$(grep -c '^ok' "$dir/results") failed=$(grep -c '^FAIL' "$dir/results")
echo "check-faults, by strace: $((n + failed)) system calls failed, $failed of them badly handled"
[ "$failed" = 0 ] && [ "$n" != 0 ]
