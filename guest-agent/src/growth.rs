//! A root that is smaller than its disk becomes as large as that: on the first boot of a disk that has
//! been made larger, as images are when they are copied to the disks of machines, and when archives are
//! committed into it that need the room.
//!
//! The partition table is GPT (UEFI specification, 5.3), the root its last partition and ext4. No program
//! of the image's is needed: the kernel takes the partition's new length and grows a mounted filesystem.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const SECTOR: u64 = 512;
/// Room that is not worth it, sectors: what images are rounded up to.
const LITTLE: u64 = 4096;
/// Sectors of the entries, and of the copy at the end with its header.
const ENTRIES: u64 = 32;

/// Grows the root, where there is room. Whether there was.
pub(crate) fn root() -> io::Result<bool> {
    let Some((disk, number)) = partition(Path::new("/sys"), fs::metadata("/")?.dev())? else {
        return Ok(false);
    };
    let disk = Path::new("/dev").join(disk);
    let file = File::options().read(true).write(true).open(&disk)?;
    let sectors = io::Seek::seek(&mut &file, io::SeekFrom::End(0))? / SECTOR;
    let Some((first, last)) = grow_table(&file, number, sectors)? else {
        return Ok(false);
    };
    file.sync_all()?;
    tell_kernel(&file, number, first * SECTOR, (last + 1 - first) * SECTOR)?;
    grow_filesystem(&File::open("/")?, (last + 1 - first) * SECTOR / 4096)?;
    Ok(true)
}

/// Grows the ext4 filesystem mounted at `root` to the length of `device`, where that is longer.
pub(crate) fn filesystem(root: &Path, device: &Path) -> io::Result<()> {
    let len = io::Seek::seek(&mut &File::open(device)?, io::SeekFrom::End(0))?;
    let block = nix::sys::statvfs::statvfs(root)?.fragment_size() as u64;
    grow_filesystem(&File::open(root)?, len / block.max(1024))
}

/// The disk and the partition's number of a device; `None` when it is no partition.
fn partition(sys: &Path, device: u64) -> io::Result<Option<(PathBuf, u32)>> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let path = sys.join(format!("dev/block/{major}:{minor}"));
    let Ok(number) = fs::read_to_string(path.join("partition")) else {
        return Ok(None);
    };
    let number = number.trim().parse().map_err(io::Error::other)?;
    let whole = fs::canonicalize(&path)?;
    let disk = whole.parent().and_then(Path::file_name);
    Ok(disk.map(|disk| (PathBuf::from(disk), number)))
}

/// Writes the table of a disk of so many sectors with its last partition, if it is this one, up to the
/// end; its first and last sector. `None` when it is not the last, has no room, or there is no such table.
fn grow_table(file: &File, number: u32, sectors: u64) -> io::Result<Option<(u64, u64)>> {
    let mut header = [0; SECTOR as usize];
    file.read_exact_at(&mut header, SECTOR)?;
    let mut entries = vec![0; (ENTRIES * SECTOR) as usize];
    file.read_exact_at(&mut entries, 2 * SECTOR)?;
    if !is_ours(&header, &entries) {
        return Ok(None);
    }
    let lasts: Vec<u64> = entries.chunks(128).map(|entry| get64(entry, 40)).collect();
    let index = number.saturating_sub(1) as usize;
    let Some(&last) = lasts.get(index) else {
        return Ok(None);
    };
    let end = sectors.saturating_sub(ENTRIES + 2);
    if lasts.iter().any(|other| *other > last) || end < last + LITTLE {
        return Ok(None);
    }
    // Whole blocks of the filesystem.
    let first = get64(&entries[index * 128..], 32);
    let last = first + (end + 1 - first) / 8 * 8 - 1;
    put64(&mut entries[index * 128..], 40, last);
    write_table(file, header, &entries, sectors)?;
    Ok(Some((first, last)))
}

/// A table of the usual shape, undamaged.
fn is_ours(header: &[u8; 512], entries: &[u8]) -> bool {
    let usual = (2, 128 | 128 << 32);
    header.starts_with(b"EFI PART")
        && get32(header, 12) == 92
        && header_sum(header) == get32(header, 16)
        && (get64(header, 72), get64(header, 80)) == usual
        && crc32fast::hash(entries) == get32(header, 88)
}

/// Writes both copies: the one at the end first, so that one is always whole.
fn write_table(file: &File, mut header: [u8; 512], entries: &[u8], sectors: u64) -> io::Result<()> {
    put64(&mut header, 24, 1);
    put64(&mut header, 32, sectors - 1);
    put64(&mut header, 48, sectors - ENTRIES - 2);
    put32(&mut header, 88, crc32fast::hash(entries));
    let sum = header_sum(&header);
    put32(&mut header, 16, sum);
    let mut copy = header;
    put64(&mut copy, 24, sectors - 1);
    put64(&mut copy, 32, 1);
    put64(&mut copy, 72, sectors - ENTRIES - 1);
    let sum = header_sum(&copy);
    put32(&mut copy, 16, sum);
    file.write_all_at(entries, (sectors - ENTRIES - 1) * SECTOR)?;
    file.write_all_at(&copy, (sectors - 1) * SECTOR)?;
    file.sync_all()?;
    file.write_all_at(entries, 2 * SECTOR)?;
    file.write_all_at(&header, SECTOR)?;
    // The protective MBR's partition covers the disk.
    let len = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    file.write_all_at(&len.to_le_bytes(), 446 + 12)
}

