#!/bin/sh
# SPDX-License-Identifier: MIT
#
# kernels.sh [RELEASE...]: the Check program, linked statically, on the cloud kernels of these Debian releases, in QEMU
# without KVM. Kernels are fetched from Debian's mirror by apt, into a folder of its own below $B, once. Also sets
# kernel.io_uring_disabled to 1 and 2, which no test may do to the machine that it runs on: some suites have to pass then,
# on the fallback. SUITE= runs one suite only.
set -eu
: "${B:?the build folder}" "${CC:=cc}" "${MAKE:=make}"
cd "$(dirname "$0")/../.."
[ $# != 0 ] || set -- bullseye bookworm trixie sid
mkdir -p "$B/kernels"
top=$(cd "$B/kernels" && pwd)
. tests/proof/debs.sh
. tests/proof/vm.sh

skip() { echo "SKIP kernels: $*"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
command -v qemu-system-x86_64 >/dev/null || skip "needs qemu-system-x86_64"
command -v apt-get >/dev/null || skip "needs apt-get, to fetch kernels"
busybox=$(command -v busybox) || skip "needs busybox, statically linked"
if ldd "$busybox" >/dev/null 2>&1; then skip "needs busybox, statically linked"; fi
[ "$(uname -m)" = x86_64 ] || skip "needs x86_64"

check=$B/static/tests/check
"$MAKE" --no-print-directory B="$B/static" CC="$CC" HAVE_GLIB= LDFLAGS=-static PKG_CONFIG='pkg-config --static' "$check"
strip -o "$top/check" "$check"
vm_initrd "$top" "$top/check" "$busybox"

passed=0 failed=0 skipped=0 told=
for release; do
	if ! vm_kernel "$top/$release" "$release" amd64; then
		echo "SKIP kernels: $release's kernel could not be fetched"
		skipped=$((skipped + 1))
		continue
	fi
	began=$(date +%s)
	vm_boot "$top/$release" "$top/initrd" ttyS0 qemu-system-x86_64 -machine q35,accel=tcg -cpu max || true
	vm_tell "$release" "$top/$release" $(($(date +%s) - began))
	told="$told $(cat "$top/$release/version")"
done
echo "check-kernels:${told:- none}"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
