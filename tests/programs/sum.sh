#!/bin/bash
# SPDX-License-Identifier: MIT
#
# examples/sum prints and checks what sha256sum does, byte for byte, whatever the files and their names are; in
# little memory, and with few descriptors.
# shellcheck disable=SC1003,SC2015,SC2016
set -u
sum=$B/examples/sum
[ -x "$sum" ] || { echo "SKIP sum: libcrypto was not there when it would have been built"; exit 77; }
command -v sha256sum >/dev/null || { echo "SKIP sum: no sha256sum to compare with"; exit 77; }
export LC_ALL=C
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
case $sum in /*) ;; *) sum=$PWD/$sum ;; esac
cd "$dir" || exit 1

fail() { echo "FAIL: $*"; exit 1; }

# Older sha256sums escape a name that they checked only for a newline in it; sum always does as the newer ones do.
newer() { cat; }
: >'a\b'
sha256sum 'a\b' >list
if [ "$(sha256sum -c list)" = 'a\b: OK' ]; then
	newer() { sed '/^\\/!{ s/\\/\\\\/g; s/\r/\\r/g; /\\/s/^/\\/; }'; }
fi

# same LABEL ARGUMENT...: output, status and warnings are those of sha256sum with the same arguments and standard
# input ($input); and there are as many lines of complaint.
input=/dev/null
same() {
	label=$1
	shift
	(exec sha256sum "$@") <"$input" >said 2>theirs.err
	theirs=$?
	newer <said >theirs
	(exec timeout 60 "$sum" "$@") <"$input" >ours 2>ours.err
	ours=$?
	cmp theirs ours || fail "$label: output"
	[ $ours = $theirs ] || fail "$label: status $ours, not $theirs"
	[ "$(wc -l <ours.err)" = "$(wc -l <theirs.err)" ] ||
		fail "$label: $(cat ours.err), where sha256sum says $(cat theirs.err)"
	[ "$(grep WARNING ours.err)" = "$(sed -n '/WARNING/s/^sha256//p' theirs.err)" ] || fail "$label: $(cat ours.err)"
	grep -qv '^sum: ' ours.err && fail "$label: $(cat ours.err)"
	echo "ok: $label"
}

# Sizes about those of its buffers and of the hash's blocks.
mkdir sizes
for size in 0 1 55 56 63 64 65 4095 4096 8191 8192 8193 262143 262144 262145 524287 524288 524289 786432 1000000; do
	head -c $size /dev/urandom >sizes/$size
done
same "sizes" sizes/*
same "one after the other" sizes/1 sizes/1 sizes/1000000 sizes/1000000 sizes/1

mkdir names
for name in plain 'with space' ' leading' 'trailing ' '*star' 'back\slash' 'back\\slashes' 'end\' \
	$'new\nline' $'two\n\nlines\n' $'bell\a' $'\xff\xfe' "quote'" '"double"' '#hash' '\' '$(id)' "$(printf '%0250d' 0)"; do
	printf '%s' "$name" >"names/$name"
done
same "odd names" names/*
cd names || exit 1
printf -- 'a dash' >./-c
same "names that look like options" -- -c '#hash' ./-
rm -f ./-c theirs* ours*
cd .. || exit 1

truncate -s 20M sparse
same "sparse" sparse
head -c 8M /dev/urandom >big
same "big and small" big sizes/1 big sizes/0
# What of a file is not in the page cache comes another way than what is: none of it, and all but the beginning.
sha256sum big sizes/* >expected
sync big sizes/*
for cached in 0 3; do # MiB
	for file in big sizes/*; do
		dd if="$file" of=/dev/null bs=1M skip=$cached iflag=nocache status=none
	done
	"$sum" big sizes/* | cmp expected - || fail "$cached MiB of a file in the page cache"
done
# On Linux 5.9 and 5.10 a read that may not wait can give 0 before the end.
cat >early.c <<-'END'
	#define _GNU_SOURCE
	#include <sys/uio.h>
	#include <unistd.h>
	ssize_t preadv2(int fd, const struct iovec *to, int n, off_t at, int flags)
	{
		(void)at, (void)flags;
		return lseek(fd, 0, SEEK_CUR) >= 1 << 20 ? 0 : readv(fd, to, n);
	}
END
if ! grep -aqE '__[at]san_init' "$sum" && ${CC:-cc} -shared -fPIC -o early.so early.c; then
	LD_PRELOAD=$PWD/early.so "$sum" big sizes/* | cmp expected - || fail "a read that ends too early"
fi
echo "ok: files not in the page cache"
same "directories, missing and unreadable" sizes/1 names nope sizes/2 "no such"$'\n'"name" sizes/55 '' nope
same "nothing but errors" nope names
same "proc" /proc/version /proc/sys/kernel/ostype
input=sizes/1000000
same "standard input"
same "standard input by name" -
same "standard input among others" sizes/1 - sizes/0
same "standard input again" - sizes/1 - -
input=/dev/null
same "empty standard input"
got=$( (sleep 0.1; printf a; sleep 0.1; printf b) | "$sum")
[ "$got" = "$(printf ab | sha256sum)" ] || fail "a slow pipe"
mkfifo fifo
(head -c 600000 big >fifo) &
got=$(timeout 20 "$sum" sizes/1 fifo | tail -1)
[ "$got" = "$(head -c 600000 big | sha256sum | sed 's/-$/fifo/')" ] || fail "a FIFO"
wait
# A line comes as soon as it is known.
exec 3< <(timeout 60 "$sum" sizes/1 fifo)
read -r -t 20 line <&3
printf x >fifo
[ "$line" = "$(sha256sum sizes/1)" ] || fail "the first line waits for the second"
read -r line <&3 && [ "$line" = "$(printf x | sha256sum | sed 's/-$/fifo/')" ] || fail "the second line: $line"
exec 3<&-
if [ "$(id -u)" = 0 ] && command -v su >/dev/null && cp "$sum" sum.copy && chmod 755 . sum.copy; then
	echo secret >secret
	chmod 600 secret
	su nobody -s /bin/sh -c "./sum.copy secret sizes/1" >ours 2>ours.err
	[ $? = 1 ] || fail "unreadable: status"
	sha256sum sizes/1 | cmp - ours || fail "unreadable: output"
	[ "$(cat ours.err)" = "sum: secret: Permission denied" ] || fail "unreadable: $(cat ours.err)"
fi

# Messages do to a terminal what a line does.
"$sum" $'no\e[1m\n\\such\x7f' >ours 2>ours.err && fail "no such file"
[ "$(cat ours.err)" = 'sum: no\033[1m\n\\such\177: No such file or directory' ] || fail "message: $(cat ours.err)"

# Output that cannot be written, input that is not there.
"$sum" sizes/1 >/dev/full 2>ours.err && fail "a full disk goes unnoticed"
"$sum" sizes/1 >&- 2>ours.err && fail "closed output goes unnoticed"
timeout 20 "$sum" <&- 2>ours.err
[ $? = 1 ] && [ "$(cat ours.err)" = "sum: -: Bad file descriptor" ] || fail "closed input: $(cat ours.err)"

# Many files, more than the window and the descriptors; a long one first, so that the others wait for their line.
mkdir many
seq 3000 | (cd many && split -l 1 -a 4)
set -- big many/*
sha256sum "$@" >theirs
"$sum" "$@" | cmp - theirs || fail "many files"
(ulimit -n 64; "$sum" "$@") | cmp - theirs || fail "many files, 64 descriptors"
(ulimit -n 9; "$sum" "$@") | cmp - theirs || fail "many files, 9 descriptors"
(ulimit -n 9; "$sum" big big big big big big big big sizes/*) >ours || fail "large files, 9 descriptors"
sha256sum big big big big big big big big sizes/* | cmp - ours || fail "large files, 9 descriptors"
echo "ok: many files"

# Memory: large files, and 20 MB of names, with 36 MB of address space in all (sanitizers need more).
truncate -s 300M sparse
if ! grep -q -e __asan_init -e __tsan_init "$sum"; then
	export MALLOC_ARENA_MAX=1
	(ulimit -v 36000; exec "$sum" sparse sizes/1 sparse big) >ours || fail "no memory for large files"
	sha256sum "names/$(printf '%0250d' 0)" | awk '{ for (i = 0; i < 60000; i++) print }' >list
	(ulimit -v 36000; exec "$sum" -c list) >ours || fail "no memory for a long list"
	[ "$(grep -c ': OK$' ours)" = 60000 ] || fail "a long list"
	echo "ok: memory"
	unset MALLOC_ARENA_MAX
fi
truncate -s 1M sparse

# Lists.
sha256sum sizes/* names/* big >list
same "a good list" -c list
input=list
same "a good list on standard input" -c
same "the same by name" -c -
input=/dev/null
same "two lists" -c list list
hash=$(sha256sum <sizes/0 | cut -c1-64)
sed '3s/^\(\\*\).\(.*\)/\1f\2/; 5s/^\(\\*\).\(.*\)/\1f\2/' list >bad
cmp -s list bad && sed -i '3s/^\(\\*\).\(.*\)/\10\2/' bad
same "a bad list" -c bad
{
	cat list
	echo "# a comment"
	echo
	echo "not a sum"
	echo "$hash  nope"
	echo "$hash  names"
	echo "${hash%?}  sizes/0"
	echo "${hash%?}x  sizes/0"
	echo "$hash *sizes/0"
	echo "  $hash  sizes/0"
	echo "$hash" | tr a-f A-F | sed 's,$,  sizes/0,'
	printf '%s  sizes/0\r\n' "$hash"
	printf '\\%s  names/back\\\\slash\n' "$hash"
	printf '\\%s  names/back\\slash\n' "$hash"
	printf '\\%s  names/end\\\n' "$hash"
	printf '%s  sizes/0' "$hash"
} >mixed
same "a mixed list" -c mixed
same "a bad list between good ones" -c list mixed list
sha256sum --tag sizes/* names/* big >tagged
same "a list of sha256sum --tag" -c tagged
{
	sed '3s/= ./= x/; 5s/= /=/; 6s/ = /=/; 7s/ (/(/; 8s/ (/  (/; 9s/)//; 10s/(//; 11s/$/ /; 12s/.$//; 13s/^/\\/' tagged
	sed 's/^/ /; s/SHA256/SHA512/' tagged
	sed 's/ = / = 0/' tagged
	echo "SHA256"
	echo "SHA256 ("
	echo "SHA256 () = $hash"
	echo "SHA256 (sizes/0) = $hash"
	echo "SHA256 (nope (really)) = $hash"
	echo "  SHA256 (sizes/0)	=	$hash"
} >tagged.bad
same "a bad list of sha256sum --tag" -c tagged.bad
sed 's/  / /' list >old
same "a list with one space" -c old
same "then one with two" -c old list
same "the other way round" -c list old
cat old list >both
same "both in one list" -c both
{ echo "$hash	sizes/0"; echo "$hash sizes/0"; echo "$hash	 sizes/0"; } >with-tabs
same "tabs" -c with-tabs
same "no list" -c nope
same "a folder as list" -c names
same "no lists in lists" -c sizes/1000000 list sizes/0
echo "$hash  nope" >missing
same "nothing but missing files" -c missing
printf '%s  -\n' "$hash" >dash
same "standard input in a list" -c dash
input=dash
same "a list on standard input that names it" -c
input=/dev/null
"$sum" sizes/* names/* >ours && sha256sum --quiet -c ours || fail "sha256sum does not take what sum prints"
"$sum" -x >ours 2>ours.err
[ $? = 2 ] && [ ! -s ours ] && grep -q '^usage: sum ' ours.err || fail "usage"
"$sum" -h | grep -q '^usage: sum ' || fail "no help"