fn header_sum(header: &[u8; 512]) -> u32 {
    let mut part = header[..92].to_vec();
    part[16..20].fill(0);
    crc32fast::hash(&part)
}

/// `BLKPG_RESIZE_PARTITION` (linux/blkpg.h): bytes.
fn tell_kernel(disk: &File, number: u32, start: u64, len: u64) -> io::Result<()> {
    #[repr(C)]
    struct Partition {
        start: i64,
        length: i64,
        number: libc::c_int,
        names: [u8; 128],
    }
    #[repr(C)]
    struct Argument {
        op: libc::c_int,
        flags: libc::c_int,
        len: libc::c_int,
        data: *mut Partition,
    }
    const BLKPG: libc::c_ulong = 0x1269;
    const RESIZE_PARTITION: libc::c_int = 3;
    let mut partition = Partition {
        start: start as i64,
        length: len as i64,
        number: number as libc::c_int,
        names: [0; 128],
    };
    let mut argument = Argument {
        op: RESIZE_PARTITION,
        flags: 0,
        len: size_of::<Partition>() as libc::c_int,
        data: &raw mut partition,
    };
    // SAFETY: an open block device, and structures of the kernel's layout that outlive the call.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw mut argument) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `EXT4_IOC_RESIZE_FS` (linux/ext4.h): the filesystem's blocks in all.
fn grow_filesystem(root: &File, blocks: u64) -> io::Result<()> {
    nix::ioctl_write_ptr!(resize, b'f', 16, u64);
    // SAFETY: an open descriptor, and a number that outlives the call.
    unsafe { resize(root.as_raw_fd(), &blocks) }?;
    Ok(())
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn get64(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of 16 MiB whose first partition is its last in place, as sfdisk(8) makes it.
    fn disk() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 << 20).unwrap();
        sfdisk(
            &["--quiet"],
            &file,
            "label: gpt\n1: start=8192, size=22528\n2: start=2048, size=2048\n",
        );
        file
    }

    fn sfdisk(args: &[&str], file: &tempfile::NamedTempFile, input: &str) -> String {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut child = Command::new("sfdisk")
            .args(args)
            .arg(file.path())
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        text + &String::from_utf8_lossy(&output.stderr)
    }

    #[test]
    fn the_last_partition_takes_what_is_free() {
        let file = disk();
        let sectors = (64 << 20) / SECTOR;
        assert_eq!(
            grow_table(file.as_file(), 1, (16 << 20) / SECTOR).unwrap(),
            None
        );
        file.as_file().set_len(64 << 20).unwrap();
        assert_eq!(grow_table(file.as_file(), 2, sectors).unwrap(), None);
        let (first, last) = grow_table(file.as_file(), 1, sectors).unwrap().unwrap();
        assert_eq!((first, (last + 1) % 8), (8192, 0));
        assert!(last > sectors - 64, "{last} of {sectors}");
        // Another implementation finds nothing wrong, at the end neither.
        let verified = sfdisk(&["--verify"], &file, "");
        assert!(verified.contains("No errors detected"), "{verified}");
        assert!(!verified.contains("corrupt"), "{verified}");
        let size = (last + 1 - first).to_string();
        assert!(sfdisk(&["--dump"], &file, "").contains(&size));
        assert_eq!(grow_table(file.as_file(), 1, sectors).unwrap(), None);
    }

    #[test]
    fn a_damaged_table_is_left_alone() {
        let file = disk();
        file.as_file().set_len(64 << 20).unwrap();
        file.as_file().write_all_at(b"x", 2 * SECTOR + 60).unwrap();
        assert_eq!(grow_table(file.as_file(), 1, 64 << 11).unwrap(), None);
        let empty = tempfile::tempfile().unwrap();
        empty.set_len(1 << 20).unwrap();
        assert_eq!(grow_table(&empty, 1, 64 << 11).unwrap(), None);
    }

    #[test]
    fn partitions_are_known_by_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/virtio0/block/vda");
        fs::create_dir_all(disk.join("vda1")).unwrap();
        fs::write(disk.join("vda1/partition"), "1\n").unwrap();
        let block = sys.path().join("dev/block");
        fs::create_dir_all(&block).unwrap();
        std::os::unix::fs::symlink(&disk, block.join("254:0")).unwrap();
        std::os::unix::fs::symlink(disk.join("vda1"), block.join("254:1")).unwrap();
        let found = |minor| partition(sys.path(), libc::makedev(254, minor)).unwrap();
        assert_eq!(found(1), Some((PathBuf::from("vda"), 1)));
        assert_eq!((found(0), found(7)), (None, None));
    }
}
