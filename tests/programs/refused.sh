#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Programs give the same results where io_uring is refused, unchanged and without a flag. It is refused
# here in each way that refuse.c knows, and by a ring without IORING_FEAT_EXT_ARG, as on Linux 5.10. In
# each, the examples and a part of the Check program run, by tests/run, which says so. With
# IOU_TEST_FULL=1 all of the Check program and of the examples' scripts, which takes an hour.
#
# Words are split on purpose.
# shellcheck disable=SC2015,SC2046,SC2086
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
unset IOU_ENGINE
case $B in /*) ;; *) B=$PWD/$B ;; esac
check=$B/tests/check

${CC:-cc} -O2 -Wall -Wextra -Wshadow -Wstrict-prototypes -o "$dir/refuse" tests/programs/refuse.c
"$dir/refuse" setup EPERM true || { echo "SKIP refused: no seccomp filter here"; exit 77; }
{ "$check" refused >/dev/null; } 2>/dev/null || { echo "SKIP refused: who asks for io_uring is killed here"; exit 77; }
[ "${REFUSED:-}" ] || [ -z "$("$check" refused)" ] || fail "io_uring is not refused here"

# An older ring.
cat >"$dir/old.c" <<-'END'
	#define _GNU_SOURCE
	#include <dlfcn.h>
	#include <liburing.h>

	int io_uring_queue_init_params(unsigned n, struct io_uring *ring, struct io_uring_params *params)
	{
		int (*init)(unsigned, struct io_uring *, struct io_uring_params *);
		int ret;

		*(void **)&init = dlsym(RTLD_NEXT, "io_uring_queue_init_params");
		ret = init(n, ring, params);
		params->features &= ~IORING_FEAT_EXT_ARG;
		return ret;
	}
END
${CC:-cc} -shared -fPIC -O1 -o "$dir/old.so" "$dir/old.c" $(${PKG_CONFIG:-pkg-config} --cflags liburing)

# under WAY COMMAND [ARGUMENT...]
under() {
	how=$1
	shift
	case $how in
	old) LD_PRELOAD=$dir/old.so "$@" ;;
	*KILL) IOU_ENGINE=fallback "$dir/refuse" $how "$@" ;;
	*) "$dir/refuse" $how "$@" ;;
	esac
}

calls='setup enter register all' ways=
[ -z "${REFUSED:-}" ] || calls='setup all'
for error in EPERM ENOSYS EACCES KILL; do
	for call in $calls; do ways="$ways $call,$error"; done
done
if [ "${REFUSED:-}" ]; then
	echo "SKIP refused: the ways in which a ring is there first (io_uring is refused here)"
elif [ "$(under old "$check" refused 2>&1)" = 'Function not implemented' ]; then
	ways="$ways old"
else
	echo "SKIP refused: a ring without IORING_FEAT_EXT_ARG (sanitizers, or a static program)"
fi

# ---- Which engine runs ---------------------------------------------------------------------------
# engine_is WANT WAY: the engine, or the error of the program that cannot have one.
engine_is() {
	got=$(under "$2" "$check" engine) || :
	[ "$got" = "$1" ] || fail "$2, IOU_ENGINE=${IOU_ENGINE:-}: '$got', not '$1'"
}

for way in $ways; do
	way=$(echo $way | tr , ' ')
	engine_is fallback "$way"
	case $way in
	*KILL) continue ;;
	*EPERM) error='Operation not permitted' ;;
	*EACCES) error='Permission denied' ;;
	*) error='Function not implemented' ;;
	esac
	[ "$(under "$way" "$check" refused)" = "$error" ] || fail "$way goes unnoticed"
	IOU_ENGINE=fallback engine_is fallback "$way"
	for other in '' Ring; do # count as unset
		IOU_ENGINE=$other engine_is fallback "$way"
	done
	case $way in register*) continue ;; esac # a ring can do without
	IOU_ENGINE=ring engine_is "$error" "$way"
	for program in "$B"/examples/*; do
		name=$(basename "$program") status=0
		case $name in hello | echo | sum | walk) ;; *) continue ;; esac
		IOU_ENGINE=ring under "$way" timeout 20 "$program" </dev/null >"$dir/out" 2>"$dir/err" || status=$?
		[ "$status $(cat "$dir/err")" = "1 $name: io_uring: $error" ] && [ ! -s "$dir/out" ] ||
			fail "$way, IOU_ENGINE=ring: $name: $status, $(cat "$dir/err")"
	done
done

# ---- The examples, the Check program -------------------------------------------------------------
${CC:-cc} -O2 -g -o "$dir/client" tests/programs/echo_client.c
mkdir -p "$dir/tree/empty" "$dir/build/tests"
cp -r tests examples "$dir/tree"
ln -s tests/README.md "$dir/tree/link"
head -c 1000000 /dev/urandom >"$dir/tree/random"
ln -s "$check" "$dir/build/tests/check"
ln -s "$B/examples" "$dir/build/examples"
"$B/examples/walk" -l "$dir/tree" >"$dir/walk"
find "$dir/tree" -type f -exec sha256sum {} + >"$dir/sums"

# run NAME...: tests/run passes, in a folder of its own, and says why the fallback runs.
run() {
	B=$dir/build under "$way" sh tests/run "$@" >"$dir/out" 2>&1 || { cat "$dir/out"; fail "$way: tests/run $*"; }
	case $way in
	*KILL) said='(the program is killed)' ;;
	*) said="($(under "$way" "$check" refused))" ;;
	esac
	[ "$(head -n 1 "$dir/out")" = "  The fallback runs: io_uring is refused here $said" ] &&
		[ "$(grep -c 'refused here' "$dir/out")" = 1 ] || { cat "$dir/out"; fail "$way: not what it should say"; }
}

for way in $ways; do
	began=$(date +%s)
	way=$(echo $way | tr , ' ')
	if [ "${IOU_TEST_FULL:-}" ]; then
		IOU_TEST_FULL='' run check hello walk echo sum
	else
		under "$way" "$B/examples/walk" -l "$dir/tree" | cmp - "$dir/walk" || fail "$way: walk"
		[ ! -x "$B/examples/sum" ] || under "$way" "$B/examples/sum" -c "$dir/sums" >"$dir/out" ||
			{ cat "$dir/out"; fail "$way: sum"; }
		under "$way" "$dir/client" storm "$B/examples/echo" -p 0 >"$dir/out" 2>&1 ||
			{ cat "$dir/out"; fail "$way: echo"; }
		case $way in
		'all EPERM') run hello nested deadline post loop ;;
		*) run hello nested ;;
		esac
	fi
	tail -n 1 "$dir/out" | sed "s/^/$way: /; s/\$/, $(($(date +%s) - began)) s/"
done

# Without the fallback nothing can run, and the reason is said.
way='all EPERM'
status=0
IOU_ENGINE=ring B=$dir/build under "$way" sh tests/run check >"$dir/out" 2>&1 || status=$?
[ "$status" = 1 ] && [ "$(cat "$dir/out")" = "tests/run: io_uring is refused here (Operation not permitted), \
and IOU_ENGINE=ring: no engine is left" ] || { cat "$dir/out"; fail "IOU_ENGINE=ring: status $status"; }
