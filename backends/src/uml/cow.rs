//! UML's copy-on-write files: the header (version 3, arch/um/drivers/cow_user.c), and whether a file
//! belongs to an image. The kernel panics when it does not, so it is examined first.

use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

const MAGIC: u32 = 0x4f4f_4f4d;
const VERSION: u32 = 3;
const SECTOR: u32 = 512;
/// Data begin at a multiple of this.
const ALIGNMENT: u32 = 4096;
const PATH_LEN: usize = 4096;
/// magic, version, mtime, size, sector size, alignment, format, path.
const HEADER_LEN: usize = 4 + 4 + 4 + 8 + 4 + 4 + 4 + PATH_LEN;

/// What a header says about the image below.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    mtime: u32,
    size: u64,
    path: PathBuf,
}

impl Header {
    fn of(image: &Path, metadata: &Metadata) -> Option<Self> {
        (image.as_os_str().len() < PATH_LEN).then(|| Header {
            mtime: mtime(metadata),
            size: metadata.len(),
            path: image.to_owned(),
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(&MAGIC.to_be_bytes());
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&self.mtime.to_be_bytes());
        bytes.extend_from_slice(&self.size.to_be_bytes());
        bytes.extend_from_slice(&SECTOR.to_be_bytes());
        bytes.extend_from_slice(&ALIGNMENT.to_be_bytes());
        bytes.extend_from_slice(&0u32.to_be_bytes());
        bytes.extend_from_slice(self.path.as_os_str().as_bytes());
        bytes.resize(HEADER_LEN, 0);
        bytes
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let number = |at: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&bytes[at..at + 4]);
            u32::from_be_bytes(four)
        };
        if number(0) != MAGIC || number(4) != VERSION {
            return None;
        }
        let path = &bytes[HEADER_LEN - PATH_LEN..];
        let path = path.split(|&byte| byte == 0).next().unwrap_or_default();
        Some(Header {
            mtime: number(8),
            size: u64::from(number(12)) << 32 | u64::from(number(16)),
            path: PathBuf::from(std::ffi::OsStr::from_bytes(path)),
        })
    }
}

/// The header has 32 bits of it, and so compares the kernel.
fn mtime(metadata: &Metadata) -> u32 {
    metadata.mtime() as u32
}

/// Opens the copy-on-write file at `path` for the image at `image`, making it when it is missing.
///
/// # Errors
/// It cannot be opened or made, is no such file, belongs to another image, or the image has
/// changed since.
pub(crate) fn open(path: &Path, image: &Path) -> Result<File> {
    let image = std::fs::canonicalize(image).map_err(Error::file("open image", image))?;
    let metadata = std::fs::metadata(&image).map_err(Error::file("open image", &image))?;
    refuse_special(path)?;
    if !path.exists() {
        create(path, &image, &metadata)?;
    }
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(Error::file("open overlay file", path))?;
    check(&file, path, &image, &metadata)?;
    Ok(file)
}

/// Checks what [`open`] would, without making or opening anything for writing.
///
/// # Errors
/// As [`open`].
pub(crate) fn examine(path: &Path, image: &Path) -> Result<()> {
    refuse_special(path)?;
    if !path.exists() {
        return Ok(());
    }
    let image = std::fs::canonicalize(image).map_err(Error::file("open image", image))?;
    let metadata = std::fs::metadata(&image).map_err(Error::file("open image", &image))?;
    let file = File::open(path).map_err(Error::file("open overlay file", path))?;
    check(&file, path, &image, &metadata)
}

/// Makes an empty one under a temporary name: a half-written header is never seen.
fn create(path: &Path, image: &Path, metadata: &Metadata) -> Result<()> {
    let failed = |error| Error::file("make overlay file", path)(error);
    let header = Header::of(image, metadata).ok_or_else(|| Error::Overlay {
        path: path.to_owned(),
        reason: String::from("the image's path is too long for its header"),
    })?;
    // One bit a sector, then the data, each at a multiple of the alignment.
    let alignment = u64::from(ALIGNMENT);
    let bitmap = metadata.len().div_ceil(u64::from(SECTOR) * 8);
    let data =
        ((HEADER_LEN as u64).next_multiple_of(alignment) + bitmap).next_multiple_of(alignment);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .prefix(".apppot-overlay-")
        .tempfile_in(directory)
        .map_err(failed)?;
    file.as_file()
        .write_all_at(&header.encode(), 0)
        .and_then(|()| file.as_file().set_len(data + metadata.len()))
        .map_err(failed)?;
    file.persist_noclobber(path)
        .map(drop)
        .map_err(|error| failed(error.error))
}

/// Opening a FIFO would wait for its other end.
fn refuse_special(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(Error::Overlay {
            path: path.to_owned(),
            reason: String::from("it is no file"),
        }),
        _ => Ok(()),
    }
}

fn check(file: &File, path: &Path, image: &Path, metadata: &Metadata) -> Result<()> {
    let refuse = |reason: String| {
        Err(Error::Overlay {
            path: path.to_owned(),
            reason,
        })
    };
    let mut bytes = [0; HEADER_LEN];
    let header = match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Header::decode(&bytes),
        Err(_) => None,
    };
    let Some(header) = header else {
        return refuse(String::from(
            "it is no copy-on-write file of User-Mode Linux",
        ));
    };
    let same = std::fs::metadata(&header.path)
        .is_ok_and(|other| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino()));
    if !same {
        return refuse(format!(
            "it was made for '{}', not for '{}'",
            header.path.display(),
            image.display()
        ));
    }
    if header.mtime != mtime(metadata) || header.size != metadata.len() {
        return refuse(String::from("the image has changed since it was made"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(directory: &Path) -> PathBuf {
        let path = directory.join("image");
        std::fs::write(&path, vec![0; 8192]).unwrap();
        path
    }

    #[test]
    fn a_new_file_belongs_to_its_image_and_to_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let (image, overlay) = (image(directory.path()), directory.path().join("overlay"));
        open(&overlay, &image).unwrap();
        open(&overlay, &image).unwrap();
        let other = directory.path().join("other");
        std::fs::copy(&image, &other).unwrap();
        let error = open(&overlay, &other).unwrap_err().to_string();
        assert!(error.contains("was made for"), "{error}");
        let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn a_changed_image_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (image, overlay) = (image(directory.path()), directory.path().join("overlay"));
        open(&overlay, &image).unwrap();
        std::fs::write(&image, vec![1; 4096]).unwrap();
        let error = open(&overlay, &image).unwrap_err().to_string();
        assert!(error.contains("has changed"), "{error}");
    }

    #[test]
    fn another_file_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let image = image(directory.path());
        let notes = directory.path().join("notes");
        std::fs::write(&notes, "precious").unwrap();
        assert!(open(&notes, &image)
            .unwrap_err()
            .to_string()
            .contains("no copy-on-write"));
        assert_eq!(std::fs::read(&notes).unwrap(), b"precious");
    }

    #[test]
    fn headers_round_trip() {
        let header = Header {
            mtime: 0x1234_5678,
            size: 0x1_0000_0200,
            path: PathBuf::from("/images/with space"),
        };
        let bytes: [u8; HEADER_LEN] = header.encode().try_into().unwrap();
        assert_eq!(Header::decode(&bytes), Some(header));
    }
}
