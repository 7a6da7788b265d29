#!/bin/sh
# SPDX-License-Identifier: MIT
#
# examples/walk counts what find, du and cat | wc -l count: on odd, deep and wide trees, with few descriptors, little
# memory, and where not all can be read.
# Words are split on purpose, and every sh that we know has these limits.
# shellcheck disable=SC2086,SC3045
set -eu
find . -maxdepth 0 -printf '' 2>/dev/null || { echo "SKIP walk: no GNU find"; exit 77; }
dir=$(mktemp -d)
trap 'chmod -R u+rwx "$dir"; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
chmod 755 "$dir"
cp "$B/examples/walk" "$dir/walk" # where others may run it
walk=$dir/walk

fail() { echo "FAIL: $*"; exit 1; }

# No command of every system makes a socket.
${CC:-cc} -x c -o "$dir/bind" - <<-'END' || :
	#include <string.h>
	#include <sys/socket.h>
	#include <sys/un.h>

	int main(int argc, char **argv)
	{
		struct sockaddr_un addr = {.sun_family = AF_UNIX};

		strncpy(addr.sun_path, argv[argc - 1], sizeof(addr.sun_path) - 1);
		return bind(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&addr, sizeof(addr));
	}
END

# ---- Trees ---------------------------------------------------------------------------------------------

# comb NAME DEPTH: at each level a directory has two more beside it, so a walk has to come back to it.
comb() {
	awk -v name="$1" -v n="$2" 'BEGIN { for (; n > 0; n--) { p = p name "/"; print p "left/leaf"; print p "right" } }' |
		xargs mkdir -p
	awk -v name="$1" -v n="$2" 'BEGIN { for (; n > 0; n--) { p = p name "/"; print p "right/file" } }' |
		while read -r file; do echo "$file" >"$file"; done
}

# A path of 8,400 bytes.
make_deep() (
	for _ in 1 2 3; do
		comb directory-in-the-deep 133
		cd -P "$(awk 'BEGIN { for (i = 0; i < 133; i++) printf "directory-in-the-deep/" }')"
	done
)

# Subdirectories with names of 200 bytes: 4 MB of names. Some are deep, so that descriptors run short meanwhile.
make_wide() {
	name=$(printf '%0190d' 0)
	seq -f "$name-%.0f" 20000 | xargs mkdir
	seq -f 'file-%.0f' 20000 | xargs touch
	for i in 100 2000 6000 7000 12000 19000; do
		(cd "$name-$i" && comb d 40)
	done
}

make_odd() {
	seq 1000 >lines
	printf 'no end of line' >last
	: >empty
	seq 300000 >long # several chunks
	mkdir links elsewhere
	for i in 1 2 3 4 5; do ln lines "links/$i"; done
	ln links/1 elsewhere/again
	ln -s lines symlink
	ln symlink symlink-link
	ln -s . loop
	ln -s ../odd/loop links/loop
	ln -s none dangling
	truncate -s 100M sparse
	printf 'x\n' | dd of=sparse bs=1 seek=50M conv=notrunc 2>/dev/null
	mkfifo fifo
	"$dir/bind" socket 2>/dev/null || echo "SKIP walk on a socket: no socket can be made here"
	odd=$(printf 'a\nb\tc\\d \001\377')
	mkdir -- "$odd" ' ' '-l' '*'
	echo odd >"$odd/$odd"
	echo dash >./-n
	mkdir -p chain
	awk 'BEGIN { printf "chain"; for (i = 0; i < 1500; i++) printf "/c"; print "" }' | xargs mkdir -p
}

for tree in deep wide odd; do
	mkdir "$dir/$tree"
	cd "$dir/$tree"
	"make_$tree"
done
cd "$dir"

# ---- The same as find, du and wc -----------------------------------------------------------------------

# expect FIND_OPTION PATH: directories, files, symlinks, others, bytes, bytes on the disk.
expect() {
	find "$2" $1 -printf '%D:%i %y %s %b\n' | awk '
		{ n[$2 == "d" || $2 == "f" || $2 == "l" ? $2 : "o"]++ }
		!($1 in seen) { seen[$1]; size += $3; disk += $4 * 512 }
		END { printf "%d %d %d %d %.0f %.0f\n", n["d"], n["f"], n["l"], n["o"], size, disk }'
}

# got COLUMNS OPTION... PATH: the line of its PATH, or the last one.
got() {
	columns=$1
	shift
	"$walk" "$@" >"$dir/out" 2>"$dir/err" || fail "walk $*: status $?: $(head -5 "$dir/err")"
	[ ! -s "$dir/err" ] || fail "walk $*: said $(head -5 "$dir/err")"
	tail -n 1 "$dir/out" | awk -v n="$columns" '{ for (i = 1; i <= n; i++) printf "%s%s", $i, i < n ? " " : "\n" }'
}

same() { # WHAT, GOT, EXPECTED
	[ "$2" = "$3" ] || fail "$1: '$2', not '$3'"
}

