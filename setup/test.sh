#!/usr/bin/env bash
# Every check and test. End-to-end tests run on real machines, as an ordinary user, with our own
# kernel (built when missing) and with Debian's; or with those that APPPOT_TEST_KERNELS names.
# What is the same with every kernel and hypervisor is gone through once more with each of them in
# CI; elsewhere only what most depends on them.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$repository"

step() { say "== $*"; }

check_scripts() {
    local scripts
    mapfile -t scripts < <(grep -rlE '^#!/(usr/)?bin/(env )?(ba)?sh' --include='*.sh' setup images benches .ci)
    shellcheck -x setup/lib.sh .ci/run "${scripts[@]}"
}

# Other versions of the linter have other opinions: they fail the project's own checks only.
check_source() {
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked --quiet -- ${CI:+-D warnings}
    cargo clippy --package apppot --package apppot-backends --all-targets --features libvirt --locked --quiet -- \
        ${CI:+-D warnings}
}

# Unit tests, doc tests and the tests of the libraries.
test_crates() {
    cargo test --workspace --exclude apppot --locked
    cargo test --package apppot --bins --locked
    cargo test --package apppot-backends --features libvirt --locked --lib -- libvirt:: network::
}

kernels() {
    if [ -n "${APPPOT_TEST_KERNELS:-}" ]; then
        tr ' ' '\n' <<<"$APPPOT_TEST_KERNELS"
    else
        images/kernel/build.sh
        command -v linux.uml
    fi
}

test_end_to_end() {
    local kernel list
    list=$(kernels)
    cargo build --package apppot --locked
    APPPOT=${CARGO_TARGET_DIR:-target}/debug/apppot
    export APPPOT
    build_images
    for kernel in $list; do
        step "end to end with $kernel"
        APPPOT_TEST_KERNEL=$kernel cargo test --package apppot --test e2e --locked -- --test-threads=2 "${skip[@]}"
        # What is about images, the command alone, or another hypervisor is the same with another kernel.
        skip=(--skip build:: --skip config:: --skip doctor:: --skip ec2:: --skip image_results:: --skip import:: --skip layout_disk::
            --skip libvirt:: --skip publish:: --skip qemu:: --skip refusals:: --skip registry:: --skip signatures::
            --skip snap_large:: --skip snap_misuse:: "${briefly[@]}")
    done
}

# Those that take long to build side by side: each machine has one CPU.
build_images() {
    local plot
    APPPOT_TEST_IMAGE=$(images/build.sh)
    images/build.sh python-plot >/dev/null &
    plot=$!
    APPPOT_TEST_FORTRAN=$(images/build.sh fortran)
    APPPOT_TEST_ROOT=$(images/bootable.sh)
    APPPOT_TEST_ROOT_SYSV=$(images/bootable.sh sysvinit-core)
    wait "$plot"
    APPPOT_TEST_PYTHON=$(images/build.sh python-plot)
    export APPPOT_TEST_IMAGE APPPOT_TEST_FORTRAN APPPOT_TEST_PYTHON APPPOT_TEST_ROOT APPPOT_TEST_ROOT_SYSV APPPOT_TEST_USER=$test_user
}

# What a job finds and leaves in its directory, once more where that is copied.
test_channels() {
    local kernel channel
    read -r kernel < <(kernels)
    for channel in link disk; do
        step "files by the channel $channel"
        APPPOT_TEST_CHANNEL=$channel APPPOT_TEST_KERNEL=$kernel \
            cargo test --package apppot --test e2e --locked -- --test-threads=2 files:: jobdir::
    done
}

# What is the same for every hypervisor, once more on machines of QEMU; there is no hardware
# virtualisation to count on, so each takes seconds. Left out: what is about User-Mode Linux's kernel or
# about the command alone. The group `channels` goes through all of them by itself; with each but 9P, the files
# that a job makes are looked at once more, and with virtiofs, by which directories are shared, names and binds.
test_qemu() {
    local kernel virtiofsd channel
    kernel=${APPPOT_TEST_QEMU_KERNEL:-$(images/kernel/debian.sh)}
    virtiofsd=$(find_virtiofsd)
    step "end to end with QEMU and $kernel"
    qemu_tests auto "${everywhere[@]/%/::}"
    [ -n "${CI:-}" ] || return 0
    for channel in link disk virtiofs; do
        step "files by the channel $channel with QEMU"
        qemu_tests "$channel" files::
    done
    qemu_tests virtiofs jobdir::of_any_name binds::
}

