#!/usr/bin/env bash
# Measure AppPot beside its floor and its peers; write docs/bench/.
#
# BENCH_QUICK=1      a fraction of the rounds
# BENCH_ONLY=TEXT    only the measures whose names hold it ("true", "memory", "inside", "output", …);
#                    docs/bench is left alone then
# APPPOT_BENCH_BINARY, APPPOT_BENCH_OWN_KERNEL, APPPOT_BENCH_OUTPUT   instead of what is built here,
#                    and of docs/bench
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../setup/lib.sh
source "$here/../setup/lib.sh"

work=
fast=
namespace=

clean_up() {
    [ -z "$namespace" ] || kill "$namespace" 2>/dev/null || true
    [ -z "$work" ] || rm -rf "$work"
    [ -z "$fast" ] || rm -rf "$fast"
}

# wish PACKAGE...: each that can be had; the benchmark says what is missing.
wish() {
    local package
    for package in "$@"; do
        (need_packages "$package") || say "note: going on without $package"
    done
}

peers() {
    wish umoci bubblewrap charliecloud-runtime runc uidmap podman
    # Podman takes crun when it is there; where it is the only one, it is needed.
    have_package runc || wish crun
    if ! command -v apptainer >/dev/null && [ -n "$(candidate apptainer)" ]; then wish apptainer; fi
}

# A directory that the user may write to; DIRECTORY/*.
for_user() {
    mkdir -p "$@"
    (($(id -u) != 0)) || chown "$test_user:" "$@"
}

# Lends the user everything that is needed: the originals may lie below root's home directory.
lend() {
    install -m 755 "${APPPOT_BENCH_BINARY:-$(release_binary)}" "$work/bin/apppot"
    export APPPOT_BENCH_BINARY=$work/bin/apppot
    if [ -x "$own" ]; then
        install -m 755 "$own" "$work/bin/linux"
        export APPPOT_BENCH_OWN_KERNEL=$work/bin/linux
    fi
    APPPOT_BENCH_DEBIAN_KERNEL=$(command -v linux.uml || true)
    export APPPOT_BENCH_DEBIAN_KERNEL
}

helpers() {
    cc -O2 -static -s -o "$work/bin/probe" "$here/guest/probe.c"
    cc -O2 -static -s -o "$work/floor/init" "$here/guest/init.c"
    if [ -r /usr/include/stb/stb_truetype.h ]; then
        printf '#define STB_TRUETYPE_IMPLEMENTATION\n#include <stb/stb_truetype.h>\n' >"$work/source.c"
        export APPPOT_BENCH_SOURCE=$work/source.c
    fi
}

# QEMU's kernel with its modules, and the floor's init as an initramfs.
qemu() {
    local kernel
    (need_qemu) || { say "note: going on without QEMU"; return 0; }
    kernel=$("$repository/images/kernel/debian.sh") || { say "note: going on without a kernel for QEMU"; return 0; }
    cp -r "$kernel" "$(dirname "$kernel")/modules" "$work/bin/"
    chmod -R a+rX "$work/bin"
    (cd "$work/floor" && echo init | cpio --quiet -o -H newc >"$work/floor.cpio")
    export APPPOT_BENCH_QEMU_KERNEL=$work/bin/vmlinux
}

# The Debian image, and its files as a directory of the user's own: what a user of containers has.
debian() {
    local image
    image=$("$repository/images/build.sh") || { say "note: going on without a Debian image"; return 0; }
    install -m 644 /dev/null "$work/debian.img"
    cp --sparse=always --reflink=auto "$image" "$work/debian.img"
    export APPPOT_BENCH_IMAGE=$work/debian.img
    for_user "$work/root"
    # It complains about owners and devices, which only root could make.
    as_user "$(command -v debugfs)" -R "rdump / $work/root" "$work/debian.img" >/dev/null 2>&1 ||
        { say "note: going on without a root directory"; return 0; }
    export APPPOT_BENCH_ROOT=$work/root
}

apptainer_namespace() {
    local directory=${XDG_CACHE_HOME:-$HOME/.cache}/apppot/bench/apptainer line
    if command -v apptainer >/dev/null || (($(id -u) != 0)); then return 0; fi
    "$here/apptainer.sh" "$directory" || { say "note: going on without Apptainer"; return 0; }
    exec 7< <("$here/apptainer.sh" --enter "$directory")
    namespace=$!
    read -r -u 7 line || { say "note: going on without Apptainer"; return 0; }
    export APPPOT_BENCH_APPTAINER_NAMESPACE=/proc/$line/ns/mnt
}

# The benchmark itself need not be fast: it is built without the release's long optimisation.
bench() {
    (cd "$repository" && RUSTFLAGS='-C target-feature=+crt-static' CARGO_PROFILE_BENCH_LTO=off \
        CARGO_PROFILE_BENCH_CODEGEN_UNITS=16 CARGO_PROFILE_BENCH_OPT_LEVEL=1 \
        cargo bench --quiet --bench bench --target "$target" --locked "$@")
}

# What the set-up has stirred up settles: the load average forgets it in a minute.
wait_for_quiet() {
    local second
    [ "${BENCH_QUICK:-0}" = 0 ] || return 0
    for ((second = 0; second < 90; second++)); do
        awk -v cpus="$(nproc)" '{ exit $1 > 0.25 * cpus }' /proc/loadavg && return 0
        ((second % 30)) || say "waiting for the machine to become quiet"
        sleep 1
    done
}

need_rust
wish user-mode-linux libstb-dev e2fsprogs cpio
peers
need_test_user
own=${APPPOT_BENCH_OWN_KERNEL:-$("$repository/images/kernel/build.sh")} || say "note: going on without our own kernel"
[ -n "${APPPOT_BENCH_BINARY:-}" ] || build_release
say "building the benchmark"
bench --no-run
work=$(mktemp -d)
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
chmod 755 "$work"
mkdir "$work/bin" "$work/floor"
for_user "$work/job" "$work/home" "$work/runtime"
chmod 700 "$work/runtime"
fast=$work/job
if [ -w /dev/shm ]; then
    fast=$(mktemp -d -p /dev/shm)
    for_user "$fast"
fi
lend
helpers
debian
qemu
apptainer_namespace
APPPOT_BENCH_COMMIT=$(git -C "$repository" rev-parse --short HEAD 2>/dev/null || true)
export APPPOT_BENCH_COMMIT APPPOT_BENCH_WORK=$work APPPOT_BENCH_FAST_JOBDIR=$fast APPPOT_BENCH_USER=$test_user
wait_for_quiet
bench
