#!/bin/sh
# SPDX-License-Identifier: MIT
#
# README.md keeps its word: the code under "<!-- file: NAME -->" is that file's, every other C block compiles
# without a warning, and the make targets, files and functions that it names are there.
# shellcheck disable=SC2013,SC2015
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0
fail() { echo "FAIL: $*"; failed=1; }

# Blocks go to $dir/N.c, the file that one copies to $dir/N.file.
awk -v dir="$dir" '
	/^<!-- file: / { file = $3 }
	/^```c$/ { n++; inside = 1; if (file) print file > (dir "/" n ".file"); file = ""; next }
	/^```$/ { inside = 0 }
	inside { print > (dir "/" n ".c") }
' README.md

n=0 n_files=0
for block in "$dir"/*.c; do
	n=$((n + 1))
	copied=${block%.c}.file
	if [ -e "$copied" ]; then
		n_files=$((n_files + 1))
		diff "$block" "$(cat "$copied")" || fail "README.md differs from $(cat "$copied")"
		continue
	fi
	{
		printf '#include <%s.h>\n' stdatomic stdbool stdlib string sys/socket unistd
		echo '#include "iou.h"'
		cat "$block"
	} >"$block.c"
	${CC:-cc} -std=gnu11 -I. -Wall -Wextra -Wno-unused-function -Werror -O2 -c -o /dev/null "$block.c" || {
		cat "$block"
		fail "README.md's block $n does not compile"
	}
done
[ "$n_files" -ge 1 ] && [ "$n" -ge 10 ] || fail "only $n blocks and $n_files files found"

grep -nE 'return .*(puts|printf)\(' README.md && fail "a full disk would end the loop"
for state in prepared backlog io-wq multishot zero-copy 'completed, not' 'last callback' 'job, running' 'periodic timer'; do
	grep -q "^| .*$state.* | .* | " README.md || fail "what does cancelling give: $state?"
done

# Words in code marks and in indented commands.
for target in $(grep -o 'make [a-z][a-z -]*' README.md Makefile | sed 's/^[^:]*:make //' | tr ' ' '\n' | sort -u); do
	case $target in
	all | check* | deps* | demo | bench | clean* | dist | install | uninstall | coverage) ;;
	*) continue ;; # a word after the last target
	esac
	grep -Eqs "^([a-z-]+ )*$target( [a-z-]+)*:" Makefile install.mk tests/proof/proof.mk bench/bench.mk ||
		[ "${target#deps}" != "$target" ] || fail "no make target $target"
done
for name in $(grep -Eo '\b(examples|tests|bench)/[a-z_./]+[a-z]' README.md | sort -u); do
	[ -e "$name" ] || [ -e "$name.c" ] || fail "no file $name"
done
for name in $(grep -Eo '\biou_[a-z_]+[a-z]' README.md | sort -u); do
	grep -Eq "\b$name\b" iou.h || fail "no $name in iou.h"
done
exit $failed
