# SPDX-License-Identifier: MIT
#
# The tables of docs/performance.md: awk -f bench/rows.awk -f bench/tables.awk samples.tsv

function cell(value, unit) { return value < 0 ? "" : told(value, unit) }

END {
	print "| work | iou | limit | best peer | its name |"
	print "|---|---|---|---|---|"
	for (i = 1; i <= n_works; i++) {
		work = works[i]
		if (mine(work) < 0)
			continue
		peer = best_peer(work)
		name = work
		sub(/^: /, part[work] ", ", name)
		gsub(/: /, ", ", name)
		printf "| %s | %s | %s | %s | %s |\n", name, told(mine(work), unit[work]), \
			cell(median(work, "raw"), unit[work]), \
			peer == "" ? "" : told(median(work, peer), unit[work]), name_of(peer)
	}
}
