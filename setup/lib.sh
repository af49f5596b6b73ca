# shellcheck shell=bash
# What the set-up scripts share. To be sourced by a script that has `set -euo pipefail`.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The account that runs appliances when the set-up itself runs as root: AppPot is made for ordinary
# users, so that is how it is shown and tested.
test_user=${APPPOT_TEST_USER:-apppot-test}

# Where ordinary users do not look: mke2fs, useradd, sfdisk.
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# ---- Packages ---------------------------------------------------------------------------------

have_package() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# as_root COMMAND...: by sudo where that is needed and works without asking in a script, or may ask
# where somebody sits at the terminal.
as_root() {
    if (($(id -u) == 0)); then
        "$@"
    elif [ -t 0 ] && [ -t 2 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

can_be_root() {
    (($(id -u) == 0)) && return 0
    command -v sudo >/dev/null || return 1
    if [ -t 0 ] && [ -t 2 ]; then sudo -v; else sudo -n true 2>/dev/null; fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >&2
}

# need_packages PACKAGE...: installs those that are missing.
need_packages() {
    local package missing=()
    for package in "$@"; do
        have_package "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "this set-up is for Debian; install: ${missing[*]}"
    can_be_root || die "packages are missing and there is no root or sudo to install them; run: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    # The lists may be missing or old: fetch them only when the packages cannot be had with what is there.
    apt_get install -y --no-install-recommends "${missing[@]}" && return 0
    apt_get update
    apt_get install -y --no-install-recommends "${missing[@]}" || die "cannot install ${missing[*]}"
}

# QEMU and its tools. They must be of one version: where the tools have come from another suite than
# QEMU itself would, QEMU comes from there too, or else the tools go back to the release's own.
need_qemu() {
    local tools release
    if have_package qemu-system-x86 && have_package qemu-utils; then return 0; fi
    [ -n "$(candidate qemu-system-x86)" ] || { can_be_root && apt_get update; }
    tools=$(dpkg-query -W -f='${Version}' qemu-utils 2>/dev/null || true)
    release=$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: //p')
    # 'apt-cache show' succeeds, and shows nothing, for a version that it has only heard of.
    if [ -n "$tools" ] && apt-cache madison qemu-system-x86 | grep -qF "| $tools |"; then
        release=$tools
    fi
    can_be_root || die "packages are missing and there is no root or sudo to install them; run: apt-get install qemu-system-x86 qemu-utils"
    say "installing qemu-system-x86 qemu-utils"
    apt_get install -y --no-install-recommends --allow-downgrades \
        "qemu-system-x86=$release" "qemu-utils=$release" || die "cannot install qemu-system-x86"
}

# libvirt's library, which the command is linked with where it is not one static file.
need_libvirt() {
    need_packages libvirt-dev pkgconf
}

# Its daemons, as tests start them. The package libvirt-daemon-system, which would start them at every boot of
# this machine, is not needed.
need_libvirt_daemons() {
    need_libvirt
    need_packages libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients libxml2-utils
}

# ---- Rust -------------------------------------------------------------------------------------

# Cargo.toml has it as rust-version.
least_rust() {
    sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repository/Cargo.toml" | sed -n 1p
}

is_new_enough() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
    [ -n "$version" ] && dpkg --compare-versions "$version" ge "$(least_rust)"
}

# Newest version of PACKAGE that the package sources have, without Debian's revision.
candidate() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p'
}

# The directory of a cargo that is new enough goes to the front of PATH; without one, the
# distribution's is installed: Debian 13 has it as cargo, Debian 12 as cargo-web.
need_rust() {
    local directory suffix
    need_packages gcc libc6-dev ca-certificates
    for directory in "" "${CARGO_HOME:-$HOME/.cargo}/bin" /usr/bin; do
        if is_new_enough "${directory:+$directory/}cargo"; then
            export PATH="${directory:+$directory:}$PATH"
            return 0
        fi
    done
    suffix=$(distribution_rust)
    need_packages "cargo$suffix" "rustc$suffix"
    export PATH="/usr/bin:$PATH"
}

# Which of the distribution's cargo packages is new enough: the end of its name.
distribution_rust() {
    local suffix version
    [ -n "$(candidate cargo)" ] || { can_be_root && apt_get update; }
    for suffix in "" -web; do
        version=$(candidate "cargo$suffix")
        if [ -n "$version" ] && dpkg --compare-versions "$version" ge "$(least_rust)"; then
            echo "$suffix"
            return 0
        fi
    done
    die "no cargo $(least_rust) or newer on PATH, in ~/.cargo/bin or in the package sources; see https://rustup.rs"
}

# The formatter and the linter, of the same kind as cargo.
need_rust_tools() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return 0
    if command -v rustup >/dev/null; then
        rustup component add rustfmt clippy >&2
    elif [ -n "$(distribution_rust)" ]; then
        need_packages rustfmt-web rust-web-clippy
    else
        need_packages rustfmt rust-clippy
    fi
}

# ---- The user that runs appliances ----------------------------------------------------------------

need_test_user() {
    (($(id -u) == 0)) || return 0
    id "$test_user" >/dev/null 2>&1 && return 0
    say "creating the user $test_user"
    command -v useradd >/dev/null || need_packages passwd
    useradd --create-home --shell /bin/bash "$test_user"
}

# as_user COMMAND...: as the test user when we are root, else as ourselves; in the current directory.
as_user() {
    if (($(id -u) == 0)); then
        setpriv --reuid "$test_user" --regid "$test_user" --init-groups --reset-env -- "$@"
    else
        "$@"
    fi
}

# ---- What is built ----------------------------------------------------------------------------

# Where images/kernel/build.sh installs our kernel.
own_kernel() { echo "${XDG_DATA_HOME:-$HOME/.local/share}/apppot/linux"; }

# One static file, whatever the host's C library. Its relative relocations are packed: they are done at every
# start, and as a plain table they were 440 KB to read.
build_release() {
    say "building apppot"
    (cd "$repository" && RUSTFLAGS='-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs' \
        cargo build --quiet --release --target "$target" --locked)
}

# For this machine, with libvirt, which cannot be linked into a static file.
build_installed() {
    say "building apppot with libvirt"
    (cd "$repository" && env -u CARGO_BUILD_TARGET cargo build --quiet --release --features libvirt --locked)
}

installed_binary() { echo "${CARGO_TARGET_DIR:-$repository/target}/release/apppot"; }

target=x86_64-unknown-linux-gnu
release_binary() { echo "${CARGO_TARGET_DIR:-$repository/target}/$target/release/apppot"; }

# Debian's kernel, which is there at once; ours, when it is built.
need_some_kernel() {
    [ -x "$(own_kernel)" ] || need_packages user-mode-linux
}

# Where images that were built for this machine stay.
image_cache() { echo "${XDG_CACHE_HOME:-$HOME/.cache}/apppot/images"; }

# built_once FILE COMMAND...: prints FILE, which COMMAND... FILE makes unless it is there. One build at a time.
built_once() {
    local image=$1
    shift
    if [ ! -e "$image" ]; then
        mkdir -p "$(dirname "$image")"
        exec 9>"$(dirname "$image")/lock"
        flock 9
        [ -e "$image" ] || "$@" "$image"
        exec 9>&-
    fi
    echo "$image"
}
