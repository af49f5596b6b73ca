#!/usr/bin/env bash
# Install the command, kernels that have been made, and completions. The command is built for this machine,
# with libvirt; with LIBVIRT=no it is the one static file, without libvirt, for machines of any distribution.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

umask 022
prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}$prefix

# `sudo make install`: built as the user, whose compiler and kernel are used; only copied as root.
if (($(id -u) == 0)) && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
    exec sudo -H -u "$SUDO_USER" PREFIX="$prefix" DESTDIR="${DESTDIR:-}" LIBVIRT="${LIBVIRT:-}" "${BASH_SOURCE[0]}"
fi

# for_target TARGET COMMAND...: as root where we may not make it.
for_target() {
    local place
    place=$(dirname "$1")
    while [ ! -e "$place" ]; do place=$(dirname "$place"); done
    if [ -w "$place" ]; then "${@:2}"; else as_root "${@:2}"; fi
}

# copy MODE FILE TARGET
copy() {
    for_target "$3" install -D -m "$1" "$2" "$3"
    say "installed $3"
}

# The kernel for QEMU has its modules beside it.
qemu_kernel() {
    local from=$1 to=$root/lib/apppot
    copy 644 "$from/vmlinux" "$to/vmlinux"
    for_target "$to/modules" cp -r --no-preserve=mode,ownership "$from/modules" "$to"
}

completions() {
    local shell
    for shell in bash zsh fish; do
        "$binary" completions "$shell" >"$work/$shell"
    done
    copy 644 "$work/bash" "$root/share/bash-completion/completions/apppot"
    copy 644 "$work/zsh" "$root/share/zsh/site-functions/_apppot"
    copy 644 "$work/fish" "$root/share/fish/vendor_completions.d/apppot.fish"
}

need_rust
if [ "${LIBVIRT:-}" = no ]; then
    build_release
    binary=$(release_binary)
else
    need_libvirt
    build_installed
    binary=$(installed_binary)
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
copy 755 "$binary" "$root/bin/apppot"
if [ -x "$(own_kernel)" ]; then
    copy 755 "$(own_kernel)" "$root/lib/apppot/linux"
else
    say "note: AppPot's own kernel is not built; 'make kernel install' installs it, too"
fi
data=$(dirname "$(own_kernel)")
if [ -e "$data/vmlinux" ]; then
    qemu_kernel "$data"
fi
completions
