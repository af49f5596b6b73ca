//! What an appliance image is: found by looking at it, never by its name.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::partition;
use crate::stamp::Stamp;
use crate::{Error, Result};

/// An appliance that exists and has been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The file or directory.
    pub path: PathBuf,
    /// What it is.
    pub kind: ImageKind,
    /// Type of the root filesystem, as mount(2) takes it; `None` for a directory.
    pub filesystem: Option<&'static str>,
    /// Number of the root partition, for a whole disk.
    pub partition: Option<u32>,
    /// Where the root filesystem begins, bytes.
    pub start: u64,
    /// Whether it was made to boot by itself, with the agent as a service (layout disk).
    pub boots_itself: bool,
    /// The file that was looked at, and its state then; `None` for a directory.
    pub stamp: Option<Stamp>,
}

/// Kinds of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A raw file that holds one writable filesystem.
    Partition,
    /// A raw file with a partition table.
    Disk,
    /// A file that holds a compressed filesystem, which can only be read.
    ReadOnly,
    /// A directory that holds a root filesystem.
    Directory,
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageKind::Partition => "a raw partition image",
            ImageKind::Disk => "a raw disk image",
            ImageKind::ReadOnly => "a squashfs or erofs image",
            ImageKind::Directory => "a directory",
        })
    }
}

impl Image {
    /// Looks at `path`.
    ///
    /// # Errors
    /// It is missing, unreadable, empty, or holds no Linux root filesystem.
    pub fn open(path: &Path) -> Result<Self> {
        // Opening a FIFO would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(Error::file("open image", path))?;
        if metadata.is_dir() {
            return Self::directory(path);
        }
        let no_image = |reason: &str| Error::NoImage {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let special = std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type());
        if !metadata.is_file() && !special {
            return Err(no_image("it is neither a file nor a directory"));
        }
        let file = File::open(path).map_err(Error::file("open image", path))?;
        let stamp = Stamp::of(&file).map_err(Error::file("examine", path))?;
        if metadata.is_file() && metadata.len() == 0 {
            return Err(no_image("it is empty"));
        }
        let found = look(&file).map_err(Error::file("read image", path))?;
        if let Ok(image) = found.as_ref() {
            let end = end(&file, image).map_err(Error::file("read image", path))?;
            if metadata.is_file() && end > metadata.len() {
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                return Err(no_image(&format!(
                    "it is truncated: its {} ends at {:.1} MiB, the file at {:.1} MiB",
                    image.filesystem.unwrap_or("filesystem"),
                    mib(end),
                    mib(metadata.len())
                )));
            }
        }
        found
            .map(|found| Image {
                path: path.to_owned(),
                stamp: Some(stamp),
                ..found
            })
            .map_err(|reason| no_image(&reason))
    }

    fn directory(path: &Path) -> Result<Self> {
        let has = |name: &str| path.join(name).symlink_metadata().is_ok();
        if !has("bin") && !has("usr") && !has("etc") {
            return Err(Error::NoImage {
                path: path.to_owned(),
                reason: String::from("the directory has none of bin, usr and etc"),
            });
        }
        Ok(Image {
            path: path.to_owned(),
            kind: ImageKind::Directory,
            filesystem: None,
            partition: None,
            start: 0,
            boots_itself: false,
            stamp: None,
        })
    }

    /// Fails when `file`, opened again by the image's path, is not what was looked at.
    ///
    /// # Errors
    /// [`Error::Replaced`].
    pub fn check(&self, file: &File) -> Result<()> {
        self.stamp
            .map_or(Ok(()), |stamp| stamp.check(file, &self.path))
    }
}

/// What was found, yet without path and stamp.
type Found = std::result::Result<Image, String>;

fn found(kind: ImageKind, filesystem: &'static str) -> Image {
    Image {
        path: PathBuf::new(),
        kind,
        filesystem: Some(filesystem),
        partition: None,
        start: 0,
        boots_itself: false,
        stamp: None,
    }
}

fn look(file: &File) -> io::Result<Found> {
    if let Some(name) = filesystem_at(file, 0)? {
        let kind = match name {
            "squashfs" | "erofs" => ImageKind::ReadOnly,
            _ => ImageKind::Partition,
        };
        return Ok(Ok(found(kind, name)));
    }
    let table = partition::read(file)?;
    let Some(table) = table else {
        return Ok(Err(String::from(
            "it holds neither a filesystem that is known nor a partition table",
        )));
    };
    let mut roots = Vec::new();
    for entry in &table {
        if let Some(name) = filesystem_at(file, entry.start)? {
            roots.push((entry, name));
        }
    }
    // The table's own word first, then the active partition, then the largest.
    roots.sort_by_key(|(entry, _)| (entry.is_root, entry.active, entry.len));
    Ok(match roots.last() {
        Some((entry, name)) => Ok(Image {
            partition: Some(entry.number),
            start: entry.start,
            boots_itself: entry.name == BOOTS_ITSELF,
            ..found(ImageKind::Disk, name)
        }),
        None => Err(format!(
            "none of its {} partitions holds a Linux filesystem that is known",
            table.len()
        )),
    })
}

