# SPDX-License-Identifier: MIT
#
# The picture of README.md, as SVG: awk -f bench/rows.awk -f bench/picture.awk samples.tsv. Six kinds
# of work, three bars each. The longest bar of a kind is as wide as the picture allows.

function add(work, label)
{
	n_kinds++
	kind[n_kinds] = work
	label_of[n_kinds] = label
}

function bar(y, class, value, most, text)
{
	if (value < 0)
		return
	printf "<rect class=\"%s\" x=\"210\" y=\"%d\" width=\"%.1f\" height=\"13\"/>\n", class, y, \
		340 * value / most
	printf "<text x=\"%.1f\" y=\"%d\">%s</text>\n", 216 + 340 * value / most, y + 11, text
}

function max(a, b) { return a > b ? a : b }

END {
	add("cached 4 KiB reads, depth 32, CPU time", "read 4 KiB from the cache")
	add("jobs, 64 outstanding, 2 workers", "job on a worker, 64 at once")
	add("posts, one thread flat out, per callback", "post from another thread")
	add("timers, 1,000,000: start: fire", "timer of a million fires")
	add("walk with sizes", "walk 200,000 files with sizes")
	add("echo, 128 bytes, 50 connections", "echo, 50 connections")
	printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 %d\" width=\"720\" " \
		"role=\"img\" aria-label=\"Time of iou, the limit and the best peer\">\n", 40 + 62 * n_kinds
	print "<style>text { font: 12px sans-serif; fill: #24292f } .iou { fill: #1f6feb } " \
		".limit { fill: #8c959f } .peer { fill: #d4a72c } .paper { fill: #ffffff }</style>"
	printf "<rect class=\"paper\" width=\"720\" height=\"%d\"/>\n", 40 + 62 * n_kinds
	print "<text x=\"10\" y=\"20\">Time for each: less is better</text>"
	for (i = 1; i <= n_kinds; i++) {
		work = kind[i]
		if (mine(work) < 0)
			continue
		peer = best_peer(work)
		ours = mine(work)
		limit = median(work, "raw")
		theirs = peer == "" ? -1 : median(work, peer)
		most = max(ours, max(limit, theirs))
		y = 34 + 62 * (i - 1)
		printf "<text x=\"10\" y=\"%d\">%s</text>\n", y + 24, label_of[i]
		bar(y, "iou", ours, most, "iou " told(ours, unit[work]))
		bar(y + 16, "limit", limit, most, "limit " told(limit, unit[work]))
		bar(y + 32, "peer", theirs, most, name_of(peer) " " told(theirs, unit[work]))
	}
	print "</svg>"
}
