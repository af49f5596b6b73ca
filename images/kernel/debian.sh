#!/usr/bin/env bash
# Install a kernel for QEMU without installing a kernel on this machine: Debian's own, unpacked from its
# package, with the modules that an appliance needs.
# usage: images/kernel/debian.sh
#
# It goes to ~/.local/share/apppot: vmlinux, and modules/RELEASE beside it. A second run does nothing
# unless the package sources have a newer one.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../../setup/lib.sh
source "$here/../../setup/lib.sh"

# The bus, the link and the disks; what shares directories; filesystems of roots.
modules=(virtio_pci virtio_console virtio_blk virtio-rng virtio_net 9pnet_virtio 9p virtiofs
    overlay ext4 crc32c_generic squashfs erofs xfs btrfs)

data=${XDG_DATA_HOME:-$HOME/.local/share}/apppot
# What this script makes of a package; another number makes it anew.
recipe=2
work=

clean_up() {
    [ -z "$work" ] || rm -rf "$work"
}

# The package that the package sources have as the newest kernel, such as linux-image-6.1.0-56-amd64.
newest_package() {
    apt-cache depends --no-recommends --no-suggests linux-image-amd64 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | sed -n 1p
}

download() {
    (cd "$work" && apt-get -q=2 -o APT::Sandbox::User= download "$1" >&2) || die "cannot download $1"
    dpkg-deb -x "$work/$1"_*.deb "$work/package"
}

# A bzImage holds the kernel compressed, which QEMU's translator unpacks in seconds: done once here. What
# cannot be unpacked is used as it is.
unpack_kernel() {
    local magic program offset
    for program in xz zstd; do
        case $program in
        xz) magic='\xfd7zXZ\x00' ;;
        zstd) magic='\x28\xb5\x2f\xfd' ;;
        esac
        offset=$(LC_ALL=C grep -obUaP "$magic" "$1" | LC_ALL=C tr -d '\0' | LC_ALL=C sed -n '1s/:.*//p') || true
        [ -n "$offset" ] || continue
        # What follows the compressed kernel is no error of interest.
        tail -c "+$((offset + 1))" "$1" | "$program" -dcq >"$2" 2>/dev/null || true
        [ "$(head -c 4 "$2" | tail -c 3)" != ELF ] || return 0
    done
    cp "$1" "$2"
}

# Copies the modules that are needed, with those that they need, as lists of a whole directory name them.
copy_modules() {
    local from=$1 to=$2 name file
    mkdir -p "$to"
    cp "$from/modules.builtin" "$from/modules.order" "$to/"
    for name in "${modules[@]}"; do
        awk -v name="${name//-/_}" '{
            file = $1; sub(/:$/, "", file)
            base = file; sub(/.*\//, "", base); sub(/\.ko.*/, "", base); gsub(/-/, "_", base)
            if (base == name) { sub(/:/, ""); gsub(/ /, "\n"); print }
        }' "$from/modules.dep"
    done | sort -u | while read -r file; do
        [ -z "$file" ] || install -D -m 644 "$from/$file" "$to/$file"
    done
    # What costs a translated processor more than loading the module itself: unpacking it, and checking its
    # signature. Debian's kernels load modules without one, too.
    find "$to" -name '*.ko.xz' -exec xz --decompress {} +
    find "$to" -name '*.ko' -exec objcopy --strip-debug {} \;
}

build() {
    local package=$1 release=$2 base
    work=$(mktemp -d)
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    say "downloading $package"
    download "$package"
    base=$work/package
    [ -d "$base/lib/modules" ] || base=$work/package/usr
    depmod -b "$base" "$release"
    unpack_kernel "$work/package/boot/vmlinuz-$release" "$work/vmlinux"
    copy_modules "$base/lib/modules/$release" "$work/small/lib/modules/$release"
    depmod -b "$work/small" "$release"
    mkdir -p "$data/modules"
    rm -rf "$data/modules/$release"
    cp -r "$work/small/lib/modules/$release" "$data/modules/"
    install -m 644 "$work/vmlinux" "$data/.vmlinux.$$"
    mv "$data/.vmlinux.$$" "$data/vmlinux"
    echo "$package, $recipe" >"$data/vmlinux.package"
}

main() {
    local package
    need_packages kmod xz-utils zstd binutils
    [ -n "$(newest_package)" ] || { can_be_root && apt_get update; }
    package=$(newest_package)
    [ -n "$package" ] || die "the package sources have no linux-image-amd64"
    mkdir -p "$data"
    exec 9>"$data/.vmlinux.lock"
    flock 9
    if [ ! -e "$data/vmlinux" ] || [ "$(cat "$data/vmlinux.package" 2>/dev/null)" != "$package, $recipe" ]; then
        build "$package" "${package#linux-image-}"
    fi
    echo "$data/vmlinux"
}

main "$@"
