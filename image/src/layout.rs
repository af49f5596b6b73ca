//! The disk that boots everywhere: GPT (UEFI specification, 5.3) around an ext4 filesystem.
//!
//! ```text
//! MBR, GPT │ 1 MiB: 14 BIOS boot │ 4 MiB: 15 EFI system │ 12 MiB: 1 root … │ copy of the GPT
//! ```
//!
//! The root has number 1 and is the last in place, so that it can grow. BIOSes start the code in the MBR,
//! which loads what is in the BIOS boot partition; UEFI firmware starts a file of the EFI system
//! partition; a launcher that brings its own kernel needs neither.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::{Error, Result, Summary};

/// Where the root filesystem begins, bytes.
pub const ROOT: u64 = 12 << 20;
/// Size of the EFI system partition, bytes.
pub const EFI_SIZE: u64 = ROOT - EFI;
/// The name of the root partition, by which an image is known as one that boots by itself and has the
/// agent installed.
pub const ROOT_NAME: &str = "apppot-root";

const SECTOR: u64 = 512;
const BIOS: u64 = 1 << 20;
const EFI: u64 = 4 << 20;
/// Sectors of the partitions' entries.
const ENTRIES: u64 = 32;

/// What starts the image's kernel.
#[derive(Debug, Clone)]
pub struct Loader {
    /// GRUB's `boot.img`: the first sector.
    pub boot: Vec<u8>,
    /// GRUB's `core.img` for BIOSes.
    pub core: Vec<u8>,
    /// The EFI system partition's filesystem, of [`EFI_SIZE`] bytes at most.
    pub efi: Vec<u8>,
}

/// A partition's entry.
struct Partition {
    /// From 1.
    number: usize,
    /// The type's GUID, as the table stores it.
    kind: [u8; 16],
    name: &'static str,
    /// Bytes, the end not included.
    start: u64,
    end: u64,
}

/// `4f68bce3-e8cd-4db1-96e7-fbcaf984b709`: a root for x86-64 (Discoverable Partitions Specification).
const ROOT_TYPE: [u8; 16] = *b"\xe3\xbc\x68\x4f\xcd\xe8\xb1\x4d\x96\xe7\xfb\xca\xf9\x84\xb7\x09";
/// `21686148-6449-6e6f-744e-656564454649`: for GRUB on BIOSes.
const BIOS_TYPE: [u8; 16] = *b"Hah!IdontNeedEFI";
/// `c12a7328-f81f-11d2-ba4b-00a0c93ec93b`: what UEFI firmware reads.
const EFI_TYPE: [u8; 16] = *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";

/// Writes what is around the filesystem that begins at [`ROOT`] in `file`; the size of the disk, bytes.
///
/// # Errors
/// A part of the loader is too large, or writing fails.
pub fn complete(file: &File, root: &Summary, loader: &Loader) -> Result<u64> {
    let write = |bytes: &[u8], at: u64| {
        file.write_all_at(bytes, at)
            .map_err(Error::io("write the image"))
    };
    let boot = boot_sector(&loader.boot)?;
    let core = first_stage(&loader.core)?;
    if loader.efi.len() as u64 > EFI_SIZE {
        return Err(too_large(
            "the EFI system partition",
            loader.efi.len(),
            EFI_SIZE,
        ));
    }
    let end = (ROOT + root.size).next_multiple_of(1 << 20);
    let size = end + (1 << 20);
    file.set_len(size).map_err(Error::io("write the image"))?;
    let partitions = [
        Partition {
            number: 1,
            kind: ROOT_TYPE,
            name: ROOT_NAME,
            start: ROOT,
            end,
        },
        Partition {
            number: 14,
            kind: BIOS_TYPE,
            name: "bios",
            start: BIOS,
            end: EFI,
        },
        Partition {
            number: 15,
            kind: EFI_TYPE,
            name: "efi",
            start: EFI,
            end: ROOT,
        },
    ];
    let sectors = size / SECTOR;
    let entries = entries(&partitions, &root.uuid);
    let disk = guid(&root.uuid, 0);
    let last = sectors - 1;
    write(&protected(boot, sectors), 0)?;
    write(&header(1, last, 2, sectors, &entries, disk), SECTOR)?;
    write(&entries, 2 * SECTOR)?;
    write(&core, BIOS)?;
    write(&loader.efi, EFI)?;
    write(&entries, (last - ENTRIES) * SECTOR)?;
    write(
        &header(last, 1, last - ENTRIES, sectors, &entries, disk),
        last * SECTOR,
    )?;
    file.sync_data().map_err(Error::io("write the image"))?;
    Ok(size)
}

fn too_large(what: &str, len: usize, most: u64) -> Error {
    Error::Limit(format!("{what} has {len} bytes, {most} is the most"))
}

/// GRUB's first sector, told where the rest is (grub-core/boot/i386/pc/boot.S: `kernel_sector`, and the
/// jump that floppy disks need).
fn boot_sector(boot: &[u8]) -> Result<[u8; 512]> {
    let mut sector: [u8; 512] = boot
        .try_into()
        .map_err(|_| Error::Container(format!("boot.img has {} bytes, not 512", boot.len())))?;
    sector[0x5c..0x64].copy_from_slice(&(BIOS / SECTOR).to_le_bytes());
    sector[0x66..0x68].copy_from_slice(b"\x90\x90");
    Ok(sector)
}

