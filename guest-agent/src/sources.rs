//! Where a contract can be. Each source answers found, absent or broken; broken is an error, never
//! skipped. Paths derive from a root, so that tests populate a fake one.
//!
//! They are asked in this order, up to the first that has one: the kernel command line, QEMU's fw_cfg,
//! a disk that is labelled as one or as a cloud's, and once the system is up the cloud's metadata service.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use apppot_contract::document::{self, Document};
use apppot_contract::{cmdline, Contract, Pointer};
use nix::mount::{mount, umount2, MntFlags, MsFlags};

use crate::{files, metadata, uplink, volumes};

/// What a source said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing for us.
    Absent,
    /// The whole contract.
    Contract(Box<Contract>),
    /// It comes over the link, whose device this is.
    OnLink(PathBuf),
    /// It is where only the courier comes to.
    Elsewhere(Box<Pointer>),
}

/// The kernel command line.
pub(crate) fn command_line(root: &Path) -> Result<Found, String> {
    let path = root.join("proc/cmdline");
    let line = files::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    match cmdline::decode(&line).map_err(|error| error.to_string())? {
        cmdline::Found::Absent => Ok(Found::Absent),
        cmdline::Found::Here(contract) => Ok(Found::Contract(contract)),
        cmdline::Found::Elsewhere {
            carrier: cmdline::Carrier::Link,
            link,
        } => Ok(Found::OnLink(link)),
    }
}

/// What the machine itself holds beside the command line, which the caller has asked before.
pub(crate) fn documents(root: &Path) -> Result<Found, String> {
    match firmware(root)? {
        Found::Absent => disk(root),
        found => Ok(found),
    }
}

/// The item's file below `/sys` (`Documentation/ABI/testing/sysfs-firmware-qemu_fw_cfg`).
const ITEM: &str = "sys/firmware/qemu_fw_cfg/by_name/opt/org.apppot/contract/raw";

/// QEMU's fw_cfg, which libvirt has too (`<sysinfo type='fwcfg'>`).
fn firmware(root: &Path) -> Result<Found, String> {
    read(&root.join(ITEM), "the firmware's contract")
}

/// The label of a contract disk. All types of filesystems can have it; some in capitals only.
pub(crate) const LABEL: &str = "apppotjob";
/// The file on it.
const FILE: &str = "contract";

/// Disks that hold a document: the label of the filesystem, the file, and whether nothing else can be in it.
/// NoCloud's and OpenStack's are read by others, too.
const DISKS: [(&str, &str, bool); 3] = [
    (LABEL, FILE, true),
    ("cidata", "user-data", false),
    ("config-2", "openstack/latest/user_data", false),
];

/// The first disk that has a document for us.
fn disk(root: &Path) -> Result<Found, String> {
    let volumes = volumes::all(root);
    for (label, file, is_ours) in DISKS {
        let labelled = |volume: &&volumes::Volume| volume.label.eq_ignore_ascii_case(label);
        let Some(volume) = volumes.iter().find(labelled) else {
            continue;
        };
        let what = match is_ours {
            true => format!("the contract disk {}", volume.device.display()),
            false => format!("the user-data on {}", volume.device.display()),
        };
        match (on(volume, file, is_ours, &what)?, is_ours) {
            (Found::Absent, true) => return Err(format!("{what} has no file '{file}'")),
            (Found::Absent, false) => {}
            (found, _) => return Ok(found),
        }
    }
    Ok(Found::Absent)
}

/// The document in a file of the disk. What is on others' disks, and cannot be read, is not ours.
fn on(volume: &volumes::Volume, file: &str, is_ours: bool, what: &str) -> Result<Found, String> {
    let target = Path::new("/run/apppot-disk");
    let mounted = fs::create_dir_all(target).and_then(|()| {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let none: Option<&str> = None;
        mount(
            Some(&volume.device),
            target,
            Some(volume.filesystem),
            flags,
            none,
        )?;
        Ok(())
    });
    match mounted {
        Err(error) if is_ours => return Err(format!("{what}: {error}")),
        Err(_) => return Ok(Found::Absent),
        Ok(()) => {}
    }
    let path = target.join(file);
    let found = match is_ours || begins_as_document(&path) {
        true => read(&path, what),
        false => Ok(Found::Absent),
    };
    let _ = umount2(target, MntFlags::MNT_DETACH);
    found
}

