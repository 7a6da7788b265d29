# SPDX-License-Identifier: MIT
#
# Fills the last column of docs/testing.md's table: what tests/noted kept in build/figures.

/^\| `make / {
	n = split($0, cell, / \| /)
	name = cell[1]
	gsub(/^\| `make |`$/, "", name)
	if ((getline figures < ("build/figures/" name)) > 0) {
		sub(/ *\|$/, "", cell[n])
		for (i = 1; i < n; i++)
			printf "%s | ", cell[i]
		print figures " |"
		next
	}
}

{ print }
