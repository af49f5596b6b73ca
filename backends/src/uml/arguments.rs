//! The UML kernel's command line, as data.

use crate::descriptors::number;
use crate::network;
use crate::process::descriptor_path;

/// Longest command line, bytes (`COMMAND_LINE_SIZE` in arch/um/include/asm/setup.h).
pub(crate) const COMMAND_LINE_SIZE: usize = 4096;

/// Descriptors that only this hypervisor has.
pub(crate) mod descriptor {
    use crate::descriptors::number::OWN;
    use std::os::fd::RawFd;

    /// The ring.
    pub(crate) const RING: RawFd = OWN;
    /// Guest memory, or the directory for it.
    pub(crate) const MEMORY: RawFd = OWN + 1;
    /// The socket that stands for the host CPU; the kernel does not know of it.
    pub(crate) const CPU_SLOT: RawFd = OWN + 2;
    /// The ring for the job's files.
    pub(crate) const FILES_RING: RawFd = OWN + 3;
}

/// What the guest calls the ends of these descriptors.
pub(crate) mod device {
    /// The link: the first serial line.
    pub(crate) const LINK: &str = "/dev/ttyS0";
    /// The image: the first block device.
    pub(crate) const ROOT: &str = "/dev/ubda";
    /// The ring: the second block device.
    pub(crate) const RING: &str = "/dev/ubdb";
    /// The network: the first vector interface.
    pub(crate) const NETWORK: &str = "vec0";
}

/// The most changes archives: block devices are `ubda` to `ubdp` (`MAX_DEV` in
/// arch/um/drivers/ubd_kern.c), and four are taken: for the root, the ring, and two further disks or
/// the ring for files.
pub(crate) const MAX_CHANGES: usize = 12;

/// What the guest calls the block device of a changes archive.
pub(crate) fn changes_device(index: usize) -> String {
    let letter = char::from(b'c' + index.min(MAX_CHANGES) as u8);
    format!("/dev/ubd{letter}")
}

/// `ubdNrc=`: a changes archive, which the guest only reads.
pub(crate) fn changes(index: usize) -> String {
    let descriptor = number::CHANGES + index as i32;
    format!("ubd{}rc={}", index + 2, descriptor_path(descriptor))
}

/// What the guest calls the ring for files, which comes after so many changes archives.
pub(crate) fn files_ring_device(changes: usize) -> String {
    changes_device(changes)
}

/// `ubdNrc=`: that ring.
pub(crate) fn files_ring(changes: usize) -> String {
    let ring = descriptor_path(descriptor::FILES_RING);
    format!("ubd{}rc={ring}", changes + 2)
}

/// `ubdNc=`: a further disk, which the agent finds by what is on it.
pub(crate) fn disk(changes: usize, index: usize, writable: bool) -> String {
    let disk = descriptor_path(number::DISKS + index as i32);
    let read_only = if writable { "" } else { "r" };
    format!("ubd{}{read_only}c={disk}", changes + index + 2)
}

/// `mem=`: guest memory.
pub(crate) fn memory(bytes: u64) -> String {
    format!("mem={}M", bytes >> 20)
}

/// Only directories that the kernel's process has inherited can be mounted by hostfs: whoever may mount in
/// the guest reaches no other by its name, not even to look whether it is there (patch 0020).
pub(super) fn hostfs() -> String {
    String::from("hostfs=,descriptors")
}

/// `mem_fd=` and `initrdmem=`: guest memory as a file, and where in it the initramfs is.
pub(crate) fn given_memory(offset: u64, len: u64) -> [String; 2] {
    [
        format!("mem_fd={}", descriptor::MEMORY),
        format!("initrdmem={offset},{len}"),
    ]
}

/// `initrd=`.
pub(crate) fn initramfs() -> String {
    format!("initrd={}", descriptor_path(number::INITRAMFS))
}

/// `ubd0…=`: the image. `r`: read-only; `c`: no fcntl lock of UML's own, since the launcher has
/// locked the file and some cluster filesystems have no such locks.
pub(crate) fn root(read_only: bool, overlay: bool) -> String {
    let image = descriptor_path(number::ROOT);
    if overlay {
        return format!("ubd0c={},{image}", descriptor_path(number::OVERLAY));
    }
    format!("ubd0{}c={image}", if read_only { "r" } else { "" })
}

/// `ubd1rc=`: the ring, which the guest only reads.
pub(crate) fn ring() -> String {
    format!("ubd1rc={}", descriptor_path(descriptor::RING))
}

/// `vec0:`: the network (`Documentation/virt/uml/user_mode_linux_howto_v2.rst`).
pub(crate) fn network() -> String {
    let options = [
        String::from("transport=fd"),
        format!("fd={}", number::NETWORK),
        format!("mac={}", network::mac(network::GUEST_MAC)),
        format!("mtu={}", network::MTU),
    ];
    format!("{}:{}", device::NETWORK, options.join(","))
}

/// The first console is the kernel's standard error, where a panic is to be read; the first serial
/// line is the link. The others lead nowhere.
pub(crate) fn lines() -> Vec<String> {
    vec![
        String::from("con=null"),
        String::from("ssl=null"),
        String::from("con0=null,fd:2"),
        format!("ssl0=fd:{}", number::LINK),
    ]
}

/// The management console's directory: `/proc/` exists and nothing can be made in it, so there is
/// none. (A directory that does not exist makes Linux 6.1 panic.)
pub(crate) fn no_management_console() -> Vec<String> {
    vec![String::from("uml_dir=/proc/"), String::from("umid=none")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_function_one_argument() {
        assert_eq!(memory(512 << 20), "mem=512M");
        assert_eq!(initramfs(), "initrd=/proc/self/fd/101");
        assert_eq!(root(true, false), "ubd0rc=/proc/self/fd/102");
        assert_eq!(root(false, false), "ubd0c=/proc/self/fd/102");
        assert_eq!(
            root(false, true),
            "ubd0c=/proc/self/fd/103,/proc/self/fd/102"
        );
        assert_eq!(ring(), "ubd1rc=/proc/self/fd/104");
        assert_eq!(changes(1), "ubd3rc=/proc/self/fd/111");
        assert_eq!(changes_device(1), "/dev/ubdd");
        assert_eq!(files_ring(1), "ubd3rc=/proc/self/fd/107");
        assert_eq!(files_ring_device(1), "/dev/ubdd");
        assert_eq!(disk(12, 1, true), "ubd15c=/proc/self/fd/109");
        assert_eq!(disk(0, 0, false), "ubd2rc=/proc/self/fd/108");
        assert_eq!(
            lines(),
            ["con=null", "ssl=null", "con0=null,fd:2", "ssl0=fd:100"]
        );
    }
}
