# SPDX-License-Identifier: MIT
#
# Makes the manual pages from iou.h, so that they say what the header says:
#
#   awk -v page=iou_ops.3 -f man/make.awk iou.h man/iou.7.in    a page, in mdoc(7)
#   awk -v page=iou.7 -f man/make.awk iou.h man/iou.7.in        the overview, with parts of iou.h
#   awk -v list=1 -f man/make.awk iou.h                         a line "FUNCTION PAGE" for each
#
# A section of the header ("Ops") is a page (iou_ops.3). In a section, a comment and the
# declarations right below it are an item; a comment without any is text. In a comment:
#
#   text at the margin            a paragraph
#   "  - text", "  1. text"       lists
#   "  name   text"               a list of names; from column 20 on: the head of a table
#   "    code"                    code, after an empty line
#   "Errors: EINVAL (why), ..."   at the end of a paragraph: goes to ERRORS
#   "[loop thread]"               last: which threads may call it
#
# Anything else is an error here and fails the build. Works with each awk: mawk, gawk, busybox, BWK.

BEGIN {
	section_is("Life", "iou_life", "make, end and set up an iou")
	section_is("Engines", "iou_engines", "the engines that run the ops: io_uring and the fallback")
	section_is("Ops", "iou_ops", "operations, jobs, timers, deadlines and cancelling")
	section_is("The loop", "iou_loop", "run callbacks")
	section_is("From other threads", "iou_threads", "posts and bottom halves")
	section_is("Looking inside", "iou_inspect", "counters, pending ops and the version")
	home["iou_t"] = "Life" # types that stand above the first section
	home["iou_op_t"] = "Ops"

	usual["EEXIST"] = "a thread that does not own the iou calls it, or a child after fork(2)"
	usual["EINVAL"] = "a pointer that is needed is NULL, or a value is not valid"
	usual["EMFILE"] = "the process has too many open descriptors"
	usual["ENFILE"] = "the system has too many open files"
	usual["ENOMEM"] = "there is not enough memory"

	sentence["loop thread"] = "Call % on the loop's thread."
	sentence["loop thread, or as said"] = "Call % on the loop's thread, or as said."
	sentence["loop thread, or the op's own job"] = \
		"Call % on the loop's thread, or in the op's own job."
	sentence["any thread"] = "Any thread may call %."
	sentence["any thread, signal handlers"] = "Any thread may call %, and signal handlers."
}

function section_is(title, name, about) {
	n_sections++
	titles[n_sections] = title
	page_of[title] = name
	about_of[title] = about
}

function fail(where, what) {
	printf "man/make.awk: iou.h:%d: %s\n", where, what >"/dev/stderr"
	failed = 1
	exit 1
}

# ---- Read iou.h: items, each with the lines of its comment and its declarations ------------------
FILENAME != "iou.h" { template[++n_template] = $0; next }

/^#define IOU_VERSION_/ { version = version (version == "" ? "" : ".") $3 }

in_backend { # what engines read
	if (/^#endif/) in_backend = 0
	next
}
/^#ifdef IOU_BACKEND/ { item_end(); in_backend = 1; next }
/^#/ || /^extern "C" \{/ || /^}$/ {
	if (n_lines && section != "") fail(FNR, "a comment above something that is no declaration")
	n_lines = 0
	item_end()
	next
}

