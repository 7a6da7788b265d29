#!/bin/sh
# SPDX-License-Identifier: MIT
#
# README.md and docs/*.md keep their word. It fails if
#   - C code in them does not compile without a warning, or a program among it does not run,
#   - a relative link, or the heading that it names, does not exist,
#   - a make target, a file or an iou_ function that they name does not exist.
#
# A program is a block of C with a main(). It is compiled alone, beside iou.c and iou_fallback.c. It
# runs on both engines, without input, in the top folder, and must end with status 0 in 10 s. Other
# blocks are compiled only, after some headers that most programs have. Lines directly above a block
# say more:
#
#     <!-- file: NAME -->    the block is this file, which has tests of its own: it only compares
#     <!-- run: ARGS -->     the program's arguments
#     <!-- prints -->        the ```text block after this one is what the program prints
#     <!-- signal: NAME -->  it gets this signal once it has printed something, then ends
#     <!-- echo: ARGS -->    it serves TCP at the port that replaces PORT in ARGS, and sends back
#                            the lines that it receives; then it is killed
#     <!-- no run -->        it is compiled and linked only
#
# Code has a fence: ```c, or ```sh, ```text and others, which are not compiled.
#
# Words are split on purpose.
# shellcheck disable=SC2012,SC2013,SC2015,SC2016,SC2046,SC2086,SC2094
set -eu
export LC_ALL=C
: "${CC:=cc}" "${PKG_CONFIG:=pkg-config}"
dir=$(mktemp -d) pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null; rm -rf "$dir"' EXIT
failed=0
fail() { echo "FAIL: $*"; failed=1; }

