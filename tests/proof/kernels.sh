#!/bin/sh
# SPDX-License-Identifier: MIT
#
# kernels.sh [RELEASE...]: the Check program, linked statically, on the cloud kernels of these Debian releases, in QEMU
# without KVM. Kernels are fetched from Debian's mirror by apt, into a folder of its own below $B, once. Also sets
# kernel.io_uring_disabled to 1 and 2, which no test may do to the machine that it runs on. SUITE= runs one suite only.
set -eu
: "${B:?the build folder}" "${CC:=cc}" "${MAKE:=make}" "${MIRROR:=http://deb.debian.org/debian}" "${LIMIT:=1800}"
cd "$(dirname "$0")/../.."
[ $# != 0 ] || set -- bullseye bookworm trixie sid
mkdir -p "$B/kernels"
top=$(cd "$B/kernels" && pwd)

skip() { echo "SKIP kernels: $*"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
command -v qemu-system-x86_64 >/dev/null || skip "needs qemu-system-x86_64"
command -v apt-get >/dev/null || skip "needs apt-get, to fetch kernels"
busybox=$(command -v busybox) || skip "needs busybox, statically linked"
if ldd "$busybox" >/dev/null 2>&1; then skip "needs busybox, statically linked"; fi
[ "$(uname -m)" = x86_64 ] || skip "needs x86_64"

# The first package of that name that this one depends on.
depends() { apt-cache depends "$1" | sed -n "s/.*Depends: \\($2.*\\)/\\1/p" | head -1; }

# fetch RELEASE: leaves its kernel in $top/RELEASE/vmlinuz, and its version beside it.
fetch() {
	dir=$top/$1
	[ ! -f "$dir/vmlinuz" ] || return 0
	mkdir -p "$dir/lists/partial" "$dir/archives/partial" "$dir/none"
	echo "deb $MIRROR $1 main" >"$dir/sources.list"
	cat >"$dir/apt.conf" <<-END
		Dir::State "$dir";
		Dir::State::lists "$dir/lists";
		Dir::State::status "/dev/null";
		Dir::Cache "$dir";
		Dir::Etc::sourcelist "$dir/sources.list";
		Dir::Etc::sourceparts "$dir/none";
		Dir::Etc::preferencesparts "$dir/none";
		Acquire::Languages "none";
		Acquire::Retries "3";
		APT::Architecture "amd64";
		APT::Architectures { "amd64"; };
		APT::Sandbox::User "root";
	END
	(
		export APT_CONFIG="$dir/apt.conf"
		cd "$dir" || exit 1
		rm -rf tree ./*.deb
		apt-get update -qq || exit 1
		image=$(depends linux-image-cloud-amd64 'linux-image-[0-9]')
		# Newer ones keep the kernel itself in a package beside it.
		for package in $image $(depends "$image" linux-binary-); do
			apt-get download -qq "$package" || exit 1
		done
		for deb in *.deb; do dpkg -x "$deb" tree || exit 1; done
		echo "${image#linux-image-}" >version
		image=$(find tree -name 'vmlinuz*' -type f | head -1)
		[ -n "$image" ] || exit 1
		mv "$image" vmlinuz
		rm -rf tree lists ./*.deb ./*.bin
	)
}

# The first process in the machine; $1 is what to run.
write_init() {
	cat >"$1" <<-'END'
		#!/bin/busybox sh
		/bin/busybox mkdir -p /proc /sys /dev /tmp /var/tmp /usr/bin /sbin /usr/sbin
		/bin/busybox --install -s
		export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TMPDIR=/tmp
		mount -t proc proc /proc
		mount -t sysfs sysfs /sys
		mount -t devtmpfs dev /dev
		mkdir -p /dev/shm
		mount -t tmpfs -o size=400m tmp /tmp
		mount -t tmpfs shm /dev/shm
		chmod 1777 /tmp
		ip link set lo up
		dmesg -c >/boot.log
		# Emulated, on a machine that has other work: patience
		export CK_TIMEOUT_MULTIPLIER=3 IOU_TEST_SLOW=1 CK_VERBOSITY=normal CK_TAP_LOG_FILE_NAME=/dev/ttyS0
		. /suite
		echo "IOU kernel $(uname -r)"
		/check >/out; status=$?; echo; cat /out; echo "IOU status $status"
		IOU_TEST_OWN_MACHINE=1 CK_RUN_SUITE=hostile CK_RUN_CASE=machine /check; echo "IOU machine status $?"
		for word in WARNING BUG Oops 'blocked for more' 'Call Trace' 'general protection' 'rcu.*stall' refcount after-free; do
			dmesg | grep "$word" | sed 's/^/IOU dmesg /'
		done
		echo "IOU end"
		poweroff -f
	END
}

boot() { # RELEASE: what the machine says goes to $top/RELEASE/log
	timeout -k 5 "$LIMIT" qemu-system-x86_64 -machine q35,accel=tcg -cpu max -smp 2 -m 1536 -display none -no-reboot \
		-nodefaults -serial "file:$top/$1/serial" -monitor none -kernel "$top/$1/vmlinuz" -initrd "$top/initrd" \
		-append 'console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off random.trust_cpu=on' \
		</dev/null >"$top/$1/qemu" 2>&1
	tr -d '\r' <"$top/$1/serial" >"$top/$1/log"
}

check=$B/static/tests/check
"$MAKE" --no-print-directory B="$B/static" CC="$CC" HAVE_GLIB= LDFLAGS=-static PKG_CONFIG='pkg-config --static' "$check"
root=$top/root
rm -rf "$root"
mkdir -p "$root/bin"
cp "$busybox" "$root/bin/busybox"
cp "$check" "$root/check"
strip "$root/check"
write_init "$root/init"
chmod +x "$root/init"
echo "${SUITE:+export CK_RUN_SUITE=$SUITE}" >"$root/suite"
(cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null) | gzip -1 >"$top/initrd"

passed=0 failed=0 skipped=0 told=
for release; do
	if ! fetch "$release"; then
		echo "SKIP kernels: $release's kernel could not be fetched"
		skipped=$((skipped + 1))
		continue
	fi
	began=$(date +%s)
	boot "$release" || true
	log=$top/$release/log
	# shellcheck disable=SC2046
	set -- $(sed -n 's/.*Checks: \([0-9]*\), Failures: \([0-9]*\), Errors: \([0-9]*\).*/\1 \2 \3/p' "$log" | head -1)
	n=${1:-0} bad=$((${2:-1} + ${3:-0})) skips=$(grep -ac '^SKIP' "$log") || true
	sed -n "s|^SKIP|SKIP $release|p" "$log" | sort -u
	[ "$n" != 0 ] || bad=1
	grep -aq '^IOU machine status 0' "$log" || { echo "FAIL $release: hostile, machine"; bad=$((bad + 1)); }
	if grep -aq '^IOU dmesg' "$log"; then echo "FAIL $release: dmesg"; bad=$((bad + 1)); fi
	grep -aq '^IOU end' "$log" || { echo "FAIL $release: it did not come to its end"; bad=$((bad + 1)); }
	[ "$bad" = 0 ] || grep -aE '^not ok|:[FE]:|^IOU|panic' "$log" | sed "s/^/    $release: /"
	good=$((n > bad + skips ? n - bad - skips : 0))
	echo "kernel $(cat "$top/$release/version"): $good passed, $bad failed, $skips skipped, $(($(date +%s) - began)) s"
	passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + skips))
	told="$told $(cat "$top/$release/version")"
done
echo "check-kernels:${told:- none}"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