/^\/\* ---- / {
	item_end()
	section = $0
	gsub(/^\/\* -+ | -+ \*\/$/, "", section)
	if (!(section in page_of)) fail(FNR, "no page for the section \"" section "\"")
	next
}
in_comment {
	if (/^ \*\/$/) { in_comment = 0; n_comments++; next }
	if (!/^ \*( |$)/) fail(FNR, "a line of a comment that does not begin with \" * \"")
	lines[++n_lines] = substr($0, 4)
	next
}
/^\/\*/ {
	if (n_decls) item_end()
	first_line = first_line ? first_line : FNR
	if (/\*\/$/) {
		lines[++n_lines] = substr($0, 4, length($0) - 6)
		n_comments++
	} else if ($0 == "/*")
		in_comment = 1
	else
		fail(FNR, "a comment that begins with text and goes on")
	next
}
/^$/ && !depth { item_end(); next }
{
	if (!depth && !open_decl) {
		decls[++n_decls] = ""
		open_decl = 1
	}
	first_line = first_line ? first_line : FNR
	decls[n_decls] = decls[n_decls] (decls[n_decls] == "" ? "" : "\n") $0
	code = $0
	gsub(/\/\*.*\*\//, "", code)
	sub(/[ \t]+$/, "", code)
	depth += gsub(/\{/, "{", code) - gsub(/}/, "}", code)
	if (!depth && code ~ /;$/) open_decl = 0
}

# An item is complete. The first one with several lines is the introduction.
function item_end(	i, name, where) {
	if (!n_lines && !n_decls) { first_line = 0; return }
	where = section
	if (where == "" && n_decls) {
		name = type_name(decls[1])
		if (!(name in home)) fail(first_line, "no page for " name)
		where = home[name]
	} else if (where == "")
		where = n_lines > 1 && !n_intro++ ? "intro" : "none"
	n_items++
	item_section[n_items] = where
	item_line[n_items] = first_line
	item_lines[n_items] = n_lines
	item_decls[n_items] = n_decls
	for (i = 1; i <= n_lines; i++) item_text[n_items, i] = lines[i]
	for (i = 1; i <= n_decls; i++) {
		item_decl[n_items, i] = decls[i]
		if (decls[i] ~ /^IOU_API/) {
			name = function_name(decls[i])
			n_functions++
			functions[n_functions] = name
			function_page[name] = page_of[where]
		}
	}
	n_lines = n_decls = first_line = 0
}

function function_name(decl) {
	if (!match(decl, /iou_[a-z0-9_]+\(/)) fail(FNR, "a function without a name: " decl)
	return substr(decl, RSTART, RLENGTH - 1)
}

function type_name(decl) {
	if (!match(decl, /(struct|enum) iou_[a-z0-9_]+/)) fail(FNR, "neither function nor type: " decl)
	decl = substr(decl, RSTART, RLENGTH)
	sub(/.* /, "", decl)
	return decl
}

# ---- Words: mdoc lines from a paragraph; a sentence begins a line ----------------------------
function line_end() {
	if (line != "") {
		if (line ~ /^[.']/) line = "\\&" line
		print line
	}
	line = ""
}

function escape(word) {
	gsub(/\\/, "\\e", word)
	gsub(/->/, "\\->", word)
	if (word ~ /^[("]*-/) sub(/-/, "\\-", word)
	return word
}

# A word that ends in marks: the marks apart, as mdoc wants them.
function marks(tail,	i, out) {
	for (i = 1; i <= length(tail); i++) out = out " " substr(tail, i, 1)
	gsub(/"/, "\\\\(dq", out)
	return out
}

function put_macro(before, macro, name, after) {
	line_end()
	if (before == "\"") before = "\\(dq"
	print "." (before == "" ? "" : "Pf " before " ") macro " " name marks(after)
}

function put_word(word,	before, core, tail, name) {
	before = ""
	core = word
	if (match(core, /^[("]/)) { before = substr(core, 1, 1); core = substr(core, 2) }
	if (match(core, /^[a-z_][a-z0-9_]*\([1-9]?\)/)) {
		name = substr(core, 1, index(core, "(") - 1)
		tail = substr(core, RLENGTH + 1)
		if (tail ~ /^[.,;:?!)"]*$/) {
			if (substr(core, RLENGTH - 1, 1) ~ /[1-9]/)
				put_macro(before, "Xr", name " " substr(core, RLENGTH - 1, 1), tail)
			else if (name in function_page && function_page[name] != this_page)
				put_macro(before, "Xr", name " 3", tail)
			else if (name !~ /^iou_/ || name in function_page)
				put_macro(before, "Fn", name, tail)
			else
				fail(item_line[item], "no function " name "()")
			return
		}
	}
	if (match(core, /^`[^`]+`/)) {
		put_macro(before, "Va", substr(core, 2, RLENGTH - 2), substr(core, RLENGTH + 1))
		return
	}
	word = escape(word)
	if (line != "" && length(line) + 1 + length(word) > 78) line_end()
	line = line (line == "" ? "" : " ") word
	if (word ~ /[.?!][)"]*$/) line_end()
}

function instead(text, old, new,	at) {
	at = index(text, old)
	return at ? substr(text, 1, at - 1) new substr(text, at + length(old)) : text
}

# The sections and headings that a text of the header names are on other pages.
function refer(text,	i) {
	for (i = 1; i <= n_sections; i++)
		text = instead(text, "\"" titles[i] "\" below", page_of[titles[i]] "(3)")
	if (this_page != "iou")
		for (i = 1; i <= n_headings; i++)
			text = instead(text, "\"" headings[i] "\"", "\"" headings[i] "\" in iou(7)")
	return text
}

function put_text(text,	n, i, words) {
	n = split(refer(text), words, " ")
	for (i = 1; i <= n; i++) put_word(words[i])
	line_end()
}

# ---- Comments: blocks, each of a kind, with a text (of lists: a term, too) ---------------------
function add_block(kind, text, term) {
	n_blocks++
	kinds[n_blocks] = kind
	texts[n_blocks] = text
	terms[n_blocks] = term
}

# Lines from..to of an item's comment.
function read_blocks(it, from, to,	i, text, gap, kind) {
	n_blocks = 0
	gap = 1
	for (i = from; i <= to; i++) {
		text = item_text[it, i]
		kind = gap ? "" : kinds[n_blocks]
		if (text == "")
			gap = 1
		else {
			if (text ~ /^  - /)
				add_block("bullet", substr(text, 5))
			else if (text ~ /^  [0-9]\. /)
				add_block("number", substr(text, 6))
			else if (kind == "table")
				add_block("table", text)
			else if (kind == "code")
				texts[n_blocks] = texts[n_blocks] "\n" substr(text, 5)
			else if (text ~ /^ / && kind ~ /^(bullet|number|term)$/ && text ~ /^    /) {
				sub(/^ +/, "", text)
				texts[n_blocks] = texts[n_blocks] " " text
			} else if (gap && text ~ /^                    /)
				add_block("table", text)
			else if (gap && text ~ /^    /)
				add_block("code", substr(text, 5))
			else if (match(text, /^  [^ ]( ?[^ ])*  +/))
				add_block("term", substr(text, RLENGTH + 1), trim(substr(text, 1, RLENGTH)))
			else if (text ~ /^ /)
				fail(item_line[it] + i, "neither text, list nor code: \"" text "\"")
			else if (kind == "text")
				texts[n_blocks] = texts[n_blocks] " " text
			else
				add_block("text", text)
			gap = 0
		}
	}
}

function trim(text) {
	gsub(/^ +| +$/, "", text)
	return text
}

function put_term(term) {
	if (term in is_name) print ".It Va " term
	else print ".It " escape(term)
}

# The blocks, of which the first needs no .Pp after a heading.
function put_blocks(headed,	i, was, kind, width, j, text) {
	was = ""
	for (i = 1; i <= n_blocks; i++) {
		kind = kinds[i]
		if (was != kind && was ~ /^(bullet|number|term|table)$/) print ".El"
		if (kind == "text") {
			if (texts[i] == "") continue
			if (!headed) print ".Pp"
			put_text(texts[i])
		} else if (kind == "code") {
			print ".Bd -literal -offset indent"
			text = texts[i]
			gsub(/\\/, "\\e", text)
			gsub(/-/, "\\-", text)
			print text
			print ".Ed"
		} else {
			if (was != kind) {
				width = ""
				for (j = i; j <= n_blocks && kinds[j] == "term"; j++)
					if (length(terms[j]) > length(width)) width = terms[j]
				if (kind == "bullet") print ".Bl -bullet"
				if (kind == "number") print ".Bl -enum"
				if (kind == "term") print ".Bl -tag -width \"" width "\""
				if (kind == "table") put_columns(i)
			}
			if (kind == "table")
				put_row(texts[i])
			else {
				if (kind == "term") put_term(terms[i])
				else print ".It"
				put_text(texts[i])
			}
		}
		headed = 0
		was = kind
	}
	if (was ~ /^(bullet|number|term|table)$/) print ".El"
}

function cells(text,	indent) {
	indent = text ~ /^    /
	text = trim(text)
	gsub(/  +/, "\t", text)
	return (indent ? "\t" : "") text
}

function put_columns(i,	n, j, cell, widths) {
	for (; i <= n_blocks && kinds[i] == "table"; i++) {
		n = split(cells(texts[i]), cell, "\t")
		for (j = 1; j <= n; j++)
			if (length(cell[j]) > length(widths[j])) widths[j] = cell[j]
	}
	printf ".Bl -column"
	for (j = 1; j <= n; j++) printf " \"%s\"", widths[j]
	print ""
}

function put_row(text,	n, j, cell) {
	n = split(cells(text), cell, "\t")
	for (j = 1; j <= n; j++) {
		if (cell[j] == "") cell[j] = "\\&"
		printf "%s%s", (j == 1 ? ".It " : " Ta "), cell[j]
	}
	print ""
}

# ---- Errors: "EINVAL (why; and why), ENOMEM; EPERM, ENOSYS or EACCES (why)" --------------------
# Parts of text between commas or semicolons that are not in parentheses.
function parts_of(text, mark, into,	i, c, n, level) {
	n = 1
	into[1] = ""
	for (i = 1; i <= length(text); i++) {
		c = substr(text, i, 1)
		level += (c == "(") - (c == ")")
		if (c == mark && !level) into[++n] = ""
		else into[n] = into[n] c
	}
	for (i = 1; i <= n; i++) into[i] = trim(into[i])
	return n
}

function add_error(names, why) {
	n_errors++
	error_names[n_errors] = names
	error_why[n_errors] = why
}

# If only the last name of a group has a reason, it is the reason of all of them.
function read_errors(text,	groups, n_groups, g, elements, n, e, at, head, why, waiting, shared) {
	sub(/\.$/, "", text)
	n_groups = parts_of(text, ";", groups)
	for (g = 1; g <= n_groups; g++) {
		n = parts_of(groups[g], ",", elements)
		shared = elements[n] ~ / \(/
		for (e = 1; e < n; e++)
			if (elements[e] !~ /^-?E[A-Z0-9]+$/) shared = 0
		waiting = ""
		for (e = 1; e <= n; e++) {
			head = elements[e]
			why = ""
			at = index(head, " (")
			if (at && head ~ /\)$/) {
				why = substr(head, at + 2, length(head) - at - 2)
				head = substr(head, 1, at - 1)
			}
			if (head !~ /^-?E[A-Z]/) {
				also = also (also == "" ? "" : "; ") elements[e]
				continue
			}
			if (sub(/ and the like$/, "", head)) why = why "; and the like"
			gsub(/ or /, " ", head)
			if (head !~ /^(-?E[A-Z0-9]+ ?)+$/) fail(item_line[item], "no errors: " head)
			gsub(/-/, "", head)
			if (shared && e < n) {
				waiting = waiting head " "
				continue
			}
			if (why == "" && !(head in usual)) fail(item_line[item], head " needs a reason")
			add_error(waiting head, why == "" ? usual[head] : why)
			waiting = ""
		}
	}
}

# ---- An item's page parts ------------------------------------------------------------------------
# Its comment, with the tag and "Errors:" taken out of the text into `tag` and the list of errors.
function read_item(it,	b, at, i) {
	tag = also = returns = names = ""
	n_errors = n_names = 0
	for (i = 1; i <= item_decls[it]; i++)
		if (item_decl[it, i] ~ /^IOU_API/) {
			n_names++
			names = names (names == "" ? "" : " ") function_name(item_decl[it, i])
			returns = return_type(item_decl[it, i])
		}
	read_blocks(it, 1, item_lines[it])
	for (b = 1; b <= n_blocks; b++) {
		if (kinds[b] == "term" && terms[b] ~ /^-E[A-Z]+$/) add_error(substr(terms[b], 2), texts[b])
		if (kinds[b] != "text") continue
		if (n_names && match(texts[b], / ?\[[a-z, ']*thread[a-z, ']*\]$/)) {
			tag = texts[b]
			gsub(/^.*\[|\]$/, "", tag)
			texts[b] = substr(texts[b], 1, RSTART - 1)
		}
		if (at = index(texts[b], "Errors: ")) {
			if (!n_names) fail(item_line[it], "errors of no function")
			read_errors(substr(texts[b], at + 8))
			texts[b] = trim(substr(texts[b], 1, at - 1))
		}
	}
	if (!n_names) return
	if (!(tag in sentence)) fail(item_line[it], names ": which threads? \"" tag "\"")
	if (tag ~ /^loop thread/ && tag !~ /as said/ && returns != "void")
		if (!listed("EEXIST", usual["EEXIST"])) add_error("EEXIST", usual["EEXIST"])
}

function listed(name, why,	e) {
	for (e = 1; e <= n_errors; e++)
		if ((" " error_names[e] " ") ~ (" " name " ") && error_why[e] == why) return 1
	return 0
}

function return_type(decl) {
	sub(/^IOU_API */, "", decl)
	return trim(substr(decl, 1, index(decl, "iou_" substr(function_name(decl), 5) "(") - 1))
}

function put_description(it,	heading, s, i) {
	read_item(it)
	heading = names
	gsub(/ /, ", ", heading)
	if (heading == "" && item_decls[it]) heading = type_name(item_decl[it, 1])
	if (heading != "") print ".Ss " heading
	if (tag != "") {
		s = sentence[tag]
		sub(/%/, n_names > 1 ? "them" : "it", s)
		add_block("text", s)
	}
	if (heading == "" && put_any) print ".Pp"
	put_blocks(heading != "" || !put_any)
	put_any = 1
	for (i = 1; i <= item_decls[it]; i++) put_members(item_decl[it, i])
}

# The members of a struct that have a comment.
function put_members(decl,	n, i, rows, code, why, list, width, name) {
	n = split(decl, rows, "\n")
	for (i = 2; i < n; i++) {
		if (!match(rows[i], /\/\* .* \*\/$/)) continue
		why = substr(rows[i], RSTART + 3, RLENGTH - 6)
		code = substr(rows[i], 1, RSTART - 1)
		if (!match(code, /[a-z_]+(\[[0-9]+\])?;[ \t]*$/)) fail(item_line[item], "no member: " code)
		name = substr(code, RSTART, RLENGTH)
		sub(/(\[[0-9]+\])?;[ \t]*$/, "", name)
		list[i] = name
		rows[i] = why
		if (length(name) > length(width)) width = name
	}
	if (width == "") return
	print ".Bl -tag -width \"" width "\""
	for (i = 2; i < n; i++)
		if (i in list) {
			print ".It Va " list[i]
			put_text(rows[i])
		}
	print ".El"
}

function put_errors(it,	e, n, i, name, all) {
	read_item(it)
	if (!n_errors && also == "") return
	if (put_any++) print ".Pp"
	n = split(names, name, " ")
	for (i = 1; i <= n; i++) {
		put_macro("", "Fn", name[i], i < n - 1 ? "," : "")
		if (i == n - 1) print "and"
	}
	i = n > 1 ? "" : "s"
	put_text(returns ~ /\*$/ ? "return" i " NULL and set" i " errno to" : "return" i " on failure")
	if (n_errors) {
		print ".Bl -tag -width EALREADYX -compact"
		for (e = 1; e <= n_errors; e++) {
			all = error_names[e]
			n = split(all, name, " ")
			printf ".It"
			for (i = 1; i <= n; i++)
				printf "%s Er %s%s", (returns == "int" ? " Pf \\-" : ""), name[i], (i < n ? " ," : "\n")
			put_text(error_why[e])
		}
		print ".El"
	}
	if (also != "") {
		if (n_errors) print ".Pp"
		put_text((n_errors ? "Also: " : "") also ".")
	}
}

function put_synopsis(decl,	name, args, n, i, list, rows) {
	if (decl ~ /^IOU_API/) {
		if (was_type) print ".Pp"
		was_type = 0
		name = function_name(decl)
		gsub(/[ \t\n]+/, " ", decl)
		sub(/( IOU_MUST_USE)?;$/, "", decl)
		print ".Ft \"" return_type(decl) "\""
		print ".Fo " name
		args = substr(decl, index(decl, name "(") + length(name) + 1)
		sub(/\)$/, "", args)
		n = parts_of(args, ",", list)
		for (i = 1; i <= n; i++) {
			print ".Fa \"" list[i] "\""
			if (match(list[i], /[a-z_]+$/)) is_name[substr(list[i], RSTART)]
		}
		print ".Fc"
		return
	}
	n = split(decl, rows, "\n")
	was_type = 1
	print ".Bd -literal"
	for (i = 1; i <= n; i++) {
		gsub(/[ \t]*\/\*.*\*\//, "", rows[i])
		gsub(/\t/, "    ", rows[i])
		if (match(rows[i], /^    .*[ *][a-z_]+(\[|;)/)) {
			name = substr(rows[i], 1, RLENGTH - 1)
			sub(/.*[ *]/, "", name)
			is_name[name]
		}
		if (n == 1 && length(rows[i]) > 70) {
			sub(/\{ /, "{\n    ", rows[i])
			gsub(/, /, ",\n    ", rows[i])
			sub(/ }/, "\n}", rows[i])
		}
		print rows[i]
	}
	print ".Ed"
}

# ---- The pages -----------------------------------------------------------------------------------
function put_names(title,	i, n) {
	for (i = 1; i <= n_functions; i++) n += function_page[functions[i]] == page_of[title]
	print ".Nm", page_of[title] (n ? " ," : "")
	for (i = 1; i <= n_functions; i++)
		if (function_page[functions[i]] == page_of[title]) print ".Nm " functions[i] (--n ? " ," : "")
	print ".Nd " about_of[title]
}

function put_page(title,	i, d, last) {
	print ".Dt " toupper(page_of[title]) " 3"
	print ".Os"
	print ".Sh NAME"
	put_names(title)
	print ".Sh LIBRARY"
	print "iou " version " (libiou, \\-liou; pkg-config iou)"
	print ".Sh SYNOPSIS"
	print ".In iou.h"
	for (item = 1; item <= n_items; item++)
		if (item_section[item] == title)
			for (d = 1; d <= item_decls[item]; d++) put_synopsis(item_decl[item, d])
	print ".Sh DESCRIPTION"
	for (item = 1; item <= n_items; item++)
		if (item_section[item] == title) put_description(item)
	put_any = 0
	for (item = 1; item <= n_items; item++)
		if (item_section[item] == title) {
			read_item(item)
			if ((n_errors || also != "") && !last++) print ".Sh ERRORS"
			put_errors(item)
		}
	print ".Sh SEE ALSO"
	for (i = 1; i <= n_sections; i++)
		if (titles[i] != title) see[page_of[titles[i]]]
	put_see()
	print ".Xr io_uring 7 ,"
	print ".Xr iou 7"
}

# In the order of the alphabet.
function put_see(	i, least) {
	for (;;) {
		least = ""
		for (i in see)
			if (least == "" || i < least) least = i
		if (least == "") return
		print ".Xr " least " 3 ,"
		delete see[least]
	}
}

# A part of the introduction, from its heading (a line alone, without a full stop) to the next one.
function put_intro(heading,	i) {
	for (i = 1; headings[i] != heading; i++)
		if (i > n_headings) fail(1, "no \"" heading "\" in the introduction")
	item = intro
	read_blocks(intro, heading_line[i] + 1, heading_line[i + 1] - 1)
	put_blocks(1)
}

# Where the parts of the introduction begin.
function read_headings(	i) {
	for (intro = 1; item_section[intro] != "intro"; intro++)
		if (intro == n_items) fail(1, "no introduction")
	for (i = 2; i <= item_lines[intro]; i++)
		if (item_text[intro, i - 1] == "" && item_text[intro, i + 1] == "" &&
		    item_text[intro, i] ~ /^[A-Z].*[^.:]$/) {
			headings[++n_headings] = item_text[intro, i]
			heading_line[n_headings] = i
		}
	heading_line[n_headings + 1] = item_lines[intro] + 1
}

function put_overview(	i, j, row, name) {
	for (i = 1; i <= n_template; i++) {
		row = template[i]
		gsub(/@version@/, version, row)
		if (row ~ /^\.\\"@ /) {
			name = substr(row, 6)
			if (name != "pages") { put_intro(name); continue }
			print ".Bl -tag -width Ds"
			for (j = 1; j <= n_sections; j++) put_group(titles[j])
			print ".El"
		} else
			print row
	}
}

function put_group(title,	i, n) {
	print ".It Xr " page_of[title] " 3"
	for (i = 1; i <= n_functions; i++) n += function_page[functions[i]] == page_of[title]
	for (i = 1; i <= n_functions; i++)
		if (function_page[functions[i]] == page_of[title]) print ".Fn " functions[i] (--n ? " ," : "")
}

END {
	if (failed) exit 1
	item_end()
	if (in_comment || depth || open_decl) fail(FNR, "it ends too early")
	if (list) {
		for (i = 1; i <= n_functions; i++) print functions[i], function_page[functions[i]]
		exit
	}
	read_headings()
	this_page = page
	sub(/\.[0-9]$/, "", this_page)
	for (i = 1; i <= n_template && template[i] !~ /^\.Dd /; i++) ;
	print ".\\\" SPDX-License-Identifier: MIT"
	print ".\\\" Made from iou.h by man/make.awk. Change it there."
	if (page == "iou.7") {
		put_overview()
		exit
	}
	print template[i]
	for (i = 1; i <= n_sections; i++)
		if (page_of[titles[i]] == this_page) {
			put_page(titles[i])
			exit
		}
	fail(0, "no page " page)
}
