//! What a backend can do, and whether that is enough for a machine.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use apppot_contract::cmdline::Carrier;
use apppot_contract::Channel;

use crate::image::ImageKind;
use crate::spec::{Firmware, MachineSpec, Network, Writes};
use crate::{Error, Result};

/// What a backend can do; plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Bytes of kernel command line, all words together.
    pub command_line: usize,
    /// The carrier for what does not fit there.
    pub carrier: Option<Carrier>,
    /// How the job's files reach the guest, the best first.
    pub channels: &'static [Channel],
    /// Kinds of images that it boots.
    pub images: &'static [ImageKind],
    /// Kinds of images for which it has copy-on-write files.
    pub overlay_files: &'static [ImageKind],
    /// Kinds of images that it can write into.
    pub writable: &'static [ImageKind],
    /// The most changes archives.
    pub changes: usize,
    /// The most shared directories.
    pub shares: usize,
    /// The most further disks.
    pub disks: usize,
    /// Whether it has firmware, which starts an image's own boot loader.
    pub firmware: bool,
    /// Whether it has user networking.
    pub user_network: bool,
    /// Whether there is a choice of how the guest's processes are kept apart ([`crate::spec::Seccomp`]).
    pub seccomp: bool,
    /// The most vCPUs.
    pub cpus: u32,
    /// Whether its machines are started by a daemon, which others see and manage them with. Such a backend is
    /// taken only when it is asked for.
    pub managed: bool,
}

/// Checks `spec` against what `backend` can do, before anything is started.
///
/// # Errors
/// What is missing.
pub fn check(backend: &'static str, can: &Capabilities, spec: &MachineSpec) -> Result<()> {
    check_extra(&spec.extra)?;
    let missing = |what: String| {
        Err(Error::Incapable {
            backend,
            what,
            hint: None,
        })
    };
    let kind = spec.image.kind;
    if !can.images.contains(&kind) {
        return missing(format!("boot {kind} images"));
    }
    check_firmware(backend, can, spec)?;
    if matches!(spec.writes, Writes::Overlay(_)) && !can.overlay_files.contains(&kind) {
        return missing(format!("keep the writes to {kind} in an overlay file"));
    }
    if spec.writes == Writes::Image && !can.writable.contains(&kind) {
        return missing(format!("write into {kind}"));
    }
    if !spec.shares.is_empty() && !can.channels.iter().any(|channel| channel.is_live()) {
        return missing(String::from("share host directories"));
    }
    let files = spec.contract.files.as_ref().map(|files| files.channel);
    for channel in files.into_iter().chain(spec.live) {
        if !can.channels.contains(&channel) {
            let channel = channel.word();
            return missing(format!("carry files by the channel '{channel}'"));
        }
    }
    if spec.disks.len() > can.disks {
        let (asked, most) = (spec.disks.len(), can.disks);
        return missing(format!("have {asked} further disks ({most} at most)"));
    }
    if spec.changes.len() > can.changes {
        let (asked, most) = (spec.changes.len(), can.changes);
        return missing(format!("merge {asked} changes archives ({most} at most)"));
    }
    if spec.shares.len() > can.shares {
        let (asked, most) = (spec.shares.len(), can.shares);
        return missing(format!("share {asked} directories ({most} at most)"));
    }
    if spec.network != Network::None && !can.user_network {
        return missing(String::from("connect the guest to the network"));
    }
    if spec.serial_terminal && !can.managed {
        return missing(String::from(
            "show the guest's console to others (--pty-console)",
        ));
    }
    if spec.connect.is_some() && !can.managed {
        return missing(String::from("connect to a daemon (--connect)"));
    }
    if spec.cpus > can.cpus {
        return missing(format!("have {} vCPUs ({} at most)", spec.cpus, can.cpus));
    }
    Ok(())
}

/// Checks that the image can start itself, if it is to.
fn check_firmware(backend: &'static str, can: &Capabilities, spec: &MachineSpec) -> Result<()> {
    let missing = |what: &str, hint| {
        Err(Error::Incapable {
            backend,
            what: what.to_owned(),
            hint: Some(hint),
        })
    };
    if spec.firmware == Firmware::None {
        return Ok(());
    }
    if !can.firmware {
        return missing(
            "start an image's own boot loader (--firmware)",
            "leave out --firmware, or use --backend qemu",
        );
    }
    if spec.image.kind != ImageKind::Disk {
        return missing(
            "start the boot loader of an image that is no whole disk (--firmware)",
            "leave out --firmware, or make a disk of it with 'apppot image import --layout disk'",
        );
    }
    if spec.kernel.is_some() || !spec.extra.is_empty() {
        return missing(
            "choose the kernel or its arguments where the image's own boot loader does \
             (--firmware with --kernel or --extra)",
            "leave out --firmware, or --kernel and --extra",
        );
    }
    Ok(())
}

/// Checks raw words of the user's. Each is one word, and none is ours.
///
/// # Errors
/// The word and what is wrong with it.
fn check_extra(words: &[OsString]) -> Result<()> {
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
        if bytes.iter().any(u8::is_ascii_control) {
            return refuse("it holds a control character");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_words_cannot_change_the_contract() {
        for bad in [
            "a b",
            "--",
            "apppot.uid=0",
            "x\ty",
            "\u{e9}",
            "x\x1by",
            "x\x7f",
        ] {
            assert!(check_extra(&[bad.into()]).is_err(), "{bad}");
        }
        assert!(check_extra(&["loglevel=7".into(), "debug".into()]).is_ok());
    }
}
