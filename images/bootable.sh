#!/usr/bin/env bash
# Build a Debian with a kernel and the services of a machine as a tar archive, of which 'apppot image import --layout
# disk' makes a disk that boots by itself, and print its path.
# usage: images/bootable.sh [INIT]
#
# INIT is the package of the init: systemd-sysv (the default) or sysvinit-core.
# Its release is the machine's own, its packages come from the machine's own mirror. No root and no
# loop device is needed. Kept in the user's cache directory; a second run only prints the path.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../setup/lib.sh
source "$here/../setup/lib.sh"

# On top of Debian's essential packages.
init=${1:-systemd-sysv}
packages=(login mount passwd procps sudo "$init" kmod udev)
case $init in
systemd-sysv) ;;
sysvinit-core) packages+=(initscripts sysv-rc) ;;
*) die "there is no init '$init': systemd-sysv or sysvinit-core" ;;
esac

images=$(image_cache)
work=

clean_up() {
    [ -z "$work" ] || rm -rf "$work"
}

# The release of this machine, such as bookworm.
suite() (
    # shellcheck disable=SC1091
    . /etc/os-release
    [ "${ID:-}" = debian ] || die "this machine is no Debian: the image is built from its package sources"
    echo "${VERSION_CODENAME:?}"
)

# The mirror that the machine's own package sources name for its release.
mirror() {
    apt-get --print-uris update 2>/dev/null |
        sed -n "s,^'\(.*\)/dists/$(suite)/InRelease'.*,\1,p" | sed -n 1p
}

# How the machine's apt reaches the network.
proxies() {
    apt-config dump Acquire | grep -E '::(Proxy|Proxy-Auto-Detect|https?::[^:]*) ' || true
}

# How mmdebstrap becomes root: it is, or is so in a user namespace, or sudo is asked.
choose_mode() {
    if (($(id -u) == 0)); then
        mode=root
    elif unshare --user true 2>/dev/null && grep -q "^$(id -un):" /etc/subuid; then
        mode=unshare
    elif can_be_root; then
        mode=root become=(as_root)
    else
        die "user namespaces cannot be used here, and there is no sudo"
    fi
}

# The kernel from its package, without what would make another initrd, and without the drivers of what
# machines in a rack do not have: most of its size.
add_kernel() {
    local name
    name=$(apt-cache depends --no-recommends --no-suggests linux-image-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | sed -n 1p)
    [ -n "$name" ] || die "the package sources have no linux-image-amd64"
    (cd "$work" && apt-get -q=2 -o APT::Sandbox::User= download "$name" >&2) || die "cannot download $name"
    mkdir "$work/kernel"
    dpkg-deb --fsys-tarfile "$work/$name"_*.deb | tar -C "$work/kernel" -x \
        --exclude='./usr/share' --exclude='*/kernel/sound' --exclude='*/drivers/gpu' --exclude='*/drivers/media' \
        --exclude='*/drivers/infiniband' --exclude='*/drivers/staging' --exclude='*/drivers/net/wireless' --exclude='*/drivers/iio'
    # Since Debian 13 the modules are in /usr/lib.
    if [ -d "$work/kernel/lib/modules" ]; then
        mkdir -p "$work/kernel/usr/lib"
        mv "$work/kernel/lib/modules" "$work/kernel/usr/lib/"
        rmdir "$work/kernel/lib"
    fi
    depmod -b "$work/kernel/usr" "${name#linux-image-}"
}

# A root filesystem as a tar file. Documentation and translations would be half of it.
# shellcheck disable=SC2016 # mmdebstrap expands $1
bootstrap() {
    local options=() line mode become=()
    choose_mode
    options=("--customize-hook=tar -C '$work/kernel' -c . | tar -C \"\$1\" -x --no-same-owner --keep-directory-symlink")
    while read -r line; do
        options+=("--aptopt=$line")
    done < <(proxies)
    "${become[@]}" mmdebstrap --quiet --mode="$mode" --format=tar --variant=essential \
        --include="$(IFS=,; echo "${packages[*]}")" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash user' \
        --customize-hook='echo apppot-debian >"$1/etc/hostname"' \
        --customize-hook='echo 127.0.0.1 localhost apppot-debian >"$1/etc/hosts"' \
        "${options[@]}" "$(suite)" - "$1" >"$work/root.tar"
}

input_key() {
    { cat "${BASH_SOURCE[0]}"; suite; dpkg --print-architecture; } | sha256sum | cut -c1-16
}

build() {
    local from
    need_packages mmdebstrap kmod
    (($(id -u) == 0)) || need_packages uidmap
    from=$(mirror)
    [ -n "$from" ] || die "the machine's package sources name no mirror for $(suite)"
    find "$images" -maxdepth 1 -type d -name "bootable.*" -exec rm -rf {} + # of a run that was killed: we hold the lock
    work=$(mktemp -d "$images/bootable.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    say "building a Debian that boots by itself (about a minute)"
    add_kernel
    bootstrap "$from"
    chmod 644 "$work/root.tar"
    mv "$work/root.tar" "$1"
}

built_once "$images/bootable-$init-$(input_key).tar" build
