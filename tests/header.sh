#!/bin/sh
# SPDX-License-Identifier: MIT
#
# iou.h compiles alone, twice, and beside a program's own `typedef struct iou_t iou_t;`, as C99, C11, C17 and
# C++11, with gcc and clang (those that are there), without a warning; iou.c compiles beside a tool with no flag
# but the libraries', in each C; the results that must be looked at cannot be ignored; and a program written for the
# original libiou 0.1 compiles and works.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

fail() { echo "FAIL: $*"; exit 1; }
quietly() { # a warning counts as an error
	"$@" >"$dir/out" 2>&1 || { cat "$dir/out"; fail "$*"; }
	[ ! -s "$dir/out" ] || { cat "$dir/out"; fail "warnings: $*"; }
}

runs() { # PROGRAM
	[ -n "${REFUSED:-}" ] || "$1"
}

# ---- The header alone ----------------------------------------------------------------------------------
cat >"$dir/header.c" <<'END'
typedef struct iou_t iou_t;
#include "iou.h"
#include "iou.h"
typedef struct iou_t iou_t;
iou_config_t config;
iou_handler_t handler;
iou_stats_t stats;
#if IOU_VERSION_MAJOR < 0 || IOU_VERSION_MINOR < 0 || IOU_VERSION_PATCH < 0
#error "no version"
#endif
iou_op_t *take(iou_t *iou);
iou_op_t *take(iou_t *iou)
{
	iou_op_t *op = iou_op_new(iou);

	if (op)
		io_uring_prep_nop(op->sqe);
	return op;
}
END
cp "$dir/header.c" "$dir/header.cc"
# To repeat a typedef is C11; clang says so of a C99 program that does.
grep -v '^typedef' "$dir/header.c" >"$dir/header99.c"

compilers='' compilers_cxx=''
for cc in gcc clang; do ! command -v $cc >/dev/null || compilers="$compilers $cc"; done
for cxx in g++ clang++; do ! command -v $cxx >/dev/null || compilers_cxx="$compilers_cxx $cxx"; done
[ -n "$compilers" ] || compilers=$CC
for cc in $compilers; do
	quietly "$cc" -I. -std=c99 -Wall -Wextra -Wshadow -Wpedantic -fsyntax-only "$dir/header99.c"
	quietly "$cc" -I. -std=c11 -Wall -Wextra -Wshadow -Wpedantic -fsyntax-only "$dir/header.c"
	quietly "$cc" -I. -std=gnu17 -Wall -Wextra -Wshadow -Wpedantic -fsyntax-only "$dir/header.c"
done
for cxx in $compilers_cxx; do
	for std in c++11 c++17 gnu++20; do
		quietly "$cxx" -I. -std=$std -Wall -Wextra -Wshadow -Wpedantic -fsyntax-only "$dir/header.cc"
	done
done

# ---- Results that must be looked at: a call that ignores one is an error, in its line; the last two are free -
cat >"$dir/ignore.c" <<'END'
#include "iou.h"
int on_it(void *data);
void prep(struct io_uring_sqe *sqe, void *opaque);
void ignore(iou_t *iou, iou_op_t *op, const iou_config_t *config, iou_handler_t *handler);
void ignore(iou_t *iou, iou_op_t *op, const iou_config_t *config, iou_handler_t *handler)
{
	iou_new(4);
	iou_new_with(config);
	iou_op_new(iou);
	iou_run(iou);
	iou_poll(iou, 0);
	iou_resize(iou, 8);
	iou_async(iou, on_it, op, on_it, op);
	iou_op_async(iou, op, on_it, op, on_it, op);
	iou_add_sqe(iou, prep, op, handler);
	iou_post(iou, on_it, op);
	iou_bh_new(iou, on_it, op);
	iou_fd(iou);
	iou_flush(iou);
	iou_quit(iou);
}
END
for cc in $compilers; do
	! "$cc" -I. -std=c11 -Wall -Wextra -Werror=unused-result -c -o "$dir/ignore.o" "$dir/ignore.c" >"$dir/out" 2>&1 ||
		fail "$cc lets every result be ignored"
	refused=$(sed -n 's/^[^ ]*ignore\.c:\([0-9]*\):.* error: .*unused-result.*/\1/p' "$dir/out" | paste -sd ' ')
	[ "$refused" = "$(seq -s ' ' 7 18)" ] || { cat "$dir/out"; fail "$cc refuses lines $refused of ignore.c, not 7 to 18"; }
done

