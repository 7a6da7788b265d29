# shellcheck shell=sh
# SPDX-License-Identifier: MIT
#
# Sourced by the scripts that run the Check program, linked statically, in QEMU without KVM, on a cloud kernel of
# Debian's; and some suites on the fallback: as IOU_ENGINE=fallback, and with kernel.io_uring_disabled=1 (to others than
# root) and 2, if the kernel has that. After debs.sh. SUITE= runs one suite only.
: "${LIMIT:=1800}"

# vm_kernel FOLDER RELEASE ARCH: leaves its kernel in FOLDER/vmlinuz and its version beside it, once.
vm_kernel() (
	[ ! -f "$1/vmlinuz" ] || return 0
	debs_open "$1" "$2" "$3"
	image=$(debs_depends "linux-image-cloud-$3" 'linux-image-[0-9]')
	# Newer ones keep the kernel itself in a package beside it.
	# shellcheck disable=SC2046
	debs_unpack "$image" $(debs_depends "$image" linux-binary-)
	echo "${image#linux-image-}" >version
	image=$(find tree -name 'vmlinuz*' -type f | head -1)
	[ -n "$image" ] || exit 1
	mv "$image" vmlinuz
	rm -rf tree
	debs_close
)

# vm_initrd FOLDER CHECK BUSYBOX: the first process in the machine, and what it runs, in FOLDER/initrd.
vm_initrd() {
	rm -rf "$1/root"
	mkdir -p "$1/root/bin"
	cp "$2" "$1/root/check"
	cp "$3" "$1/root/bin/busybox"
	echo "${SUITE:+export CK_RUN_SUITE=$SUITE}" >"$1/root/suite"
	cat >"$1/root/init" <<-'END_OF_INIT'
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
		mkdir -p /etc
		echo nobody:x:65534:65534::/:/bin/sh >/etc/passwd
		dmesg -c >/boot.log
		# Emulated, on a machine that has other work: patience
		export CK_TIMEOUT_MULTIPLIER=3 IOU_TEST_SLOW=1 CK_VERBOSITY=normal
		export CK_TAP_LOG_FILE_NAME=/dev/$(sed 's/.*console=\([^ ]*\).*/\1/' /proc/cmdline)
		. /suite

		# part DISABLED [COMMAND...]: some suites, by this command, on the fallback, with io_uring_disabled so.
		part() {
			how="$1 $(shift; "$@" /check engine)"
			shift
			for suite in ${CK_RUN_SUITE:-engine loop nested deadline post}; do
				CK_RUN_SUITE=$suite "$@" /check >/out
				counts=$(sed -n 's/.*Checks: \([0-9]*\), Failures: \([0-9]*\), Errors: \([0-9]*\).*/\1 \2 \3/p' /out)
				echo "IOU part $how $suite $counts"
				grep ':[FE]:' /out
			done
		}
		echo "IOU kernel $(uname -r)"
		/check >/out; status=$?; echo; cat /out; echo "IOU status $status"
		IOU_TEST_OWN_MACHINE=1 CK_RUN_SUITE=hostile CK_RUN_CASE=machine /check; echo "IOU machine status $?"
		unset CK_TAP_LOG_FILE_NAME
		sysctl=/proc/sys/kernel/io_uring_disabled
		part 0 env IOU_ENGINE=fallback
		if [ -e $sysctl ]; then
			echo 1 >$sysctl # to others than root
			part 1 su -s /bin/sh nobody -c 'exec "$0" "$@"'
			echo 2 >$sysctl
			part 2
			echo 0 >$sysctl
		fi
		for word in WARNING BUG Oops 'blocked for more' 'Call Trace' 'general protection' 'rcu.*stall' refcount after-free; do
			dmesg | grep "$word" | sed 's/^/IOU dmesg /'
		done
		echo "IOU end"
		poweroff -f
	END_OF_INIT
	chmod +x "$1/root/init"
	(cd "$1/root" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$1/initrd"
}

# vm_boot FOLDER INITRD CONSOLE QEMU [ARGUMENT...]: boot FOLDER's kernel. What the machine says goes to FOLDER/log.
vm_boot() {
	vm=$1 initrd=$2 console=$3
	shift 3
	timeout -k 5 "$LIMIT" "$@" -smp 2 -m 1536 -display none -no-reboot -nodefaults -serial "file:$vm/serial" \
		-monitor none -kernel "$vm/vmlinuz" -initrd "$initrd" \
		-append "console=$console quiet loglevel=1 panic=-1 mitigations=off random.trust_cpu=on" \
		</dev/null >"$vm/qemu" 2>&1
	tr -d '\r' <"$vm/serial" >"$vm/log"
}

# vm_tell NAME FOLDER SECONDS: one line of how it went, and more where it did not. Adds to passed, failed, skipped.
vm_tell() {
	name=$1 vm=$2 took=$3 log=$2/log
	# shellcheck disable=SC2046
	set -- $(sed -n 's/.*Checks: \([0-9]*\), Failures: \([0-9]*\), Errors: \([0-9]*\).*/\1 \2 \3/p' "$log" | head -1)
	n=${1:-0} bad=$((${2:-1} + ${3:-0})) skips=$(grep -ac '^SKIP' "$log") || true
	sed -n "s|^SKIP|SKIP $name|p" "$log" | sort -u
	[ "$n" != 0 ] || bad=1
	# The part that had to run on the fallback.
	# shellcheck disable=SC2046
	set -- $(sed -n 's/^IOU part //p' "$log" | awk '
		$2 == "fallback" && NF == 6 { n += $4; bad += $5 + $6; next }
		{ bad++ }
		END { print n + 0, bad + (NR == 0) }')
	n=$((n + $1)) bad=$((bad + $2))
	disabled=$(sed -n 's/^IOU part \([12]\) .*/\1/p' "$log" | sort -u | paste -sd,)
	grep -aq '^IOU machine status 0' "$log" || { echo "FAIL $name: hostile, machine"; bad=$((bad + 1)); }
	if grep -aq '^IOU dmesg' "$log"; then echo "FAIL $name: dmesg"; bad=$((bad + 1)); fi
	grep -aq '^IOU end' "$log" || { echo "FAIL $name: it did not come to its end"; bad=$((bad + 1)); }
	[ "$bad" = 0 ] || grep -aE '^not ok|:[FE]:|^IOU|panic' "$log" | sed "s/^/    $name: /"
	good=$((n > bad + skips ? n - bad - skips : 0))
	echo "kernel $(cat "$vm/version"): $good passed, $bad failed, $skips skipped, $took s; io_uring_disabled:" \
		"${disabled:-not there}"
	passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + skips))
}
