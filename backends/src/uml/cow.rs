//! UML's copy-on-write files: the header (version 3, arch/um/drivers/cow_user.c). The kernel panics
//! when a file does not belong to its image.

use std::os::unix::ffi::OsStrExt;

use crate::overlay::{number, Below, Empty, Format};

/// The format.
pub(crate) const COW: Format = Format {
    empty,
    header: HEADER_LEN,
    read,
};

const MAGIC: u32 = 0x4f4f_4f4d;
const VERSION: u32 = 3;
const SECTOR: u32 = 512;
/// Data begin at a multiple of this.
const ALIGNMENT: u32 = 4096;
const PATH_LEN: usize = 4096;
/// magic, version, mtime, size, sector size, alignment, format, path.
const HEADER_LEN: usize = 4 + 4 + 4 + 8 + 4 + 4 + 4 + PATH_LEN;

/// A header; one bit a sector, then the data, each at a multiple of the alignment.
fn empty(below: &Below) -> Result<Empty, String> {
    let path = below.path.as_os_str().as_bytes();
    if path.len() >= PATH_LEN {
        return Err(String::from("the image's path is too long for its header"));
    }
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    bytes.extend(MAGIC.to_be_bytes());
    bytes.extend(VERSION.to_be_bytes());
    bytes.extend(below.mtime.to_be_bytes());
    bytes.extend(below.size.to_be_bytes());
    bytes.extend(SECTOR.to_be_bytes());
    bytes.extend(ALIGNMENT.to_be_bytes());
    bytes.extend(0u32.to_be_bytes());
    bytes.extend_from_slice(path);
    bytes.resize(HEADER_LEN, 0);
    let alignment = u64::from(ALIGNMENT);
    let bitmap = below.size.div_ceil(u64::from(SECTOR) * 8);
    let data =
        ((HEADER_LEN as u64).next_multiple_of(alignment) + bitmap).next_multiple_of(alignment);
    Ok((bytes, data + below.size))
}

fn read(start: &[u8]) -> Result<Below, String> {
    let number = |at, len| number(start, at, len);
    let known = number(0, 4) == Some(MAGIC.into()) && number(4, 4) == Some(VERSION.into());
    let path = start.get(HEADER_LEN - PATH_LEN..HEADER_LEN);
    let parts = (number(8, 4), number(12, 8), path);
    let (Some(mtime), Some(size), Some(path)) = parts else {
        return Err(String::from(STRANGE));
    };
    if !known {
        return Err(String::from(STRANGE));
    }
    let path = path.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(Below {
        path: std::ffi::OsStr::from_bytes(path).into(),
        mtime: mtime as u32,
        size,
    })
}

const STRANGE: &str = "it is no copy-on-write file of User-Mode Linux";

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn image(directory: &Path) -> PathBuf {
        let path = directory.join("image");
        std::fs::write(&path, vec![0; 8192]).unwrap();
        path
    }

    #[test]
    fn a_new_file_belongs_to_its_image_and_to_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let (image, overlay) = (image(directory.path()), directory.path().join("overlay"));
        COW.open(&overlay, &image).unwrap();
        COW.open(&overlay, &image).unwrap();
        let other = directory.path().join("other");
        std::fs::copy(&image, &other).unwrap();
        let error = COW.open(&overlay, &other).unwrap_err().to_string();
        assert!(error.contains("was made for"), "{error}");
        let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn a_changed_image_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (image, overlay) = (image(directory.path()), directory.path().join("overlay"));
        COW.open(&overlay, &image).unwrap();
        std::fs::write(&image, vec![1; 4096]).unwrap();
        let error = COW.open(&overlay, &image).unwrap_err().to_string();
        assert!(error.contains("has changed"), "{error}");
    }

    #[test]
    fn another_file_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let image = image(directory.path());
        let notes = directory.path().join("notes");
        std::fs::write(&notes, "precious").unwrap();
        assert!(COW
            .open(&notes, &image)
            .unwrap_err()
            .to_string()
            .contains("no copy-on-write"));
        assert_eq!(std::fs::read(&notes).unwrap(), b"precious");
    }

    #[test]
    fn headers_round_trip() {
        let below = Below {
            mtime: 0x1234_5678,
            size: 0x1_0000_0200,
            path: PathBuf::from("/images/with space"),
        };
        let (bytes, _) = empty(&below).unwrap();
        assert_eq!(read(&bytes), Ok(below));
    }
}
