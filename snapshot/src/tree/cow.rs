//! The view through a copy-on-write file of User-Mode Linux (version 3, arch/um/drivers/cow_user.c):
//! sectors that the guest has written come from it, all others from the image below.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Blocks;
use crate::{Error, Result};

const MAGIC: u32 = 0x4f4f_4f4d;
const PATH_LEN: usize = 4096;
/// magic, version, mtime, size, sector size, alignment, format, path.
const HEADER_LEN: usize = 4 + 4 + 4 + 8 + 4 + 4 + 4 + PATH_LEN;
const SECTOR: u64 = 512;
/// Larger images than this (256 GiB) are not read: their bitmap is kept in memory.
const MAX_BITMAP: u64 = 64 << 20;

/// An image as seen through a copy-on-write file.
pub struct Cow {
    overlay: File,
    base: Box<dyn Blocks>,
    bitmap: Vec<u8>,
    data: u64,
}

impl Cow {
    /// Opens the copy-on-write file at `path`; `image` is the image below, the one that the file
    /// names when it is `None`.
    ///
    /// # Errors
    /// A file cannot be read, is no copy-on-write file, or was made for another image or another
    /// state of it.
    pub fn open(path: &Path, image: Option<&Path>) -> Result<Self> {
        let overlay = File::open(path).map_err(Error::file("open overlay file", path))?;
        let mut header = [0; HEADER_LEN];
        overlay
            .read_exact_at(&mut header, 0)
            .map_err(|_| Error::Overlay("it has no header"))?;
        let header = Header::decode(&header)?;
        let image = image.unwrap_or(&header.image);
        let base = File::open(image).map_err(Error::file("open image", image))?;
        let metadata = base
            .metadata()
            .map_err(Error::file("examine image", image))?;
        // The header has 32 bits of the time.
        if metadata.len() != header.size || metadata.mtime() as u32 != header.mtime {
            return Err(Error::Overlay(
                "the image below is another one, or has changed since",
            ));
        }
        Self::assemble(overlay, Box::new(base), &header)
    }

    fn assemble(overlay: File, base: Box<dyn Blocks>, header: &Header) -> Result<Self> {
        let align = u64::from(header.alignment).max(1);
        let start = (HEADER_LEN as u64).next_multiple_of(align);
        // The kernel's own arithmetic, down to its rounding.
        let len = header
            .size
            .checked_add(SECTOR - 1)
            .ok_or(Error::Overlay("its image is too large"))?
            / (SECTOR * 8);
        if len > MAX_BITMAP {
            return Err(Error::Overlay("its image is too large"));
        }
        let mut bitmap = vec![0; len as usize];
        overlay
            .read_exact_at(&mut bitmap, start)
            .map_err(|_| Error::Overlay("its bitmap is incomplete"))?;
        Ok(Cow {
            overlay,
            base,
            bitmap,
            data: (start + len).next_multiple_of(align),
        })
    }

    fn is_written(&self, sector: u64) -> bool {
        let byte = self.bitmap.get((sector / 8) as usize);
        byte.is_some_and(|byte| byte & 1 << (sector % 8) != 0)
    }
}

impl Blocks for Cow {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let written = self.is_written(at / SECTOR);
            let mut end = (at / SECTOR + 1) * SECTOR;
            let limit = offset + buffer.len() as u64;
            while end < limit && self.is_written(end / SECTOR) == written {
                end += SECTOR;
            }
            let len = (end.min(limit) - at) as usize;
            let part = &mut buffer[done..done + len];
            match written {
                true => self.overlay.read_exact_at(part, self.data + at)?,
                false => self.base.read_at(part, at)?,
            }
            done += len;
        }
        Ok(())
    }
}

/// What a header says.
struct Header {
    mtime: u32,
    size: u64,
    alignment: u32,
    image: PathBuf,
}

impl Header {
    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self> {
        let number = |at: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&bytes[at..at + 4]);
            u32::from_be_bytes(four)
        };
        if number(0) != MAGIC {
            return Err(Error::Overlay(
                "it is no copy-on-write file of User-Mode Linux",
            ));
        }
        if number(4) != 3 || u64::from(number(20)) != SECTOR {
            return Err(Error::Overlay("its version is unknown"));
        }
        if number(24) > 1 << 20 {
            return Err(Error::Overlay("its header is damaged"));
        }
        let path = &bytes[HEADER_LEN - PATH_LEN..];
        let path = path.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(Header {
            mtime: number(8),
            size: u64::from(number(12)) << 32 | u64::from(number(16)),
            alignment: number(24),
            image: PathBuf::from(std::ffi::OsStr::from_bytes(path)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_sectors_come_from_the_overlay() {
        let directory = tempfile::tempdir().unwrap();
        let (image, overlay) = (directory.path().join("image"), directory.path().join("cow"));
        let base: Vec<u8> = (0..16 * 512).map(|at| (at / 512) as u8).collect();
        std::fs::write(&image, &base).unwrap();
        let mtime = std::fs::metadata(&image).unwrap().mtime() as u32;
        let mut bytes = Vec::new();
        for number in [MAGIC, 3, mtime, 0, 16 * 512, 512, 4096, 0] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(image.as_os_str().as_bytes());
        bytes.resize(8192, 0);
        // Sectors 1, 2 and 9.
        bytes.extend_from_slice(&[0b110, 0b10]);
        bytes.resize(12288, 0);
        bytes.resize(12288 + 16 * 512, 0xee);
        std::fs::write(&overlay, &bytes).unwrap();
        let cow = Cow::open(&overlay, None).unwrap();
        for (offset, len) in [(0, 8192), (700, 900), (1536, 10), (512 * 9 + 3, 1000)] {
            let mut read = vec![0; len];
            cow.read_at(&mut read, offset).unwrap();
            for (at, byte) in read.iter().enumerate() {
                let sector = (offset as usize + at) / 512;
                let wanted = match sector {
                    1 | 2 | 9 => 0xee,
                    _ => sector as u8,
                };
                assert_eq!(*byte, wanted, "{offset} {len} {at}");
            }
        }
        std::fs::write(&image, [0; 512]).unwrap();
        assert!(Cow::open(&overlay, None).is_err());
    }
}