# ---- An op's SQE is prepared, not replaced ---------------------------------------------------
cat >"$dir/replace.c" <<'END'
#include "iou.h"
void replace(iou_op_t *op, struct io_uring_sqe *sqe);
void replace(iou_op_t *op, struct io_uring_sqe *sqe)
{
#ifdef REPLACE
	op->sqe = sqe;
#else
	*op->sqe = *sqe;
#endif
}
END
cp "$dir/replace.c" "$dir/replace.cc"
for cc in $compilers $compilers_cxx; do
	replace=$dir/replace.c
	case $cc in *++) replace=$dir/replace.cc ;; esac
	quietly "$cc" -I. -Wall -Wextra -fsyntax-only "$replace"
	! "$cc" -I. -DREPLACE -fsyntax-only "$replace" >"$dir/out" 2>&1 ||
		fail "$cc lets op->sqe be replaced"
done

# ---- The two files beside a tool: cc tool.c iou.c -luring -pthread --------------------------------------
cat >"$dir/tool.c" <<'END'
#include "iou.h"
static int on_nop(void *n_calls)
{
	++*(int *)n_calls;
	return 0;
}
int main(void)
{
	int n_calls = 0, result = 1;
	iou_t *iou = iou_new(4);
	iou_op_t *op = iou ? iou_op_new(iou) : NULL;

	if (op) {
		io_uring_prep_nop(op->sqe);
		iou_op_queue(iou, op, on_nop, &n_calls);
		result = iou_run(iou);
	}
	iou_free(iou);
	return result || n_calls != 1;
}
END
cp iou.c iou.h "$dir"
for cc in $compilers; do
	for std in c99 c11 gnu17; do
		(cd "$dir" && quietly "$cc" -std=$std -Wall -Wextra -Wimplicit-fallthrough -O1 -o tool tool.c iou.c \
			-luring -pthread)
		runs "$dir/tool" || fail "the tool built by $cc -std=$std"
	done
	(cd "$dir" && quietly "$cc" -Wall -Wextra -Wshadow -Wstrict-prototypes -O2 -DNDEBUG -o tool tool.c iou.c \
		-luring -pthread)
	runs "$dir/tool" || fail "the tool built by $cc -DNDEBUG"
done

# ---- A program for the original's ten functions; it ignores what iou_flush and iou_quit return ----------
cat >"$dir/original.c" <<'END'
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include "iou.h"

typedef struct iou_t iou_t;

typedef struct state_t {
	iou_t *iou;
	iou_op_t *op;
	int n_done, n_jobs, n_completions;
	char buf[64];
} state_t;

static int read_cb(void *cb_data)
{
	state_t *state = cb_data;

	if (state->op->result < 0)
		return state->op->result;
	state->n_done++;
	return 0;
}

static int job_cb(void *cb_data)
{
	((state_t *)cb_data)->n_jobs++;
	return 0;
}

static int completion_cb(void *cb_data)
{
	((state_t *)cb_data)->n_completions++;
	return 0;
}

static int quit_cb(void *cb_data)
{
	iou_quit(cb_data);
	return 0;
}

int main(void)
{
	state_t state = { 0 };
	int fd = open("/dev/zero", O_RDONLY), r;

	state.iou = iou_new(8);
	assert(state.iou);
	assert(iou_ring(state.iou));
	r = iou_resize(state.iou, 16);
	assert(r >= 0);
	memset(state.buf, 1, sizeof(state.buf));
	state.op = iou_op_new(state.iou);
	assert(state.op);
	io_uring_prep_read(state.op->sqe, fd, state.buf, sizeof(state.buf), 0);
	iou_op_queue(state.iou, state.op, read_cb, &state);
	iou_flush(state.iou);
	r = iou_async(state.iou, job_cb, &state, completion_cb, &state);
	assert(r >= 0);
	r = iou_run(state.iou);
	assert(r >= 0);
	assert(state.n_done == 1 && state.buf[0] == 0 && state.buf[63] == 0);
	assert(state.n_jobs == 1 && state.n_completions == 1);

	/* run again after it returned, and quit from a callback */
	r = iou_async(state.iou, job_cb, &state, quit_cb, state.iou);
	assert(r >= 0);
	r = iou_run(state.iou);
	assert(r >= 0 && state.n_jobs == 2);
	state.iou = iou_free(state.iou);
	assert(!state.iou);
	puts("as ever");
	return 0;
}
END
for cc in $compilers; do
	(cd "$dir" && quietly "$cc" -std=c11 -Wall -Wextra -o original original.c iou.c -luring -pthread)
	[ -n "${REFUSED:-}" ] || [ "$("$dir/original")" = "as ever" ] || fail "the original's program built by $cc"
done
[ -z "${REFUSED:-}" ] || echo "SKIP header: running what was built (io_uring is refused here)"
