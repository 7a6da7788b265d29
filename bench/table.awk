# SPDX-License-Identifier: MIT
#
# bench/run's table of one piece of work. Reads its rows (R metric unit subject limit label bounds), samples
# (S round contender metric value), and who was missing (M contender) or failed (F contender status); round 0 is
# the warm-up. Prints a line for each row, and appends samples and rows to the file `tsv`.

BEGIN {
	FS = "\t"
	line = "%-46s %9s %9s  %-5s %-18s %-30s %-7s %-9s %s\n"
	record = "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n"
	if (header)
		printf line, "work", "iou", "limit", "", "iou / limit", "bound", "", "disturbed",
			"others (iou / theirs)"
}

$1 == "R" {
	n_rows++
	metric[n_rows] = $2
	unit[n_rows] = $3
	subject[n_rows] = $4
	limit[n_rows] = $5
	label[n_rows] = $6
	bounds[n_rows] = $7
}

# The label of a row in full, where it is about the one above.
function full(i,    text)
{
	text = label[i]
	if (sub(/^  /, ": ", text))
		return top text
	top = text
	sub(/; limit.*/, "", top)
	return text
}

$1 == "S" {
	if (!($3 in known)) {
		known[$3] = 1
		names[++n_names] = $3
	}
	sample[$2, $3, $4] = $5
	if ($2 > last)
		last = $2
	if ($4 == "others" && $2 > 0 && $5 > 16)
		disturbed[$2] = 1
}

# The median of list[1..n], which it sorts.
function median(list, n,    i, j, x)
{
	for (i = 2; i <= n; i++) {
		x = list[i]
		for (j = i - 1; j >= 1 && list[j] > x; j--)
			list[j + 1] = list[j]
		list[j + 1] = x
	}
	return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
}

# Of one contender; -1 where it has no samples.
function middle(m, name,    list, n, r)
{
	for (r = 1; r <= last; r++)
		if (use[r] && (r, name, m) in sample)
			list[++n] = sample[r, name, m] + 0
	return n ? median(list, n) : -1
}

# Of subject / name, taken within each round; sets low and high.
function ratio(m, a, b,    list, n, r, mid)
{
	for (r = 1; r <= last; r++)
		if (use[r] && (r, a, m) in sample && (r, b, m) in sample && sample[r, b, m] > 0)
			list[++n] = sample[r, a, m] / sample[r, b, m]
	if (!n)
		return -1
	mid = median(list, n)
	low = list[1]
	high = list[n]
	return mid
}

function show(x)
{
	return x < 0 ? "-" : sprintf(x >= 100 ? "%.0f" : x >= 10 ? "%.1f" : "%.2f", x)
}

# 1: kept, 0: missed, -1: cannot tell. A bound is <=F, >=F, <=F*NAME or >=F*NAME.
function keeps(bound, row,    at_least, factor, name, x)
{
	at_least = bound ~ /^>=/
	factor = substr(bound, 3)
	name = factor
	if (!sub(/^[0-9.]+\*/, "", name))
		x = middle(metric[row], subject[row])
	else
		x = ratio(metric[row], subject[row], name)
	if (x < 0)
		return -1
	return at_least ? x >= factor + 0 : x <= factor + 0
}

function verdict(row,    list, n, i, result, all, goals, kept, unknown)
{
	n = split(bounds[row], list, " ")
	all = goals = 1
	for (i = 1; i <= n; i++) {
		if (sub(/^goal:/, "", list[i])) {
			if (keeps(list[i], row) != 1)
				goals = 0
			has_goal = 1
			continue
		}
		kept = keeps(list[i], row)
		if (kept < 0)
			unknown = 1
		else if (!kept)
			all = 0
	}
	if (!n)
		return ""
	result = !all ? "MISSED" : unknown ? "?" : has_goal && goals ? "goal" : "ok"
	if (n_clean < 3 && metric[row] !~ /^cpu|^per_message|bytes$|^kib$/ && result != "?")
		result = result "?" # not to be relied on
	has_goal = 0
	return result
}

function others(row,    i, x, r, text)
{
	for (i = 1; i <= n_names; i++) {
		if (names[i] == subject[row] || names[i] == limit[row])
			continue
		x = middle(metric[row], names[i])
		if (x < 0)
			continue
		r = ratio(metric[row], subject[row], names[i])
		text = text (text == "" ? "" : ", ") names[i] " " show(x) (r >= 0 ? sprintf(" (%.2f)", r) : "")
	}
	return text
}

END {
	for (r = 1; r <= last; r++) {
		if (disturbed[r])
			which = which (which == "" ? "" : " ") r
		else
			n_clean++
	}
	for (r = 1; r <= last; r++)
		use[r] = n_clean < 3 || !disturbed[r]
	for (i = 1; i <= n_rows; i++) {
		x = ratio(metric[i], subject[i], limit[i])
		text = x < 0 ? "-" : sprintf("%.2f (%.2f-%.2f)", x, low, high)
		gsub(/ +/, " ", bounds[i])
		said = verdict(i)
		own = middle(metric[i], subject[i])
		name = full(i)
		printf line, label[i], show(own), show(middle(metric[i], limit[i])), unit[i], text, bounds[i], said,
			which, others(i)
		printf record, "row", part, name, metric[i], unit[i], subject[i], "median", own >>tsv
		if (x >= 0)
			printf record, "row", part, name, metric[i], "ratio", subject[i] "/" limit[i], "median",
				x >>tsv
		if (said != "")
			printf record, "row", part, name, metric[i], bounds[i], subject[i], "verdict", said >>tsv
		for (r = 1; r <= last; r++)
			for (k = 1; k <= n_names; k++)
				if ((r, names[k], metric[i]) in sample)
					printf record, "sample", part, name, metric[i], unit[i], names[k],
						r (disturbed[r] ? "d" : ""), sample[r, names[k], metric[i]] >>tsv
	}
}
