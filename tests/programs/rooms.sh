#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The rooms of iou.c (see its first comment). Fails if
#   - a room touches a field of a type that another room keeps,
#   - a room writes a field of an op that is another room's,
#   - a function is declared before it is defined, so that a room could call upward,
#   - a line of iou.c or iou.h is beyond 100 columns.
# A type that other rooms may touch says so in the line above it: "[open] ... reason".
set -u
cd "$(dirname "$0")/../.." || exit 1

LC_ALL=C awk '
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
	while (match(wide, /\t/))
		wide = substr(wide, 1, RSTART - 1) substr("        ", 1 + (RSTART - 1) % 8) \
			substr(wide, RSTART + 1)
	if (pass == 2 && length(wide) > 100) bad("beyond 100 columns")
}
FILENAME !~ /iou\.c$/ { next }
/^ \* ==== [a-z]+ =+$/ { room = $3; next }
/\[open\]/ { open = FNR }
# First pass: which room keeps a type; which one an op lends its fields to.
pass == 1 {
	if (match($0, /^(typedef )?struct [a-z_]+_t \{/)) {
		type = $0; sub(/^(typedef )?struct /, "", type); sub(/ .*/, "", type)
		if (type != "iou_t" && type != "node_t" && !(open && open >= FNR - 3)) keeper[type] = room
	}
	next
}
{ text = code($0) }
text ~ /^}/ { split("", variable) }
text ~ /^static .*\);$/ { bad("declared before it is defined") }
{
	for (rest = text; match(rest, /[a-z_]+_t \**[a-z_]+/); rest = substr(rest, RSTART + RLENGTH)) {
		split(substr(rest, RSTART, RLENGTH), part, " ")
		name = part[2]; gsub(/\*/, "", name)
		if (part[1] in keeper && room == "iou") member[name] = part[1]
		if (part[1] in keeper) variable[name] = part[1]
	}
	for (rest = text; match(rest, /(->|\.)?[a-z_]+(->|\.)[a-z_]+/); rest = substr(rest, next_at)) {
		got = substr(rest, RSTART, RLENGTH)
		inner = match(got, /^(->|\.)/) ? RLENGTH : 0
		got = substr(got, inner + 1)
		next_at = index(rest, got)
		name = got; sub(/(->|\.).*/, "", name)
		next_at += length(name)
		type = inner ? member[name] : variable[name]
		if (type in keeper && keeper[type] != room) bad(room " touches " got " of " keeper[type])
	}
	if (match(text, /(^|[^a-z_])op->(timer|job|after_ns|heap_index|end)[a-z_.]* =[^=]/)) {
		got = substr(text, RSTART, RLENGTH)
		owner = got ~ /job/ ? "workers" : got ~ /end/ ? "op" : "timers"
		if (room != owner && !(room == "op" && got ~ /heap_index/)) bad(room " writes " got)
	}
}
END { exit failed }
' pass=1 iou.c pass=2 iou.c iou.h
