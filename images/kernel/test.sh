#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Boot the appliance kernel with a test program as PID 1 and prove what the README says of it.
# usage: test.sh [--full] [KERNEL]      (--full: 8 GiB of scattered memory, longer loads)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kernel=${XDG_DATA_HOME:-$HOME/.local/share}/apppot/linux
full=false
passed=0 failed=0 skipped=0

while (($#)); do
	case $1 in
	--full) full=true ;;
	-h | --help) sed -n '4,6s/^# //p' "$0"; exit 0 ;;
	*) kernel=$1 ;;
	esac
	shift
done
[ -x "$kernel" ] || { echo "no kernel at $kernel: run build.sh first" >&2; exit 1; }
kernel=$(realpath "$kernel")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

prepare() {
	mkdir -p "$work/root/dev" "$work/root/proc"
	gcc -O2 -Wall -Wextra -static -pthread -o "$work/root/init" "$here/test/init.c"
	gcc -O2 -Wall -Wextra -o "$work/link" "$here/test/link.c"
	(cd "$work/root" && find . | cpio -o -H newc --quiet) >"$work/initrd"
}

# machine SECONDS ARGS...: boot one; its messages end up in $work/log.
machine() {
	local seconds=$1
	shift
	HOME=/nonexistent timeout -k 5 "$seconds" "$kernel" lpj=20000000 quiet con=null \
		con0=null,fd:1 initrd="$work/initrd" "$@" </dev/null >"$work/log" 2>&1
}

# expect CODE NAME SECONDS ARGS...: the machine must end with CODE, and in time.
expect() {
	local want=$1 name=$2 got=0
	shift 2
	machine "$@" || got=$?
	report "$name" "$want" "$got"
}

report() {
	local line
	if [ "$2" = "$3" ]; then
		passed=$((passed + 1))
		line=$(grep -aE '^(touched|checked|sparse|fork|threads|echo|sink|badmem)' "$work/log" | tr -d '\r' | paste -sd' ' || true)
		echo "ok    $1${line:+: $line}"
	else
		failed=$((failed + 1))
		echo "FAIL  $1: ended with $3 instead of $2"
		sed 's/^/      /' "$work/log" | tail -n 15
	fi
}

# link_test NAME MODE MIB ARGS...
link_test() {
	local name=$1 mode=$2 mib=$3 got=0
	shift 3
	timeout -k 5 180 "$work/link" "$mode" "$mib" "$kernel" lpj=20000000 quiet con=null con0=null,null \
		ssl0=fd:3 initrd="$work/initrd" "$@" </dev/null >"$work/log" 2>&1 || got=$?
	report "$name" 0 "$got"
}

skip() {
	skipped=$((skipped + 1))
	echo "skip  $1"
}

# room MIB: is there that much memory and space for the machine's memory file?
room() {
	local dir=${TMPDIR:-/dev/shm}
	(($(df --output=avail -m "$dir" | tail -n 1) > $1)) &&
		(($(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo) > $1))
}

boots() {
	expect 0 "boots and powers off" 20 mem=256M seccomp=on do=true
	expect 0 "boots with ptrace" 20 mem=256M seccomp=off do=true
	expect 42 "exit code" 20 mem=256M seccomp=on do=exit:42
	expect 0 "16 GiB of memory that is not there" 20 mem=16G seccomp=on do=true
	expect 0 "no directory for machine names" 20 mem=256M seccomp=on uml_dir=/proc/nowhere do=true
	expect 0 "2 processors" 20 mem=256M seccomp=on ncpus=2 do=true
	expect 0 "overlay on the host's root" 20 mem=256M seccomp=on do=overlay
}

memory() {
	local mib=$1 mode limit
	limit=$(cat /proc/sys/vm/max_map_count)
	if ! room $((mib + 1024)); then skip "scattered memory: no room for $mib MiB"; return; fi
	for mode in on off; do
		expect 0 "$mib MiB in random order, seccomp=$mode, vm.max_map_count $limit" 600 \
			mem=$((mib + 1024))M seccomp=$mode do=touch:"$mib"
		expect 0 "the same without fault-around, seccomp=$mode" 600 \
			mem=2G seccomp=$mode anon_around=1 do=touch:1024
		expect 0 "shared and zero pages, seccomp=$mode" 600 mem=2G seccomp=$mode do=sparse:512
		expect 0 "faults, SIGSEGV, out of memory, seccomp=$mode" 120 mem=512M seccomp=$mode do=badmem
	done
}

processes() {
	local count=$1 mode
	for mode in on off; do
		expect 0 "$count process trees, seccomp=$mode" 600 mem=1G seccomp=$mode do=fork:"$count"
	done
	expect 0 "$count process trees, 2 processors" 600 mem=1G seccomp=on ncpus=2 do=fork:"$count"
	expect 0 "8 threads, 1 processor" 300 mem=1G seccomp=on do=threads:8
	expect 0 "8 threads, 2 processors" 300 mem=1G seccomp=on ncpus=2 do=threads:8
}

links() {
	link_test "64 MiB there and back" echo 64 mem=256M seccomp=on do=echo:64
	link_test "64 MiB there and back, ptrace" echo 64 mem=256M seccomp=off do=echo:64
	link_test "64 MiB there and back, 2 processors" echo 64 mem=256M seccomp=on ncpus=2 do=echo:64
	link_test "256 MiB in" sink 256 mem=256M seccomp=on do=sink:256
	link_test "64 MiB in, slow reader at first" sink 64 mem=256M seccomp=on do=slowsink:64
}

# A host that refuses: the machine must end, not hang.
refusals() {
	local got=0
	(ulimit -v 300000; machine 30 mem=8G seccomp=on do=true) || got=$?
	report "address space smaller than mem=" 1 "$got"
}

prepare
boots
refusals
links
if $full; then memory 8192; processes 200; else memory 2048; processes 24; fi
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))