/// The name of the root partition of such an image (`apppot_image::layout::ROOT_NAME`).
const BOOTS_ITSELF: &str = "apppot-root";

/// Offset, bytes and name of each filesystem's magic number.
const MAGIC: &[(u64, &[u8], &str)] = &[
    (1080, b"\x53\xef", "ext4"),
    (0, b"hsqs", "squashfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
];

/// The filesystem that begins at byte `start` of `file`.
fn filesystem_at(file: &File, start: u64) -> io::Result<Option<&'static str>> {
    for (offset, magic, name) in MAGIC {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..magic.len()];
        let Some(at) = start.checked_add(*offset) else {
            continue;
        };
        match file.read_exact_at(bytes, at) {
            Ok(()) if bytes == *magic => return Ok(Some(name)),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The byte in `file` at which the root filesystem ends by its own account; 0 where that is not known.
/// (`Documentation/filesystems/ext4/super.rst`; `struct squashfs_super_block` and `struct erofs_super_block` of Linux.)
fn end(file: &File, image: &Image) -> io::Result<u64> {
    let mut block = [0; 2048];
    match file.read_exact_at(&mut block, image.start) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
        read => read?,
    }
    let long = |at: usize| u64::from_le_bytes(*block[at..].first_chunk().unwrap_or(&[0; 8]));
    let word = |at: usize| long(at) & u64::from(u32::MAX);
    let len = match image.filesystem {
        Some("ext4") => {
            let is_large = word(1024 + 96) & 0x80 != 0;
            let high = if is_large { word(1024 + 336) << 32 } else { 0 };
            (word(1024 + 4) | high).saturating_mul(1024 << word(1024 + 24).min(6))
        }
        Some("squashfs") => long(40),
        Some("erofs") => word(1024 + 36) << block[1024 + 12].min(16),
        _ => return Ok(0),
    };
    Ok(image.start.saturating_add(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(parts: &[(u64, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        for (offset, bytes) in parts {
            file.as_file().write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    #[test]
    fn filesystems_are_known_by_their_magic_number() {
        for (offset, magic, kind, name) in [
            (1080, &b"\x53\xef"[..], ImageKind::Partition, "ext4"),
            (0, b"hsqs", ImageKind::ReadOnly, "squashfs"),
            (1024, b"\xe2\xe1\xf5\xe0", ImageKind::ReadOnly, "erofs"),
        ] {
            let file = file_with(&[(offset, magic)]);
            let image = Image::open(file.path()).unwrap();
            assert_eq!((image.kind, image.filesystem), (kind, Some(name)));
        }
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_reason() {
        let reason = |path: &Path| Image::open(path).unwrap_err().to_string();
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(reason(empty.path()).contains("empty"));
        assert!(reason(file_with(&[]).path()).contains("neither a filesystem"));
        assert!(reason(Path::new("/dev/null")).contains("neither a file nor"));
        assert!(reason(Path::new("/no/such")).contains("cannot open image"));
        let directory = tempfile::tempdir().unwrap();
        assert!(reason(directory.path()).contains("none of bin"));
    }

    #[test]
    fn what_is_shorter_than_its_filesystem_is_truncated() {
        let ext4: [(u64, &[u8]); 3] = [(1080, b"\x53\xef"), (1024 + 24, &[2]), (1024 + 4, &[0, 1])];
        Image::open(file_with(&ext4).path()).unwrap();
        let squashfs: [(u64, &[u8]); 2] = [(0, b"hsqs"), (40, &[1, 0, 16])];
        let erofs: [(u64, &[u8]); 3] = [
            (1024, b"\xe2\xe1\xf5\xe0"),
            (1024 + 12, &[12]),
            (1024 + 36, &[1, 1]),
        ];
        let longer = [ext4[0], ext4[1], (1024 + 4, &[1, 1])];
        for parts in [&longer[..], &squashfs, &erofs] {
            let error = Image::open(file_with(parts).path()).unwrap_err();
            assert!(error.to_string().contains("truncated"), "{error}");
        }
    }

    #[test]
    fn the_root_partition_of_a_disk_is_found_through_its_table() {
        let mut mbr = [0; 512];
        mbr[510..].copy_from_slice(b"\x55\xaa");
        for (slot, active, start) in [(0, 0, 16u32), (1, 0x80, 32)] {
            let entry = &mut mbr[446 + slot * 16..][..16];
            entry[0] = active;
            entry[4] = 0x83;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..16].copy_from_slice(&16u32.to_le_bytes());
        }
        let file = file_with(&[
            (0, &mbr),
            (16 * 512 + 1080, b"\x53\xef"),
            (32 * 512 + 1080, b"\x53\xef"),
        ]);
        let image = Image::open(file.path()).unwrap();
        assert_eq!((image.kind, image.partition), (ImageKind::Disk, Some(2)));
    }
}
