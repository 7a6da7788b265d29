#!/bin/sh
# SPDX-License-Identifier: MIT
#
# iou.h compiles without a warning: alone, twice, before and after other headers, and beside a
# program's own `typedef struct iou_t iou_t;`; as C99 to C23 and C++11 to C++23, strict and GNU; with
# gcc and clang (those that are there); with musl's headers. iou.c, and iou_fallback.c if it is
# wanted, compile beside a tool with no flag but the libraries', in each C: with the latter the tool
# runs on the fallback too, without it nothing does. Results that must be looked at cannot be
# ignored. A program written for the original libiou 0.1 compiles and works.
#
# Words are split on purpose; each compiler has a subshell.
# shellcheck disable=SC2030,SC2031,SC2086,SC2317
set -eu
: "${CC:=cc}"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
own=$dir # each compiler gets a folder of its own: they run at the same time

fail() { echo "FAIL: $*"; exit 1; }
quietly() { # a warning counts as an error
	"$@" >"$own/out" 2>&1 || { cat "$own/out"; fail "$*"; }
	[ ! -s "$own/out" ] || { cat "$own/out"; fail "warnings: $*"; }
}

runs() { # COMMAND, which needs io_uring
	[ -n "${REFUSED:-}" ] || $1
}

# ---- The header alone ----------------------------------------------------------------------------
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
# After other headers: by then glibc has decided what it hides. The macros that iou.h defines for
# liburing.h must be gone.
cat - "$dir/header.c" >"$dir/after.c" <<'END'
#ifdef _GNU_SOURCE
#define NOTHING_HIDDEN
#endif
#include <stdio.h>
#include <stdlib.h>
END
cat >>"$dir/after.c" <<'END'
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#if defined siginfo_t || defined idtype_t || defined cpu_set_t || defined IOU_LOFF_T
#error "iou.h leaves a macro"
#endif
#if defined loff_t && defined __GLIBC__
#error "iou.h leaves loff_t"
#endif
extern id_t id;
#ifdef SI_USER
extern siginfo_t info;
#endif
#ifdef WEXITED
extern idtype_t idtype;
#endif
#ifdef CPU_SETSIZE
extern cpu_set_t set;
#endif
#ifdef NOTHING_HIDDEN
extern loff_t offset;
#endif
END
for file in header after; do
	cp "$dir/$file.c" "$dir/$file.cc"
	# To repeat a typedef is C11; clang says so of a C99 program that does.
	grep -v '^typedef' "$dir/$file.c" >"$dir/${file}99.c"
done

# Each of these types is used by the liburing.h of some release, without looking at _GNU_SOURCE. This
# liburing.h uses all of them.
mkdir "$dir/types"
cat >"$dir/types/liburing.h" <<'END'
#include_next <liburing.h>
void types(const cpu_set_t *, siginfo_t *, idtype_t, id_t, loff_t, sigset_t *);
END

# musl's headers, and a folder with links to liburing's and the kernel's.
machine=$(uname -m)-linux-musl
musl=
for folder in "/usr/include/$machine" "/usr/$machine/include" /usr/lib/musl/include; do
	[ ! -f "$folder/features.h" ] || musl=$folder
done
if [ -n "$musl" ]; then
	$CC -I. -M -D_GNU_SOURCE -x c iou.h | tr -s '[:space:]' '\n' >"$dir/paths"
	mkdir "$dir/links"
	for name in liburing.h liburing/barrier.h linux/types.h asm/types.h asm-generic/types.h; do
		path=$(grep -m 1 "/$name\$" "$dir/paths") || fail "where is $name?"
		case $name in
		*/*) ln -s "$(dirname "$path")" "$dir/links/${name%/*}" ;;
		*) ln -s "$path" "$dir/links/$name" ;;
		esac
	done
else
	case $($CC -dumpmachine) in
	*musl*) ;;
	*) echo "SKIP header: the part with musl (its headers are not installed)" ;;
	esac
fi

header() { # FILE FLAG...
	file=$1
	shift
	quietly $cc -I. -isystem "$dir/types" "$@" -Wall -Wextra -Wshadow -Wpedantic -fsyntax-only \
		"$dir/$file"
}

headers_c() { # FLAG...
	for std in 99 11 17 2x; do
		file=header.c
		[ $std != 99 ] || file=header99.c
		header $file -std=c$std "$@"
		header $file -std=gnu$std "$@"
	done
	header after99.c -std=c99 "$@"
	header after.c -std=gnu11 "$@"
	for macro in NONE _POSIX_C_SOURCE=199309L _POSIX_C_SOURCE=200809L _GNU_SOURCE; do
		header after.c -std=c11 -D$macro "$@"
	done
}

headers_cxx() {
	for std in c++11 c++14 c++17 c++20 c++2b gnu++20; do header header.cc -std=$std; done
	header after.cc -std=c++11
}

# ---- Results that must be looked at: ignoring one is an error; the last two are free
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

ignored() {
	! $cc -I. -std=c11 -Wall -Wextra -Werror=unused-result -c -o "$own/ignore.o" "$dir/ignore.c" \
		>"$own/out" 2>&1 ||
		fail "$cc lets every result be ignored"
	refused=$(sed -n 's/^[^ ]*ignore\.c:\([0-9]*\):.* error: .*unused-result.*/\1/p' "$own/out" |
		paste -sd ' ')
	[ "$refused" = "$(seq -s ' ' 7 18)" ] ||
		{ cat "$own/out"; fail "$cc refuses lines $refused of ignore.c, not 7 to 18"; }
}