pages=$(ls README.md docs/*.md)
# ---- Blocks: N.c; what the lines above it say in N.file, N.run, ...; where it is in N.at ----------
mkdir "$dir/blocks"
awk -v dir="$dir/blocks/" '
function bad(what) { printf "FAIL: %s:%d: %s\n", FILENAME, FNR, what; failed = 1 }
function put(kind, what) { print what > (dir n "." kind); close(dir n "." kind) }
function forget(  kind) {
	for (kind in said) { bad("<!-- " kind " --> stands above no C code"); delete said[kind] }
}
FNR == 1 && inside { bad("the page before this one ends within a block"); inside = 0; code = "" }
/^<!-- (file|run|signal|echo): .* -->$/ {
	kind = $2; sub(/:/, "", kind); text = $0
	sub(/^<!-- [a-z]+: */, "", text); sub(/ *-->$/, "", text); said[kind] = text
	next
}
/^<!-- (no run|prints) -->$/ { said[$2] = ""; next }
/^[ \t]*(```|~~~)/ && !inside {
	inside = 1; language = $0
	if (language == "```c") {
		n++
		code = dir n ".c"
		put("at", FILENAME ":" FNR)
		for (kind in said) { put(kind, said[kind]); delete said[kind] }
		printf "" > code
		next
	}
	forget()
	if (language !~ /^```(text|sh|console|make|meson|diff|json)$/)
		bad("a block begins with ```c, ```sh or ```text, not with " language)
	if (language == "```text" && last_prints) { code = dir n ".out"; printf "" > code; last_prints = 0 }
	next
}
/^```$/ && inside {
	if (code ~ /\.c$/) { close(code); last_prints = (getline line < (dir n ".prints")) >= 0 ? n : 0 }
	inside = 0; code = ""
	next
}
inside { if (code) print > code; next }
/[^ \t]/ { forget() }
/^(    |\t).*(\);|[{])$/ { bad("C code without a fence is not compiled") }
END { if (inside) bad("a block has no end"); forget(); exit failed }
' $pages || failed=1

flags="-I. -pthread $($PKG_CONFIG --cflags liburing 2>/dev/null || true)"
libs=$($PKG_CONFIG --libs liburing 2>/dev/null || echo -luring)
for part in iou iou_fallback; do
	$CC $flags -O1 -c -o "$dir/$part.o" $part.c || fail "$part.c does not compile"
done
engines='ring fallback'
[ -z "${REFUSED:-}" ] || { engines=fallback; echo "SKIP docs: programs on io_uring: $REFUSED"; }

# Two clients at once, in the shell that knows how.
cat >"$dir/client" <<'END'
reach() { exec 3<>"/dev/tcp/127.0.0.1/$1" && exec 4<>"/dev/tcp/127.0.0.1/$1"; }
for i in {1..50}; do reach "$1" 2>/dev/null && break || sleep 0.1; done
for line in one "two 2" three; do
	echo "$line" >&3 && echo "$line" >&4 && IFS= read -r -t 5 third <&3 &&
		IFS= read -r -t 5 fourth <&4 && [ "$third.$fourth" = "$line.$line" ] || exit 1
done
END

# A shell starts what is in the background with SIGINT ignored, and newer timeouts leave it so.
plain=$(env --default-signal=INT true 2>/dev/null && echo 'env --default-signal=INT') || plain=

# run_one PROGRAM: on engine $IOU_ENGINE. The output goes to PROGRAM.stdout and PROGRAM.stderr.
run_one() {
	arguments=$(cat "$1.run" "$1.echo" 2>/dev/null) port='' want=0 status=0
	if [ -e "$1.echo" ]; then
		n_ports=$((n_ports + 1)) want=143
		port=$((20000 + ($$ + n_ports * 37) % 10000))
		arguments=$(echo "$arguments" | sed "s/PORT/$port/")
	fi
	rm -f "$1.stdout" # what it has printed is looked for below
	$plain timeout --foreground -k 1 10 "$1" $arguments </dev/null >"$1.stdout" 2>"$1.stderr" &
	pid=$!
	if [ "$port" ]; then
		bash "$dir/client" "$port" || status=client
		kill -TERM $pid 2>/dev/null || true
	elif [ -e "$1.signal" ]; then
		for _ in $(seq 50); do [ -s "$1.stdout" ] && break || sleep 0.1; done
		kill -"$(cat "$1.signal")" $pid || true
	fi
	end=0
	{ wait $pid || end=$?; } 2>/dev/null
	[ "$status" = client ] || status=$end
	pid=
	[ "$status" = $want ]
}

n=0 n_run=0 n_ports=0
for code in $(ls "$dir"/blocks/*.c | sort -V); do
	n=$((n + 1)) block=${code%.c}
	at=$(cat "$block.at")
	if [ -e "$block.file" ]; then
		diff "$code" "$(cat "$block.file")" || fail "$at differs from $(cat "$block.file")"
		continue
	fi
	program=$(grep -c '^int main(' "$code") || program=0
	{
		[ "$program" != 0 ] || printf '#include <%s.h>\n' stdatomic stdbool stdlib string sys/socket unistd iou
		echo "#line $((${at#*:} + 1)) \"${at%:*}\""
		cat "$code"
	} >"$block.full.c"
	if [ "$program" = 0 ]; then
		$CC $flags -std=gnu11 -Wall -Wextra -Wno-unused-function -Werror -O2 -c -o /dev/null "$block.full.c" ||
			fail "$at does not compile"
		continue
	fi
	$CC $flags -Wall -Wextra -Werror -O1 -o "$block" "$block.full.c" "$dir/iou.o" "$dir/iou_fallback.o" $libs || {
		fail "$at does not compile"
		continue
	}
	[ ! -e "$block.no" ] || continue
	if [ -e "$block.echo" ] && ! command -v bash >/dev/null; then
		echo "SKIP docs: $at: no bash to talk to it"
		continue
	fi
	n_run=$((n_run + 1))
	for IOU_ENGINE in $engines; do
		export IOU_ENGINE
		# Somebody else may have the port of a server.
		run_one "$block" || { [ -e "$block.echo" ] && run_one "$block"; } || {
			cat "$block.stdout" "$block.stderr"
			fail "$at: status $status on $IOU_ENGINE"
		}
		[ ! -e "$block.out" ] || diff "$block.out" "$block.stdout" || fail "$at prints something else on $IOU_ENGINE"
	done
	[ -e "$block.out" ] || [ ! -e "$block.prints" ] || fail "$at: no text block after it"
done
[ "$n" -ge 20 ] && [ "$n_run" -ge 18 ] || fail "only $n blocks and $n_run programs found"

# ---- Links and headings ---------------------------------------------------------------------------
# What is not code, a paragraph a line: "LINE TEXT".
prose_of() {
	awk '
	function flush() { if (text != "") print at, text; text = "" }
	/^[ \t]*(```|~~~)/ { inside = !inside; flush(); next }
	inside { next }
	/^[ \t]*$/ { flush(); next }
	/^(#|[ \t]*([-*|]|[0-9]+\.) )/ { flush() }
	{ if (text == "") at = FNR; sub(/^[ \t]+/, ""); text = text " " $0 }
	END { flush() }
	' "$1"
}

# The anchors that GitHub gives to the headings: lower case, no punctuation, "-" for a space, a number for the second one.
anchors_of() {
	awk '
	/^[ \t]*(```|~~~)/ { inside = !inside }
	!inside && /^#+ / {
		sub(/^#+ +/, ""); sub(/ +#* *$/, "")
		while (match($0, /\]\([^)]*\)/)) $0 = substr($0, 1, RSTART - 1) substr($0, RSTART + RLENGTH)
		gsub(/[!-,.\/:-@\[-^`{-~]/, ""); gsub(/ /, "-")
		$0 = tolower($0)
		print $0 (seen[$0]++ ? "-" seen[$0] - 1 : "")
	}
	' "$1"
}

