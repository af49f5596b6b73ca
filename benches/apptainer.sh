#!/usr/bin/env bash
# Provide Apptainer where the machine's own package sources have none, without installing it.
# usage: benches/apptainer.sh DIRECTORY
#
# Debian has it in unstable only. Through a private apt configuration it comes from the mirror that
# the machine uses anyway, with the C library that it wants, and is unpacked into DIRECTORY. With
# `--enter DIRECTORY`, as root: a mount namespace in which these files lie over the machine's own;
# it lives as long as this process does, which prints its number.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../setup/lib.sh
source "$here/../setup/lib.sh"

suite=unstable
work=

# The mirror of the machine's own package sources, not the one for security updates.
own_mirror() {
    apt-get --print-uris update 2>/dev/null |
        sed -n "s,^'\(.*\)/dists/\([^/]*\)/InRelease'.*,\2 \1,p" |
        awk '$1 !~ /security/ && !seen++ { print $2 }'
}

# Our own sources, lists and cache; of the machine's configuration only how it reaches the network.
private_apt() {
    local apt=$1 mirror
    mirror=$(own_mirror)
    [ -n "$mirror" ] || die "the machine's package sources name no mirror"
    mkdir -p "$apt"/{none,lists/partial,archives/partial}
    : >"$apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources.list"
    {
        apt-config dump Acquire | grep -E '::(Proxy|Proxy-Auto-Detect|https?::[^:]*) ' || true
        printf '%s "%s";\n' \
            Dir::Etc::sourcelist "$apt/sources.list" Dir::Etc::sourceparts "$apt/none" \
            Dir::Etc::main "$apt/none" Dir::Etc::parts "$apt/none" \
            Dir::Etc::preferences "$apt/none/none" Dir::Etc::preferencesparts "$apt/none" \
            Dir::State "$apt" Dir::State::lists "$apt/lists" Dir::State::status "$apt/status" \
            Dir::Cache "$apt" Acquire::Languages none APT::Sandbox::User ""
        # A mirror that lags behind serves signed lists that are some days too old: good enough here.
        echo 'Acquire::Check-Valid-Until "false";'
    } >"$apt/apt.conf"
    export APT_CONFIG=$apt/apt.conf
}

provide() {
    local directory=$1 deb
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    private_apt "$work/apt"
    apt-get -q=2 update >&2 || die "cannot read the package lists of Debian $suite"
    (cd "$work" && apt-get -q=2 download apptainer libc6 >&2) || die "Debian $suite has no apptainer"
    mkdir "$work/files"
    for deb in "$work"/*.deb; do
        dpkg-deb -x "$deb" "$work/files"
    done
    mkdir -p "$(dirname "$directory")"
    rm -rf "$directory"
    mv "$work/files" "$directory"
    chmod 755 "$directory"
}

# A mount is private to the namespace; it vanishes with it.
# shellcheck disable=SC2016 # expanded by the inner shell
enter() {
    exec unshare --mount --propagation private sh -ec '
        for place in usr etc var/lib; do
            mount -t overlay overlay -o "ro,lowerdir=$1/$place:/$place" "/$place"
        done
        echo $$
        exec sleep infinity' sh "$1"
}

if [ "$1" = --enter ]; then enter "$2"; fi
[ -d "$1/usr" ] || provide "$1"
