//! Block devices by what is on them: the root by its identifier, the contract disk by its label.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use apppot_snapshot::uuid;

/// A filesystem that was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// The device's file.
    pub(crate) device: PathBuf,
    /// Its type, as mount(2) takes it.
    pub(crate) filesystem: &'static str,
    /// Its label, without what pads it.
    pub(crate) label: String,
    /// Its identifier as Linux writes it; empty for types whose identifier nobody asks for.
    pub(crate) uuid: String,
}

/// Every volume of the disks that are there, in the order of their names. `root` has `sys` and `dev`.
pub(crate) fn all(root: &Path) -> Vec<Volume> {
    let Ok(entries) = std::fs::read_dir(root.join("sys/class/block")) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    let devices = names.into_iter().map(|name| root.join("dev").join(name));
    devices.filter_map(recognise).collect()
}

/// Bytes at a place of the device; `None` when it is shorter.
fn bytes<const N: usize>(file: &File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

fn recognise(device: PathBuf) -> Option<Volume> {
    let file = File::open(&device).ok()?;
    let (filesystem, label, uuid) = ext4(&file)
        .or_else(|| iso9660(&file))
        .or_else(|| vfat(&file))?;
    Some(Volume {
        device,
        filesystem,
        label,
        uuid,
    })
}

type Found = (&'static str, String, String);

/// `Documentation/filesystems/ext4/super.rst`: `s_magic`, `s_uuid`, `s_volume_name`.
fn ext4(file: &File) -> Option<Found> {
    let superblock: [u8; 256] = bytes(file, 1024)?;
    (superblock[56..58] == [0x53, 0xef]).then(|| {
        let identifier = uuid(&superblock[104..120]);
        ("ext4", text(&superblock[120..136]), identifier)
    })
}

/// ECMA-119, 8.4: the primary volume descriptor.
fn iso9660(file: &File) -> Option<Found> {
    let descriptor: [u8; 72] = bytes(file, 16 * 2048)?;
    (descriptor[..6] == *b"\x01CD001")
        .then(|| ("iso9660", text(&descriptor[40..72]), String::new()))
}

/// The boot sector's extended part, whose place depends on the size of the tables.
fn vfat(file: &File) -> Option<Found> {
    let sector: [u8; 512] = bytes(file, 0)?;
    let label = match () {
        () if sector[510..] != [0x55, 0xaa] => return None,
        () if sector[54..57] == *b"FAT" => &sector[43..54],
        () if sector[82..87] == *b"FAT32" => &sector[71..82],
        () => return None,
    };
    Some(("vfat", text(label), String::new()))
}

fn text(padded: &[u8]) -> String {
    let end = padded.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&padded[..end.unwrap_or(padded.len())]);
    text.trim_end().to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A root with a device of this content.
    pub(crate) fn root_with(name: &str, parts: &[(u64, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sys/class/block").join(name)).unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        let file = File::create(root.path().join("dev").join(name)).unwrap();
        file.set_len(1 << 20).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        root
    }

    #[test]
    fn volumes_are_known_by_their_superblocks() {
        let signature: (u64, &[u8]) = (510, &[0x55, 0xaa]);
        for (parts, filesystem, label, uuid) in [
            (
                vec![
                    (1024 + 56, &b"\x53\xef"[..]),
                    (1024 + 104, b"0123456789abcdef"),
                    (1024 + 120, b"label\0x"),
                ],
                "ext4",
                "label",
                "30313233-3435-3637-3839-616263646566",
            ),
            (
                vec![(32768, b"\x01CD001"), (32808, b"LABEL  ")],
                "iso9660",
                "LABEL",
                "",
            ),
            (
                vec![signature, (43, b"LABEL      FAT12")],
                "vfat",
                "LABEL",
                "",
            ),
            (
                vec![signature, (71, b"LABEL      FAT32")],
                "vfat",
                "LABEL",
                "",
            ),
        ] {
            let root = root_with("sda1", &parts);
            let volume = Volume {
                device: root.path().join("dev/sda1"),
                filesystem,
                label: label.to_owned(),
                uuid: uuid.to_owned(),
            };
            assert_eq!(all(root.path()), [volume]);
        }
        assert_eq!(all(root_with("sda", &[signature]).path()), []);
        assert_eq!(all(Path::new("/no/such")), []);
    }
}