# With few descriptors lanes are fewer, and directories have to be closed and opened again.
for tree in deep wide odd odd/lines odd/fifo odd/loop odd/loop/; do
	sizes=$(expect '' $tree)
	set -- $sizes
	same "du -sB1 and find on $tree" "$(du -sB1 $tree | cut -f1)" "$6"
	lines=$(find $tree -type f -execdir cat {} + | wc -l)
	same "$tree" "$(got 6 $tree)" "$sizes"
	same "$tree -n" "$(got 4 -n $tree)" "$1 $2 $3 $4"
	same "$tree -l" "$(got 7 -l $tree)" "$sizes $lines"
	same "$tree -nl" "$(got 5 -nl $tree)" "$1 $2 $3 $4 $lines"
	case $tree in */*) continue ;; esac
	for n in 64 20; do
		same "$tree, $n descriptors" "$(ulimit -n $n && got 6 $tree)" "$sizes"
		same "$tree -l, $n descriptors" "$(ulimit -n $n && got 7 -l $tree)" "$sizes $lines"
	done
	for j in 1 3; do
		same "$tree -l -j $j" "$(got 7 -l -j $j $tree)" "$sizes $lines"
	done
	same "$tree -j 16" "$(got 6 -j 16 $tree)" "$sizes"
done

# At full size: a directory of a million entries, and what others made.
if [ "${IOU_TEST_FULL:-}" = 1 ]; then
	mkdir million
	(cd million && seq -f 'file-%.0f' 999000 | xargs touch && seq -f 'directory-%.0f' 1000 | xargs mkdir)
	sizes=$(expect '' million)
	same "a million entries" "${sizes% * *}" "1001 999000 0 0"
	same "du -sB1 and find on million" "$(du -sB1 million | cut -f1)" "${sizes##* }"
	same "million" "$(got 6 million)" "$sizes"
	same "million -n" "$(got 4 -n million)" "1001 999000 0 0"
	same "million -l" "$(got 7 -l million)" "$sizes 0"
	same "million, 20 descriptors" "$(ulimit -n 20 && got 6 million)" "$sizes"
	rm -rf million

	if find /usr -type f ! -readable 2>&1 | grep -q .; then
		echo "SKIP walk on /usr: not all of it can be read"
	else
		for try in 1 2 3 4 5; do # others may change it meanwhile
			sizes=$(expect '' /usr) disk=$(du -sB1 /usr | cut -f1)
			lines=$(find /usr -type f -exec cat {} + | wc -l)
			by_walk="$(got 6 /usr), $(got 7 -l /usr)"
			[ "$sizes" != "$(expect '' /usr)" ] || break
		done
		same "du -sB1 and find on /usr, try $try" "$disk" "${sizes##* }"
		same "/usr, try $try" "$by_walk" "$sizes, $sizes $lines"
		echo "the same on /usr: $sizes, $lines lines"
	fi
fi

# Older ones count directories with -b, newer ones do not.
if [ "$(du -sb deep | cut -f1)" -gt "$(find deep ! -type d -printf '%s\n' | awk '{ n += $1 } END { print n }')" ]; then
	for tree in deep wide odd; do
		same "$tree, bytes" "$(got 6 $tree | cut -d' ' -f5)" "$(du -sb $tree | cut -f1)"
	done
fi

# No PATH is the directory we are in. Of several, each has its line, and what they share counts once in the total.
cd odd
same "no PATH" "$("$walk" | awk 'NR == 2 { print $1, $2 }')" "$(expect '' . | cut -d' ' -f1,2)"
same "a name like an option" "$("$walk" -- -l -n ./- 2>/dev/null | awk 'NR > 1 { print $1, $2 }' | tr '\n' ' ')" "1 0 0 1 1 1 "
got 6 links elsewhere lines >"$dir/total"
same "total" "$(cut -d' ' -f6 "$dir/total")" "$(du -scB1 links elsewhere lines | tail -n 1 | cut -f1)"
same "their lines" "$(awk 'NR > 1 { print $6, $7 }' "$dir/out" | head -n 3)" \
	"$(for path in links elsewhere lines; do du -sB1 $path; done | tr '\t' ' ')"
# Where one PATH lies in another, what they share is in both lines, and twice in the total.
got 4 -n . links >"$dir/total"
same "total of overlapping PATHs" "$(cat "$dir/total")" "$(awk 'NR == 2 || NR == 3 { for (i = 1; i < 5; i++) n[i] += $i }
	END { print n[1], n[2], n[3], n[4] }' "$dir/out")"
cd ..

# ---- One file system -----------------------------------------------------------------------------------

mkdir -p mounts/a/there mounts/b
: >mounts/b/bound
own= && [ "$(id -u)" = 0 ] || own=-r
if unshare $own -m mount -t tmpfs none mounts/a/there 2>/dev/null; then
	cat >x.sh <<-'END'
		mount -t tmpfs none mounts/a/there && mkdir -p mounts/a/there/x/y && echo text >mounts/a/there/file
		for option in '' -x -nx; do "$1" $option mounts | tail -n 1; done
		find mounts -xdev -printf '%y\n' | grep -c d
		du -xsB1 mounts
		mount --bind mounts/a/there/file mounts/b/bound && "$1" -x mounts | tail -n 1 && du -xsB1 mounts
	END
	unshare $own -m sh x.sh "$walk" >out || fail "-x: status $?"
	same "without -x, -x, -nx" "$(awk 'NR <= 3 { print $1, $2 }' out | tr '\n' ' ')" "6 2 4 1 4 1 "
	same "find -xdev" "$(sed -n 4p out)" 4
	same "du -x" "$(awk 'NR == 2 { print $6 }' out)" "$(sed -n 5p out | cut -f1)"
	same "du -x, with a file from elsewhere" "$(awk 'NR == 6 { print $6 }' out)" "$(sed -n 7p out | cut -f1)"
else
	echo "SKIP walk -x: no mounts here"
fi

# ---- What cannot be read -------------------------------------------------------------------------------

mkdir -p shut/in "shut/$odd/in" shut/blind/in shut/open
echo text | tee shut/open/file shut/open/closed shut/in/file >shut/blind/file
chmod 000 shut/in "shut/$odd" shut/open/closed
chmod 444 shut/blind # its names can be read, but nothing about them
as=
if [ "$(id -u)" = 0 ]; then
	as='setpriv --reuid=65534 --regid=65534 --clear-groups'
	chown -R 65534:65534 shut
fi
if ! $as "$walk" -q shut/open >/dev/null 2>&1; then
	echo "SKIP walk on what cannot be read: not as another user"
else
	unread() { # OPTION... : the sorted messages are in err
		status=0
		$as "$walk" "$@" >out 2>err.new || status=$?
		same "$* with unreadable parts: status" $status 1
		LC_ALL=C sort err.new >err
	}
	denied() { printf 'walk: %s: Permission denied\n' "$@"; }
	unread shut
	denied 'shut/a\nb\011c\\d \001'"$(printf '\377')" shut/blind/file shut/blind/in shut/in | LC_ALL=C sort >wanted
	cmp err wanted || fail "messages: $(cat err)"
	same "what can be read" "$(awk 'NR == 2 { print $1, $2, $3, $4 }' out)" "6 3 0 0"
	unread -l shut/
	{ cat wanted; denied shut/open/closed; } | LC_ALL=C sort >wanted.l
	cmp err wanted.l || fail "messages of -l: $(cat err)"
	same "lines that can be read" "$(awk 'NR == 2 { print $7 }' out)" 1
	unread none shut/open none/ odd/lines/
	same "messages of PATHs" "$(sed 's/.*: //' err | sort | uniq -c | tr -s ' \n' ' ')" \
		" 2 No such file or directory 1 Not a directory "
	same "the others" "$(awk 'NR > 1 { print $1, $2, $NF }' out | tr '\n' ' ')" "1 2 shut/open 1 2 total "
fi

# ---- Options, and a terminal ---------------------------------------------------------------------------

refused() { # WHAT IT SAYS FIRST, ARGUMENT...
	says=$1 status=0
	shift
	"$walk" "$@" >out 2>err || status=$?
	same "walk $*" "$status $(head -n 1 err) $(wc -c <out)" "2 $says 0"
}
for option in -z -j; do
	refused 'usage: walk [-j N] [-x] [-l] [-q] [-n] [PATH...]' $option
done
for number in 0 1x x 99999 -1 ''; do
	refused "walk: '$number' is not a number from 1 to 256" -j "$number"
done
"$walk" -h | grep -q '^usage: walk ' || fail "no help"
status=0
(ulimit -n 12 && exec "$walk" -l odd) >out 2>err || status=$?
same "12 descriptors" "$status $(cat err)" "1 walk: too few file descriptors: 12 have to be free (ulimit -n)"
status=0
"$walk" odd >/dev/full 2>err || status=$?
same "a full disk" "$status $(wc -l <err)" "1 1"
if script -qec true /dev/null >out 2>/dev/null </dev/null; then
	mkdir long # takes some time to read, but no memory
	for i in $(seq 30); do ln odd/sparse "long/$i"; done
	script -qec "$walk -l long" /dev/null >out </dev/null
	erase=$(printf '\033')'\[K'
	grep -q "directories, .* files$erase$(printf '\r')$erase" out || fail "no progress line that is erased at last"
	script -qec "$walk -lq long" /dev/null >out </dev/null
	! grep -q "$(printf '\033')" out || fail "a progress line with -q"
	for _ in 1 2 3; do # unless the machine is held up
		script -qec "$walk odd/links" /dev/null >out </dev/null
		! grep -q "$(printf '\033')" out || continue
		break
	done
	! grep -q "$(printf '\033')" out || fail "a progress line that flashes"
else
	echo "SKIP walk's progress line: no script"
fi

# ---- Memory: 4 MB of names are not kept ----------------------------------------------------------------

if [ -z "${SAN:-}" ]; then
	(ulimit -s 256 && ulimit -d 4000 && "$walk" -j 2 wide >out) || fail "4,000 KiB are too little for a wide tree"
fi
