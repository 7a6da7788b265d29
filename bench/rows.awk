# SPDX-License-Identifier: MIT
#
# What bench/picture.awk and bench/tables.awk read: samples.tsv of bench/run. For each row of the
# table: its name, its unit, and the medians of iou, of the limit (what the same work costs at best)
# and of the best peer. Rates become times, so that less is better everywhere. Include it with
# -f bench/rows.awk before one of the two, which defines show(row).

BEGIN {
	FS = "\t"
	n_peers = split("uv glib ev epoll bfs find du fd openssl sha256sum", list, " ")
	for (i = 1; i <= n_peers; i++)
		is_peer[list[i]] = 1
	title["uv"] = "libuv"; title["ev"] = "libev"; title["glib"] = "GLib"
	title["epoll"] = "bare epoll"
}

FNR == 1 { next }

$1 == "row" && $7 == "median" && $5 != "ratio" { subject[$3] = $6 }

$1 == "sample" && $7 > 0 {
	key = $3 SUBSEP $6
	value = $5 == "1/s" ? 1e6 / $8 : $8 + 0
	count[key]++
	for (i = count[key]; i > 1 && sorted[key, i - 1] > value; i--)
		sorted[key, i] = sorted[key, i - 1]
	sorted[key, i] = value
	if (!((key) in seen)) {
		seen[key] = 1
		contenders[$3] = contenders[$3] " " $6
	}
	if (!($3 in unit)) {
		works[++n_works] = $3
		part[$3] = $2
		unit[$3] = $5 == "1/s" ? "us" : $5
	}
}

# Of whom the row is: of iou, or of a variant of it.
function mine(work) { return median(work, work in subject ? subject[work] : "iou") }

function median(work, contender,    key, n)
{
	key = work SUBSEP contender
	n = count[key]
	if (!n)
		return -1
	return n % 2 ? sorted[key, (n + 1) / 2] : (sorted[key, n / 2] + sorted[key, n / 2 + 1]) / 2
}

# The peer whose median is the least, or "".
function best_peer(work,    i, n, names, best)
{
	n = split(contenders[work], names, " ")
	for (i = 1; i <= n; i++)
		if (names[i] in is_peer && (best == "" || median(work, names[i]) < median(work, best)))
			best = names[i]
	return best
}

function name_of(contender) { return contender in title ? title[contender] : contender }

# With three digits, in a unit that suits.
function told(value, unit)
{
	if (unit == "ns" && value >= 1000) {
		value /= 1000
		unit = "us"
	}
	if (unit == "us" && value >= 10000) {
		value /= 1000
		unit = "ms"
	}
	if (unit == "" )
		return sprintf("%.3g", value)
	return sprintf(value >= 100 ? "%.0f %s" : value >= 10 ? "%.1f %s" : "%.2f %s", value, unit)
}