/// Whether user-data is for us: ours has a first line of its own, as everybody's has.
fn is_document(text: &[u8]) -> bool {
    text.starts_with(document::MAGIC.as_bytes())
}

fn begins_as_document(path: &Path) -> bool {
    let mut start = [0; document::MAGIC.len()];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && is_document(&start)
}

/// The user-data of the cloud that this machine is in. Only a running system has the network for it.
pub(crate) fn user_data(root: &Path) -> Result<Found, String> {
    let Some(cloud) = metadata::cloud(root) else {
        return Ok(Found::Absent);
    };
    uplink::wait_for(root);
    match metadata::user_data(root, cloud) {
        Some(text) if is_document(&text) => understood(&text, "the cloud's user-data"),
        _ => Ok(Found::Absent),
    }
}

/// The document in a file, if there is one.
fn read(path: &Path, what: &str) -> Result<Found, String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Absent),
        Err(error) => return Err(format!("{what}: {error}")),
    };
    let mut text = Vec::new();
    // One byte more, which tells too long a document from the longest one.
    let read = file
        .take(document::MAX_LEN as u64 + 1)
        .read_to_end(&mut text);
    read.map_err(|error| format!("{what}: {error}"))?;
    understood(&text, what)
}

/// What a document says.
pub(crate) fn understood(text: &[u8], what: &str) -> Result<Found, String> {
    match document::decode_user_data(text) {
        Ok(Document::Contract(contract)) => Ok(Found::Contract(contract)),
        Ok(Document::Elsewhere(pointer)) => Ok(Found::Elsewhere(pointer)),
        Err(error) => Err(format!("{what}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Result<Found, String> {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("proc/cmdline"), line).unwrap();
        command_line(root.path())
    }

    #[test]
    fn the_command_line_answers_found_absent_or_broken() {
        assert_eq!(found("quiet root=98:0\n"), Ok(Found::Absent));
        assert!(matches!(
            found("quiet apppot.version=1 apppot.id=x\n"),
            Ok(Found::Contract(_))
        ));
        assert_eq!(
            found("apppot.version=1 apppot.link=/dev/ttyS0 apppot.contract=link"),
            Ok(Found::OnLink(PathBuf::from("/dev/ttyS0")))
        );
        let broken = found("apppot.version=1 apppot.nonsense=1").unwrap_err();
        assert!(broken.contains("nonsense"), "{broken}");
        assert!(command_line(Path::new("/no/such")).is_err());
    }

    #[test]
    fn the_firmware_answers_found_absent_or_broken() {
        let root = tempfile::tempdir().unwrap();
        let item = root.path().join(ITEM);
        assert_eq!(documents(root.path()), Ok(Found::Absent));
        fs::create_dir_all(item.parent().unwrap()).unwrap();
        fs::write(&item, "#apppot/1\napppot.id=x\n").unwrap();
        let Found::Contract(contract) = documents(root.path()).unwrap() else {
            panic!("no contract");
        };
        assert_eq!(contract.id, "x");
        for broken in ["", "#apppot/1\napppot.nonsense=1\n", "#apppot/2\n"] {
            fs::write(&item, broken).unwrap();
            let error = documents(root.path()).unwrap_err();
            assert!(error.contains("the firmware's contract"), "{error}");
        }
    }

    #[test]
    fn only_a_disk_with_the_label_is_a_contract_disk() {
        let label = |label: &'static [u8]| {
            let parts: [(u64, &[u8]); 2] = [(1024 + 56, b"\x53\xef"), (1024 + 120, label)];
            documents(volumes::tests::root_with("vdb", &parts).path())
        };
        assert_eq!(label(b"apppot"), Ok(Found::Absent));
        // NoCloud's and OpenStack's may be of anybody.
        assert_eq!(label(b"cidata"), Ok(Found::Absent));
        assert_eq!(label(b"config-2"), Ok(Found::Absent));
        // It is one, and this is no machine to mount it on.
        let broken = label(b"APPPOTJOB").unwrap_err();
        assert!(broken.contains("the contract disk"), "{broken}");
    }
}