# qemu_tests CHANNEL GROUP...
qemu_tests() {
    APPPOT_TEST_BACKEND=qemu APPPOT_TEST_KERNEL=$kernel APPPOT_TEST_CHANNEL=$1 \
        APPPOT_TEST_VIRTIOFSD=$virtiofsd \
        cargo test --package apppot --test e2e --locked -- --test-threads=2 "${@:2}"
}

# Once more on machines of libvirt's: what depends on who starts QEMU.
test_libvirt() {
    local kernel virtiofsd
    virtiofsd=$(find_virtiofsd)
    kernel=${APPPOT_TEST_QEMU_KERNEL:-$(images/kernel/debian.sh)}
    step "end to end with libvirt and $kernel"
    APPPOT_TEST_BACKEND=libvirt APPPOT_TEST_KERNEL=$kernel APPPOT_TEST_VIRTIOFSD=$virtiofsd \
        cargo test --package apppot --features libvirt --test e2e --locked -- --test-threads=2 "${managed[@]}"
}

# Once more on machines of a cloud of our own, each of which boots the image by its own loader: half a minute without
# hardware virtualisation. Left out: what is about this host's directories, hypervisors, terminals and images in files.
test_ec2() {
    step "end to end in a cloud"
    APPPOT_TEST_BACKEND=ec2 cargo test --package apppot --test e2e --locked -- --test-threads=2 --skip asks_first "${remote[@]}"
}

if [ -n "${CI:-}" ]; then
    briefly=()
    everywhere=(arguments binds channels courier ending environment files images jobdir layout_disk network qemu snap status
        streams terminal users workload writes)
    # The whole of `everywhere` passes with libvirt, too, and would take another quarter of an hour.
    managed=(libvirt:: libvirt_daemons:: arguments:: binds:: files:: status:: users:: workload:: network::names_and_connections
        channels::give_identical_trees ending::a_launcher_that_is_killed_leaves_nothing
        ending::a_signal_during_the_boot_ends_it_at_once layout_disk::a_bios_boots_it_and_the_job_is_a_service
        layout_disk::uefi_firmware_boots_it)
    # More of it passes there, half a minute each. Signals, commands that are not there and machines that are killed
    # are in `courier`.
    remote=(arguments::every_byte files::belong files::large status::the_commands_own status::the_time_limit
        streams::streams_are_byte_exact users::sudo_works)
else
    briefly=(--skip arguments:: --skip binds:: --skip environment:: --skip images:: --skip jobdir:: --skip snap:: --skip users::
        --skip workload::)
    everywhere=(courier ending files qemu status)
    managed=(libvirt:: binds:: status:: network::)
    remote=(arguments::every_byte status::the_commands_own files::belong)
fi

# A virtiofsd that does without privileges: the distribution's (Debian 13), else built from its source.
find_virtiofsd() {
    local built=${XDG_CACHE_HOME:-$HOME/.cache}/apppot/virtiofsd
    if [ -n "$(candidate virtiofsd)" ]; then
        need_packages virtiofsd
        dpkg -L virtiofsd | grep -m 1 '/virtiofsd$'
        return
    fi
    if [ ! -x "$built/bin/virtiofsd" ]; then
        need_packages libcap-ng-dev libseccomp-dev
        cargo install --quiet --locked --root "$built" virtiofsd --version 1.13.2 >&2
    fi
    echo "$built/bin/virtiofsd"
}

# The tests start a registry of their own; where the package is new, the system's is not to stay.
need_registry() {
    have_package docker-registry && return
    need_packages docker-registry
    if command -v systemctl >/dev/null; then
        as_root systemctl disable --now docker-registry >&2 || true
    fi
}

need_rust
need_rust_tools
need_packages shellcheck cpio procps passt mmdebstrap iproute2 user-mode-linux squashfs-tools erofs-utils fdisk e2fsprogs util-linux zstd xz-utils bzip2 libcap2-bin attr minisign skopeo umoci grub-common grub-pc-bin grub-efi-amd64-bin mtools ovmf kmod
need_registry
need_qemu
need_libvirt_daemons
need_test_user
step "scripts"
check_scripts
step "source"
check_source
step "crates"
APPPOT_TEST_MOTO=$(setup/moto.sh)
export APPPOT_TEST_MOTO
test_crates
test_end_to_end
test_channels
test_qemu
test_ec2
test_libvirt
