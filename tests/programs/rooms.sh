#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The rooms of iou.c and of iou_fallback.c (see the first comment of each). Fails if
#   - the rooms are not those of the first comment, in its order,
#   - a room touches a field of a type that another room keeps,
#   - a room writes a field of an op that is another room's (iou.c),
#   - a function is declared before it is defined, so that a room could call upward,
#   - a line of these files or of iou.h is beyond 100 columns.
# A type that other rooms may touch says so in the line above it, or in its own: "[open] ... reason".
set -u
cd "$(dirname "$0")/../.." || exit 1

rooms() { # FILE WHOLE, which is the type that all parts are members of
	LC_ALL=C awk -v whole="$2" '
function bad(what) { printf "%s:%d: %s\n", FILENAME, FNR, what; failed = 1 }
# Without comments and strings.
function code(line) {
	gsub(/"([^"\\]|\\.)*"/, "\"\"", line)
	gsub(/\/\*[^*]*\*\//, "", line)
	if (line ~ /^ ?\/?\*( |$|\/)/) line = ""
	sub(/\/\*.*/, "", line)
	return line
}
{
	wide = $0
	gsub(/[\200-\277]/, "", wide) # of a character of more than one byte, one is counted
	while (match(wide, /\t/))
		wide = substr(wide, 1, RSTART - 1) substr("        ", 1 + (RSTART - 1) % 8) \
			substr(wide, RSTART + 1)
	if (pass == 2 && length(wide) > 100) bad("beyond 100 columns")
}
FILENAME ~ /\.h$/ { next }
/^ \* ==== [a-z]+ =+$/ { room = $3; if (pass == 1) found = found " " room; next }
/\[open\]/ { open = FNR }
# First pass: the rooms that are named; which room keeps a type; of which type a member is, and by
# which it can be reached from another room: the whole, and open types.
pass == 1 && /^ \* Rooms/ { naming = 1 }
pass == 1 && naming { names = names " " substr($0, 4) }
/^ \*\/$/ { naming = 0 }
pass == 1 {
	if (match($0, /^(typedef )?struct [a-z_]+_t \{/)) {
		type = $0; sub(/^(typedef )?struct /, "", type); sub(/ .*/, "", type)
		inside = type == whole || (open && open >= FNR - 3)
		if (!inside && type != "node_t") keeper[type] = room
	} else if (/^}/) {
		inside = 0
	}
	text = code($0)
	if (inside && match(text, /^\t(struct )?[a-z_]+_t \**[a-z_]+/)) {
		split(substr(text, 2), part, /[ ;,]+/)
		reached[part[2]] = part[1]
	}
	next
}
{
	text = code($0)
	gsub(/[^a-z_]io->[a-z_.]+/, "", text) # struct io_uring has fields of the same names
}
text ~ /^}/ { split("", variable) }
text ~ /^static .*\);$/ { bad("declared before it is defined") }
{
	for (rest = text; match(rest, /[a-z_]+_t \**[a-z_]+/); rest = substr(rest, RSTART + RLENGTH)) {
		split(substr(rest, RSTART, RLENGTH), part, " ")
		name = part[2]; gsub(/\*/, "", name)
		if (part[1] in keeper) variable[name] = part[1]
	}
	for (rest = text; match(rest, /(->|\.)?[a-z_]+(->|\.)[a-z_]+/); rest = substr(rest, next_at)) {
		got = substr(rest, RSTART, RLENGTH)
		inner = match(got, /^(->|\.)/) ? RLENGTH : 0
		got = substr(got, inner + 1)
		next_at = index(rest, got)
		name = got; sub(/(->|\.).*/, "", name)
		next_at += length(name)
		type = inner ? reached[name] : variable[name]
		if (type in keeper && keeper[type] != room) bad(room " touches " got " of " keeper[type])
	}
	if (FILENAME == "iou.c" &&
	    match(text, /(^|[^a-z_])op->(timer|job|after_ns|heap_index|end)[a-z_.]* =[^=]/)) {
		got = substr(text, RSTART, RLENGTH)
		owner = got ~ /job/ ? "workers" : got ~ /end/ ? "op" : "timers"
		if (room != owner && !(room == "op" && got ~ /heap_index/)) bad(room " writes " got)
	}
}
END {
	for (; match(names, /: [a-z]+(, +[a-z]+)+/); names = substr(names, RSTART + RLENGTH))
		named = named substr(names, RSTART + 1, RLENGTH - 1)
	gsub(/, +/, " ", named)
	if (named != found) bad("the first comment names" named "; there are" found)
	exit failed
}
' pass=1 "$1" pass=2 "$1" iou.h
}

status=0
rooms iou.c iou_t || status=1
rooms iou_fallback.c engine_t || status=1
exit $status