for page in $pages; do
	prose_of "$page" | awk '{
		at = $1
		gsub(/`[^`]*`/, "")
		for (rest = $0; match(rest, /\]\([^)]*\)/); rest = substr(rest, RSTART + RLENGTH)) {
			link = substr(rest, RSTART + 2, RLENGTH - 3); sub(/ +"[^"]*"$/, "", link)
			print at, link
		}
		if ($2 ~ /^\[[^]]*\]:$/) print at, $3
	}' >"$dir/links"
	while read -r line link; do
		case $link in http://* | https://* | mailto:*) continue ;; esac
		file=${link%%#*} anchor=
		case $link in *#*) anchor=${link#*#} ;; esac
		if [ "$file" ]; then
			file=$(dirname "$page")/$file
			while case $file in ./* | */../*) ;; *) false ;; esac; do
				file=$(echo "$file" | sed -E 's|^\./||; s|(^\|/)[^/.][^/]*/\.\./|\1|')
				case $file in ../* | /*) break ;; esac
			done
		else
			file=$page
		fi
		[ "$link" ] && [ -e "$file" ] || { fail "$page:$line: no $link"; continue; }
		[ -z "$anchor" ] || anchors_of "$file" | grep -qxF -e "$anchor" || fail "$page:$line: no heading for $link"
	done <"$dir/links"
done

# ---- Names ----------------------------------------------------------------------------------------
# Code that is not C: spans in the prose, indented lines, blocks.
code_of() {
	prose_of "$1" | grep -o '`[^`]*`' | tr -d '`' || true
	awk '
	/^[ \t]*```/ { inside = !inside; c = $0 == "```c"; next }
	inside ? !c : /^(    |\t)/ { sub(/^[ \t]+/, ""); print }
	' "$1"
}

is_target() {
	case $1 in deps*) grep -q "^$1|" .ci/deps && return ;; esac
	grep -Eqs "^([a-z-]+ )*$1( [a-z-]+)*:" Makefile install.mk tests/proof/proof.mk bench/bench.mk
}
targets_of() { # the words after make that are no options, variables or comments
	sed -E "s/ #.*//; s/[A-Za-z_]+=(\"[^\"]*\"|'[^']*')//g; s/ -[fC] +[^ ]+//g" |
		grep -oE '(^|[$&;] ?|sudo |^([A-Z_]+=[^ ]* )+)make [^&|;]*' | sed 's/.*make //' | tr ' ' '\n' |
		grep -E '^[a-z][a-z-]*$' || true
}
for target in $(grep -o 'make [a-z][a-z -]*' Makefile | sed 's/^[^:]*make //' | tr ' ' '\n' | sort -u); do
	case $target in
	all | check* | deps* | demo | bench | clean* | dist | install | uninstall | coverage) ;;
	*) continue ;; # a word after the last target
	esac
	is_target "$target" || fail "Makefile: no make target $target"
done

for page in $pages; do
	code_of "$page" >"$dir/code"
	for target in $(targets_of <"$dir/code" | sort -u); do
		is_target "$target" || fail "$page: no make target $target"
	done
	for name in $(grep -Eo '\b(examples|tests|bench|docs|man|\.ci)/[A-Za-z0-9_./-]*[A-Za-z0-9]' "$page" | sort -u); do
		[ -e "$name" ] || [ -e "$name.c" ] || fail "$page: no file $name"
	done
	# A name alone is one of ours, unless the page compiles it: cc tool.c
	for name in $(grep -Ex '[A-Za-z0-9_-]+\.(c|h|md|sh|mk|pml|S)' "$dir/code" | sort -u); do
		grep -Eq "(cc|gcc|clang|-o [a-z]+) ([a-z_]+\.c )*$name" "$dir/code" && continue
		[ "$name" != liburing.h ] || continue
		[ "$(ls -d "$name" docs/"$name" tests/"$name" tests/*/"$name" examples/"$name" bench/"$name" 2>/dev/null)" ] ||
			fail "$page: no file $name"
	done
	for name in $(grep -Eo '\biou_[a-z_]*[a-z](_?\*)?' "$page" | sort -u); do
		case $name in
		*\*) grep -Eq "\b${name%\*}" iou.h ;;
		*) grep -Eq "\b$name\b" iou.h ;;
		esac || [ -e "$name.c" ] || fail "$page: no $name in iou.h"
	done
done

# Tests that they name: `SUITE: NAME`, or only the name.
for name in $(grep -hoE '`([a-z]+: )?[a-z]+_[a-z]+_[a-z_]+`' docs/hazards.md tests/README.md | sed 's/^.*[: ]//; s/`//g' | sort -u); do
	grep -rqw "$name" tests/*.c tests/proof tests/sim iou.h iou.c iou_fallback.c || fail "no test $name"
done

grep -nE 'return .*(puts|printf)\(' $pages && fail "a full disk would end the loop"
for state in prepared backlog io-wq multishot zero-copy 'completed, its' 'last callback' 'job that runs' 'periodic timer'; do
	grep -q "^| .*$state.* | .* | " docs/cancelling.md || fail "what does cancelling give: $state?"
done
echo "$n blocks of C, $n_run of them run"
exit $failed
