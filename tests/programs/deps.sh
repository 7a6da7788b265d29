#!/bin/sh
# SPDX-License-Identifier: MIT
#
# .ci/deps, among package managers that only note what they are asked for: it does nothing where all is there,
# names what is missing in the words of each system, uses sudo only where needed, and says so where it cannot help.
# shellcheck disable=SC2015
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }

bin=$dir/bin
mkdir "$bin"
for tool in sh grep cat env rm; do ln -s "$(command -v $tool)" "$bin/$tool"; done

# fake NAME SCRIPT: a command of this small world.
fake() { printf '#!/bin/sh\n%s\n' "$2" >"$bin/$1" && chmod +x "$bin/$1"; }
# The manager installs what $installs says (it makes the fakes work) or fails while $dir/stale is there.
manager() {
	rm -f "$bin/apt-get" "$bin/dnf" "$bin/apk" "$bin/pacman" "$dir/log"
	fake "$1" "echo \"$1 \$*\" >>'$dir/log'
case \"\$*\" in
*update* | -Sy) rm -f '$dir/stale'; exit 0 ;;
esac
[ ! -e '$dir/stale' ] || exit 100
echo yes >'$dir/installed'"
}
nothing_there() {
	rm -f "$dir/installed" "$dir/log"
	for tool in cc pkg-config c++ clang strace valgrind gcovr spin busybox qemu-system-x86_64; do
		fake $tool "[ -e '$dir/installed' ] || exit 1"
	done
	rm -f "$bin/clang" "$bin/strace"
}
deps() { # GOAL: its exit status is $status, what it says is in $dir/out
	status=0
	PATH=$bin CC=cc PKG_CONFIG=pkg-config "$bin/sh" .ci/deps "$1" >"$dir/out" 2>&1 || status=$?
}
asked() { # WHAT: the manager was asked for just that
	[ "$(cat "$dir/log" 2>/dev/null)" = "$1" ] || fail "asked '$(cat "$dir/log" 2>/dev/null)', not '$1'"
}

root() { rm -f "$bin/id" "$bin/sudo"; fake id 'echo 0'; }
user() { rm -f "$bin/id" "$bin/sudo"; fake id 'echo 1000'; }

# All is there: nothing is run, nothing is said.
root
nothing_there
echo yes >"$dir/installed"
manager apt-get
deps deps
[ $status = 0 ] && [ ! -s "$dir/out" ] || fail "all is there: status $status, $(cat "$dir/out")"
asked ''

# Root, each system in its words; what is run is shown.
for words in "apt-get install -y --no-install-recommends gcc libc6-dev liburing-dev check" \
	"dnf install -y gcc liburing-devel check-devel" "apk add gcc musl-dev liburing-dev linux-headers check-dev" \
	"pacman -S --needed --noconfirm gcc liburing check"; do
	nothing_there
	manager "${words%% *}"
	deps deps
	[ $status = 0 ] || fail "${words%% *}: status $status, $(cat "$dir/out")"
	asked "$words"
	grep -q "^+ .*$words" "$dir/out" || fail "does not show what it runs: $(cat "$dir/out")"
done

# A machine whose lists are old asks for new ones, then again.
nothing_there
manager apt-get
: >"$dir/stale"
deps deps
[ $status = 0 ] || fail "old lists: status $status, $(cat "$dir/out")"
[ "$(cut -d' ' -f2 <"$dir/log" | paste -sd' ')" = "install update install" ] || fail "old lists: $(cat "$dir/log")"

# Not root: with sudo; without it, it says what to run.
user
nothing_there
manager apt-get
fake sudo "echo sudo >>'$dir/log'; exec \"\$@\""
deps deps
[ $status = 0 ] && [ "$(head -1 "$dir/log")" = sudo ] || fail "sudo: status $status, $(cat "$dir/out" "$dir/log")"
user
nothing_there
manager apt-get
deps deps
[ $status = 1 ] || fail "no sudo: status $status"
asked ''
grep -q 'please run: apt-get install .*liburing-dev' "$dir/out" || fail "no sudo: $(cat "$dir/out")"

# No manager that it knows.
rm "$bin/apt-get"
deps deps
[ $status = 1 ] && grep -q 'please install: .*liburing >= 2.3' "$dir/out" || fail "no manager: $(cat "$dir/out")"

# What `deps` cannot get fails; what the others cannot get is said, and the rest is there.
root
nothing_there
manager apt-get
fake apt-get "echo \"apt-get \$*\" >>'$dir/log'
case \$* in *update*) ;; *\ valgrind | *liburing-dev) exit 0 ;; *) exit 100 ;; esac"
deps deps
[ $status != 0 ] && grep -q 'still not found.*liburing' "$dir/out" || fail "cannot be had: $status, $(cat "$dir/out")"
deps deps-dev
[ $status = 0 ] && grep -q 'still not found.*strace' "$dir/out" || fail "cannot be had: $status, $(cat "$dir/out")"
grep -q 'recommends libssl-dev$' "$dir/log" || fail "the others were not asked for: $(cat "$dir/log")"