/// GRUB's core, whose first sector is told where the others are (grub-core/boot/i386/pc/diskboot.S).
fn first_stage(core: &[u8]) -> Result<Vec<u8>> {
    if core.len() < 512 || core.len() as u64 > EFI - BIOS {
        return Err(too_large("core.img", core.len(), EFI - BIOS));
    }
    let mut core = core.to_vec();
    core[500..508].copy_from_slice(&(BIOS / SECTOR + 1).to_le_bytes());
    Ok(core)
}

/// The MBR with the code of `boot`, and one partition that tells others of the disk being in use.
fn protected(boot: [u8; 512], sectors: u64) -> [u8; 512] {
    let mut mbr = [0; 512];
    mbr[..440].copy_from_slice(&boot[..440]);
    let entry = &mut mbr[446..462];
    entry[1..8].copy_from_slice(b"\x00\x02\x00\xee\xff\xff\xff");
    entry[8..12].copy_from_slice(&1u32.to_le_bytes());
    let len = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    entry[12..].copy_from_slice(&len.to_le_bytes());
    mbr[510..].copy_from_slice(b"\x55\xaa");
    mbr
}

fn entries(partitions: &[Partition], root: &[u8; 16]) -> Vec<u8> {
    let mut bytes = vec![0; (ENTRIES * SECTOR) as usize];
    for partition in partitions {
        let entry = &mut bytes[(partition.number - 1) * 128..][..128];
        entry[..16].copy_from_slice(&partition.kind);
        entry[16..32].copy_from_slice(&guid(root, partition.number as u8));
        entry[32..40].copy_from_slice(&(partition.start / SECTOR).to_le_bytes());
        entry[40..48].copy_from_slice(&(partition.end / SECTOR - 1).to_le_bytes());
        for (unit, place) in partition.name.encode_utf16().zip(entry[56..].chunks_mut(2)) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
    }
    bytes
}

/// An identifier that follows from the root's: the same source gives the same disk (RFC 9562, version 8).
fn guid(root: &[u8; 16], number: u8) -> [u8; 16] {
    let hash = blake3::hash(&[&root[..], &[number]].concat());
    let mut guid = [0; 16];
    guid.copy_from_slice(&hash.as_bytes()[..16]);
    // The table stores the first three fields with their bytes turned.
    guid[7] = guid[7] & 0x0f | 0x80;
    guid[8] = guid[8] & 0x3f | 0x80;
    guid
}

/// The table's header in sector `own`, for entries from sector `first` on.
fn header(
    own: u64,
    other: u64,
    first: u64,
    sectors: u64,
    entries: &[u8],
    disk: [u8; 16],
) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"EFI PART\x00\x00\x01\x00");
    put(12, &92u32.to_le_bytes());
    put(24, &own.to_le_bytes());
    put(32, &other.to_le_bytes());
    put(40, &(2 + ENTRIES).to_le_bytes());
    put(48, &(sectors - ENTRIES - 2).to_le_bytes());
    put(56, &disk);
    put(72, &first.to_le_bytes());
    put(80, &128u32.to_le_bytes());
    put(84, &128u32.to_le_bytes());
    put(88, &crc32fast::hash(entries).to_le_bytes());
    let sum = crc32fast::hash(&header[..92]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            size: 20 << 20,
            used: 0,
            files: 1,
            uuid: *b"0123456789abcdef",
            text_acls: 0,
        }
    }

    fn loader(core: usize) -> Loader {
        Loader {
            boot: vec![7; 512],
            core: vec![8; core],
            efi: vec![9; 1 << 20],
        }
    }

    /// The table as another implementation reads it.
    #[test]
    fn sfdisk_finds_nothing_wrong() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let size = complete(file.as_file(), &summary(), &loader(100_000)).unwrap();
        assert_eq!(size, (12 + 20 + 1) << 20);
        let sfdisk = |option: &str| {
            let output = std::process::Command::new("sfdisk")
                .arg(option)
                .arg(file.path())
                .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(sfdisk("--verify").contains("No errors detected"));
        let table = sfdisk("--dump");
        for part in [
            "1 : start=       24576, size=       40960, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
            "14 : start=        2048, size=        6144, type=21686148-6449-6E6F-744E-656564454649",
            "15 : start=        8192, size=       16384, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
            "name=\"apppot-root\"",
        ] {
            assert!(table.contains(part), "{part} in {table}");
        }
    }

    #[test]
    fn the_loader_is_told_where_it_is() {
        let file = tempfile::tempfile().unwrap();
        complete(&file, &summary(), &loader(4096)).unwrap();
        let at = |at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        assert_eq!(at(0), [7; 8]);
        assert_eq!(at(0x5c), 2048u64.to_le_bytes());
        assert_eq!(at(BIOS), [8; 8]);
        assert_eq!(at(BIOS + 500), 2049u64.to_le_bytes());
        assert_eq!(at(EFI), [9; 8]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for bad in [
            loader(100),
            loader(4 << 20),
            Loader {
                boot: vec![0; 100],
                ..loader(4096)
            },
            Loader {
                efi: vec![0; 9 << 20],
                ..loader(4096)
            },
        ] {
            assert!(complete(&file, &summary(), &bad).is_err());
        }
    }
}
