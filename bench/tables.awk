# SPDX-License-Identifier: MIT
#
# The tables of docs/performance.md: awk -f bench/rows.awk -f bench/tables.awk samples.tsv

# The name of a row, and of one that is a variant of the row above it ("BASE: VARIANT").
function plain(work,    name)
{
	name = work
	sub(/^: /, part[work] ", ", name)
	sub(/^embed, /, "embedded in epoll, ", name)
	sub(/, workers: /, ", workers ", name)
	sub(/, median: /, ": ", name)
	sub(/: start: /, ": ", name)
	if (name ~ /: (wall clock|CPU time of)/)
		sub(/, CPU time:/, ":", name)
	sub(/; limit: (.*)$/, " (the limit:&)", name)
	sub(/limit:; limit:/, "limit:", name)
	sub(/; limit /, " ", name)
	gsub(/: /, ", ", name)
	sub(/the limit,/, "limit:", name)
	return name
}

function cell(value, unit) { return value < 0 ? "" : told(value, unit) }

END {
	print "| work | iou | limit | best peer | its name |"
	print "|---|---|---|---|---|"
	for (i = 1; i <= n_works; i++) {
		work = works[i]
		if (mine(work) < 0 || work ~ /^: CPU time/)
			continue
		peer = best_peer(work)
		name = plain(work)
		printf "| %s | %s | %s | %s | %s |\n", name, told(mine(work), unit[work]), \
			cell(median(work, "raw"), unit[work]), \
			peer == "" ? "" : told(median(work, peer), unit[work]), name_of(peer)
	}
}
