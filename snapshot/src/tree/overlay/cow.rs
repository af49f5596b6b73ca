//! Copy-on-write files of User-Mode Linux (version 3, arch/um/drivers/cow_user.c): a header, a bit a
//! sector, and a place for each sector.

use std::io;

use super::{check, Below, Map, Place};
use crate::tree::Blocks;
use crate::{Error, Result};

/// What a file begins with.
pub(super) const MAGIC: &[u8; 4] = b"OOOM";
const PATH_LEN: usize = 4096;
/// magic, version, mtime, size, sector size, alignment, format, path.
const HEADER_LEN: usize = 4 + 4 + 4 + 8 + 4 + 4 + 4 + PATH_LEN;
const SECTOR: u64 = 512;

/// Which sectors are written.
struct Bitmap {
    bits: Vec<u8>,
    /// Of the disk, bytes.
    size: u64,
    /// Where the first sector's place is.
    data: u64,
}

/// Reads the header and the bitmap.
pub(super) fn read(
    file: &dyn Blocks,
    is_below: &dyn Fn(Below) -> bool,
) -> Result<(Box<dyn Map>, Below)> {
    let mut header = [0; HEADER_LEN];
    file.read_at(&mut header, 0)
        .map_err(|_| Error::Overlay("it has no header"))?;
    let number = |at: usize| {
        let mut four = [0; 4];
        four.copy_from_slice(&header[at..at + 4]);
        u32::from_be_bytes(four)
    };
    if number(4) != 3 || u64::from(number(20)) != SECTOR {
        return Err(Error::Overlay("its version is unknown"));
    }
    let align = u64::from(number(24)).max(1);
    if align > 1 << 20 {
        return Err(Error::Overlay("its header is damaged"));
    }
    let below = Below {
        size: u64::from(number(12)) << 32 | u64::from(number(16)),
        mtime: number(8),
    };
    check(below, is_below)?;
    let start = (HEADER_LEN as u64).next_multiple_of(align);
    // The kernel's own arithmetic, down to its rounding.
    let len = (below.size + SECTOR - 1) / (SECTOR * 8);
    let mut bits = vec![0; len as usize];
    file.read_at(&mut bits, start)
        .map_err(|_| Error::Overlay("its bitmap is incomplete"))?;
    let bitmap = Bitmap {
        bits,
        size: below.size.next_multiple_of(SECTOR),
        data: (start + len).next_multiple_of(align),
    };
    Ok((Box::new(bitmap), below))
}

impl Bitmap {
    fn is_written(&self, sector: u64) -> bool {
        let byte = self.bits.get((sector / 8) as usize);
        byte.is_some_and(|byte| byte & 1 << (sector % 8) != 0)
    }
}

impl Map for Bitmap {
    fn find(&self, offset: u64) -> io::Result<(Place, u64)> {
        /// What is looked for at once.
        const MOST: u64 = 2048;
        if offset >= self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let first = offset / SECTOR;
        let written = self.is_written(first);
        let last = self.size / SECTOR;
        let mut end = first + 1;
        while end < last.min(first + MOST) && self.is_written(end) == written {
            end += 1;
        }
        let place = match written {
            true => Place::Overlay(self.data + offset),
            false => Place::Image,
        };
        Ok((place, end * SECTOR - offset))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::tree::Overlay;

    #[test]
    fn written_sectors_come_from_the_overlay() {
        let directory = tempfile::tempdir().unwrap();
        let (image, overlay) = (directory.path().join("image"), directory.path().join("cow"));
        let base: Vec<u8> = (0..16 * 512).map(|at| (at / 512) as u8).collect();
        std::fs::write(&image, &base).unwrap();
        let mtime = std::fs::metadata(&image).unwrap().mtime() as u32;
        let mut bytes = MAGIC.to_vec();
        for number in [3, mtime, 0, 16 * 512, 512, 4096, 0] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(image.as_os_str().as_bytes());
        bytes.resize(8192, 0);
        // Sectors 1, 2 and 9.
        bytes.extend_from_slice(&[0b110, 0b10]);
        bytes.resize(12288, 0);
        bytes.resize(12288 + 16 * 512, 0xee);
        std::fs::write(&overlay, &bytes).unwrap();
        let cow = Overlay::open(&overlay, &image).unwrap();
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
        assert!(cow.read_at(&mut [0; 2], 8191).is_err());
        std::fs::write(&image, [0; 512]).unwrap();
        assert!(Overlay::open(&overlay, &image).is_err());
    }
}
