#!/usr/bin/env bash
# Build a small Debian as a raw ext4 partition image and print its path.
# usage: images/debian/build.sh
#
# Its release is the machine's own, its packages come from the machine's own mirror. No root and no
# loop device is needed. Kept in the user's cache directory; a second run only prints the path.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../../setup/lib.sh
source "$here/../../setup/lib.sh"

# On top of Debian's essential packages.
packages=(login mount passwd procps sudo systemd-sysv)
size=512M
# Same inputs, same filesystem: its identifiers do not change with every build.
uuid=7d2b7e0a-3f57-4c1c-9d36-0b1f2f4a6a10

cache=${XDG_CACHE_HOME:-$HOME/.cache}/apppot/images
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

# A root filesystem as a tar file. Documentation and translations would be half of it.
# shellcheck disable=SC2016 # mmdebstrap expands $1
bootstrap() {
    local options=() line mode become=()
    choose_mode
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

# fakeroot remembers owners and devices between tar and mke2fs, which reads the directory: unlike a
# loop device that needs no rights, and unlike reading the tar file every mke2fs can do it.
# shellcheck disable=SC2016 # expanded by the inner shell
make_filesystem() {
    mkdir "$work/root"
    fakeroot -- sh -ec '
        tar -C "$1/root" -xpf "$1/root.tar" --numeric-owner
        chmod 755 "$1/root"
        mke2fs -q -t ext4 -F -L apppot -m 0 -U "$3" -E "hash_seed=$3,root_owner=0:0" -d "$1/root" "$1/debian.img" "$2" >&2
    ' sh "$work" "$size" "$uuid"
}

input_key() {
    { cat "${BASH_SOURCE[0]}"; suite; dpkg --print-architecture; } | sha256sum | cut -c1-16
}

build() {
    local from
    need_packages mmdebstrap fakeroot e2fsprogs
    (($(id -u) == 0)) || need_packages uidmap
    from=$(mirror)
    [ -n "$from" ] || die "the machine's package sources name no mirror for $(suite)"
    rm -rf "$cache"/build.* # of a run that was killed: we hold the lock
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    say "building a Debian image (about a minute)"
    bootstrap "$from"
    make_filesystem
    chmod 644 "$work/debian.img"
    mv "$work/debian.img" "$1"
}

main() {
    local image
    image=$cache/debian-$(input_key).img
    if [ ! -e "$image" ]; then
        mkdir -p "$cache"
        exec 9>"$cache/lock"
        flock 9
        [ -e "$image" ] || build "$image"
    fi
    echo "$image"
}

main "$@"
