//! The UML kernel's command line, as data.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::process::descriptor_path;
use crate::{Error, Result};

/// Longest command line, bytes (`COMMAND_LINE_SIZE` in arch/um/include/asm/setup.h).
pub(crate) const COMMAND_LINE_SIZE: usize = 4096;

/// Descriptors that the kernel inherits; the numbers stand on its command line.
pub(crate) mod descriptor {
    use crate::process::FIRST_DESCRIPTOR;
    use std::os::fd::RawFd;

    /// The link's socket.
    pub(crate) const LINK: RawFd = FIRST_DESCRIPTOR;
    /// The initramfs.
    pub(crate) const INITRAMFS: RawFd = FIRST_DESCRIPTOR + 1;
    /// The image, or the directory that holds the root filesystem.
    pub(crate) const ROOT: RawFd = FIRST_DESCRIPTOR + 2;
    /// The copy-on-write file on top of the image.
    pub(crate) const OVERLAY: RawFd = FIRST_DESCRIPTOR + 3;
    /// The ring.
    pub(crate) const RING: RawFd = FIRST_DESCRIPTOR + 4;
    /// The directory for guest memory.
    pub(crate) const MEMORY: RawFd = FIRST_DESCRIPTOR + 5;
    /// The socket that stands for the host CPU; the kernel does not know of it.
    pub(crate) const CPU_SLOT: RawFd = FIRST_DESCRIPTOR + 6;
    /// How many of these there are at the most.
    pub(crate) const OWN: usize = 7;
    /// The first changes archive; there are at most [`super::MAX_CHANGES`].
    pub(crate) const CHANGES: RawFd = FIRST_DESCRIPTOR + 10;
    /// The first shared directory.
    pub(crate) const SHARES: RawFd = FIRST_DESCRIPTOR + 30;
}

/// What the guest calls the ends of these descriptors.
pub(crate) mod device {
    /// The link: the first serial line.
    pub(crate) const LINK: &str = "/dev/ttyS0";
    /// The image: the first block device.
    pub(crate) const ROOT: &str = "/dev/ubda";
    /// The ring: the second block device.
    pub(crate) const RING: &str = "/dev/ubdb";
}

/// The most changes archives: block devices are `ubda` to `ubdp`, and the first two are taken
/// (`MAX_DEV` in arch/um/drivers/ubd_kern.c).
pub(crate) const MAX_CHANGES: usize = 14;

/// What the guest calls the block device of a changes archive.
pub(crate) fn changes_device(index: usize) -> String {
    let letter = char::from(b'c' + index.min(MAX_CHANGES) as u8);
    format!("/dev/ubd{letter}")
}

/// `ubdNrc=`: a changes archive, which the guest only reads.
pub(crate) fn changes(index: usize) -> String {
    let descriptor = descriptor::CHANGES + index as i32;
    format!("ubd{}rc={}", index + 2, descriptor_path(descriptor))
}

/// `mem=`: guest memory.
pub(crate) fn memory(bytes: u64) -> String {
    format!("mem={}M", bytes >> 20)
}

/// `initrd=`.
pub(crate) fn initramfs() -> String {
    format!("initrd={}", descriptor_path(descriptor::INITRAMFS))
}

/// `ubd0…=`: the image. `r`: read-only; `c`: no fcntl lock of UML's own, since the launcher has
/// locked the file and some cluster filesystems have no such locks.
pub(crate) fn root(read_only: bool, overlay: bool) -> String {
    let image = descriptor_path(descriptor::ROOT);
    if overlay {
        return format!("ubd0c={},{image}", descriptor_path(descriptor::OVERLAY));
    }
    format!("ubd0{}c={image}", if read_only { "r" } else { "" })
}

/// `ubd1rc=`: the ring, which the guest only reads.
pub(crate) fn ring() -> String {
    format!("ubd1rc={}", descriptor_path(descriptor::RING))
}

/// The first console is the kernel's standard error, where a panic is to be read; the first serial
/// line is the link. The others lead nowhere.
pub(crate) fn lines() -> Vec<String> {
    vec![
        String::from("con=null"),
        String::from("ssl=null"),
        String::from("con0=null,fd:2"),
        format!("ssl0=fd:{}", descriptor::LINK),
    ]
}

/// The management console's directory: `/proc/` exists and nothing can be made in it, so there is
/// none. (A directory that does not exist makes Linux 6.1 panic.)
pub(crate) fn no_management_console() -> Vec<String> {
    vec![String::from("uml_dir=/proc/"), String::from("umid=none")]
}

/// Checks raw words of the user's. Each is one word, and none is ours.
///
/// # Errors
/// The word and what is wrong with it.
pub(crate) fn check_extra(words: &[OsString]) -> Result<()> {
    for word in words {
        let refuse = |reason| {
            Err(Error::Extra {
                word: word.to_string_lossy().into_owned(),
                reason,
            })
        };
        let bytes = word.as_bytes();
        if bytes.iter().any(u8::is_ascii_whitespace) {
            return refuse("it holds a space; give each word its own --extra");
        }
        if bytes == b"--" {
            return refuse("it would end the kernel's arguments");
        }
        if bytes.starts_with(apppot_contract::token::PREFIX.as_bytes()) {
            return refuse("words that start with 'apppot.' are AppPot's own");
        }
        if !bytes.is_ascii() {
            return refuse("it is not ASCII");
        }
    }
    Ok(())
}

/// Bytes that `words` take on the command line.
pub(crate) fn length<S: AsRef<OsStr>>(words: &[S]) -> usize {
    words.iter().map(|word| word.as_ref().len() + 1).sum()
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
        assert_eq!(
            lines(),
            ["con=null", "ssl=null", "con0=null,fd:2", "ssl0=fd:100"]
        );
    }

    #[test]
    fn extra_words_cannot_change_the_contract() {
        for bad in ["a b", "--", "apppot.uid=0", "x\ty", "\u{e9}"] {
            assert!(check_extra(&[bad.into()]).is_err(), "{bad}");
        }
        assert!(check_extra(&["loglevel=7".into(), "debug".into()]).is_ok());
    }
}