# ---- An op's SQE is prepared, not replaced -------------------------------------------------------
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

replaced() { # FILE
	quietly $cc -I. -Wall -Wextra -fsyntax-only "$dir/$1"
	! $cc -I. -DREPLACE -fsyntax-only "$dir/$1" >"$own/out" 2>&1 ||
		fail "$cc lets op->sqe be replaced"
}

# ---- The files beside a tool: cc tool.c iou.c [iou_fallback.c] -luring -pthread ------------------
cat >"$dir/tool.c" <<'END'
#include <errno.h>
#include <string.h>
#include "iou.h"
static int on_nop(void *n_calls)
{
	++*(int *)n_calls;
	return 0;
}
/* tool ENGINE: a nop on that engine. tool none: is there no fallback? */
int main(int argc, char **argv)
{
	iou_config_t config = { 0 };
	int n_calls = 0, result = 1;
	iou_t *iou;
	iou_op_t *op;

	if (argc == 2 && strcmp(argv[1], "none") == 0) {
		config.engine = IOU_ENGINE_FALLBACK;
		iou = iou_new_with(&config);
		return iou != NULL || errno != ENOSYS;
	}
	iou = iou_new(4);
	op = iou ? iou_op_new(iou) : NULL;
	if (op) {
		io_uring_prep_nop(op->sqe);
		iou_op_queue(iou, op, on_nop, &n_calls);
		result = iou_run(iou);
	}
	if (op && argc == 2)
		result |= strcmp(iou_engine_name(iou), argv[1]);
	iou_free(iou);
	return result || n_calls != 1;
}
END

try() { # FILE...
	quietly $cc $flags -o tool "$@" -luring -pthread
	runs ./tool || fail "the tool built by $cc $flags"
	./tool none || fail "the fallback is there without its file ($cc $flags)"
	IOU_ENGINE=fallback runs "./tool io_uring" ||
		fail "IOU_ENGINE is read without iou_fallback.c ($cc $flags)"
}

try_fallback() {
	quietly $cc $flags -o tool "$@" -luring -pthread
	IOU_ENGINE=fallback ./tool fallback || fail "the tool with the fallback, by $cc $flags"
	IOU_ENGINE=ring runs "./tool io_uring" || fail "IOU_ENGINE=ring is not read ($cc $flags)"
	runs "./tool io_uring" || fail "io_uring is not the first choice ($cc $flags)"
}

tools() ( # in a subshell, for its IOU_ENGINE
	unset IOU_ENGINE
	for std in c11 gnu17; do
		quietly $cc -std=$std -Wall -Wextra -fsyntax-only ../tool.c ../iou.c ../iou_fallback.c
	done
	for std in c99 c2x; do
		flags="-std=$std -Wall -Wextra -Wimplicit-fallthrough -O1"
		quietly $cc $flags -c ../tool.c ../iou.c ../iou_fallback.c
		try tool.o iou.o
		try_fallback tool.o iou.o iou_fallback.o
	done
	flags='-Wall -Wextra -Wshadow -Wstrict-prototypes -O2 -DNDEBUG'
	try ../tool.c ../iou.c
	try_fallback ../tool.c ../iou.c ../iou_fallback.c
)

# ---- A program for the original's ten functions; it ignores what iou_flush and iou_quit return ---
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

original() {
	quietly $cc -std=c11 -Wall -Wextra -o original ../original.c ../iou.c ../iou_fallback.c -luring \
		-pthread
	[ "$(./original)" = "as ever" ] || fail "the original's program built by $cc"
}

# ---- All of it, by each compiler -----------------------------------------------------------------
all_c() {
	headers_c
	if [ -n "$musl" ]; then
		with_musl="-nostdinc -isystem $musl -isystem $dir/links"
		with_musl="$with_musl -isystem $($cc -print-file-name=include)"
		headers_c $with_musl
		quietly $cc $with_musl -std=c11 -Wall -Wextra -fsyntax-only iou.c iou_fallback.c
	fi
	ignored
	replaced replace.c
	cd "$own"
	tools
	original
}

all_cxx() {
	headers_cxx
	replaced replace.cc
}

cp iou.c iou_fallback.c iou.h "$dir"
started=''
start() { # FUNCTION COMPILER
	own=$(mktemp -d "$dir/XXXXXX")
	(
		cc=$2
		"$1"
	) &
	started="$started $!"
}

found=''
for cc in gcc clang; do
	if command -v $cc >/dev/null; then start all_c $cc && found=1; fi
done
[ -n "$found" ] || start all_c "$CC"
for cc in g++ clang++; do
	if command -v $cc >/dev/null; then start all_cxx $cc; fi
done
status=0
for pid in $started; do wait "$pid" || status=1; done
[ -z "${REFUSED:-}" ] || echo "SKIP header: running iou.c alone (io_uring is refused here)"
exit $status
