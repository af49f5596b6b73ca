//! Copy-on-write files of QEMU (`docs/interop/qcow2.txt`, version 3), as `apppot run` makes them: clusters
//! of 64 KiB, found by two levels of tables; no snapshots to be seen, compression, encryption or other
//! files. QEMU keeps what it does not know of the header, which says what the image below was like.

use std::io;

use super::{check, Below, Map, Place};
use crate::tree::Blocks;
use crate::{Error, Result};

/// What a file begins with.
pub(super) const MAGIC: &[u8; 4] = b"QFI\xfb";
const VERSION: u64 = 3;
const CLUSTER_BITS: u64 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of a second-level table, which is one cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// The header extension that says which image is below (`backends/src/qemu/overlay.rs`).
const BASE: u64 = u32::from_be_bytes(*b"ApPt") as u64;
/// Features that do not matter to who reads: QEMU has been killed while it counted clusters.
const DIRTY: u64 = 1;

/// Bits of a table's entry: where a cluster is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Of a second-level entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Of a second-level entry: it reads as zeros, whatever is there.
const ZEROS: u64 = 1;

/// The second-level tables, by number; none where there is none.
struct Tables {
    tables: Vec<Option<Vec<u64>>>,
    /// Of the disk, bytes.
    size: u64,
    /// Of the file, bytes.
    file_len: u64,
}

/// Reads the header and all tables.
pub(super) fn read(
    file: &dyn Blocks,
    file_len: u64,
    is_below: &dyn Fn(Below) -> bool,
) -> Result<(Box<dyn Map>, Below)> {
    let mut start = vec![0; CLUSTER.min(file_len) as usize];
    file.read_at(&mut start, 0)
        .map_err(|_| Error::Overlay("it has no header"))?;
    let header = Header::decode(&start)?;
    check(header.below, is_below)?;
    if header.size != header.below.size.next_multiple_of(512) {
        return Err(Error::Overlay("it is not of its image's size"));
    }
    let mut tables = Vec::new();
    for entry in table(file, header.table, header.size.div_ceil(CLUSTER * ENTRIES))? {
        tables.push(match entry & OFFSET {
            0 => None,
            offset => Some(table(file, offset, ENTRIES)?),
        });
    }
    let tables = Tables {
        tables,
        size: header.size,
        file_len,
    };
    Ok((Box::new(tables), header.below))
}

/// A table of so many entries.
fn table(file: &dyn Blocks, offset: u64, entries: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0; entries as usize * 8];
    file.read_at(&mut bytes, offset)
        .map_err(|_| Error::Overlay("its tables are incomplete"))?;
    let entry = |entry: &[u8]| number(entry, 0, 8).unwrap_or_default();
    Ok(bytes.chunks_exact(8).map(entry).collect())
}

impl Map for Tables {
    fn find(&self, offset: u64) -> io::Result<(Place, u64)> {
        if offset >= self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (cluster, inside) = (offset / CLUSTER, offset % CLUSTER);
        let len = (CLUSTER - inside).min(self.size - offset);
        let table = self.tables.get((cluster / ENTRIES) as usize);
        let entry = match table.and_then(Option::as_ref) {
            Some(table) => table[(cluster % ENTRIES) as usize],
            None => return Ok((Place::Image, len)),
        };
        if entry & COMPRESSED != 0 {
            let reason = "the overlay file has compressed clusters";
            return Err(io::Error::other(reason));
        }
        if entry & ZEROS != 0 {
            return Ok((Place::Zeros, len));
        }
        match entry & OFFSET {
            0 => Ok((Place::Image, len)),
            place if place >= self.file_len => {
                Err(io::Error::other("the overlay file lacks a cluster"))
            }
            // The file may end within its last cluster; the rest are zeros.
            place => match self.file_len.saturating_sub(place + inside) {
                0 => Ok((Place::Zeros, len)),
                there => Ok((Place::Overlay(place + inside), len.min(there))),
            },
        }
    }
}

/// What a header says.
struct Header {
    /// Of the disk, bytes.
    size: u64,
    /// Where the first-level table is.
    table: u64,
    below: Below,
}

impl Header {
    fn decode(start: &[u8]) -> Result<Self> {
        let field = |at, len| number(start, at, len).ok_or(Error::Overlay("it has no header"));
        if field(4, 4)? != VERSION {
            return Err(Error::Overlay("its version is unknown"));
        }
        let (cluster_bits, encryption, features) = (field(20, 4)?, field(32, 4)?, field(72, 8)?);
        if cluster_bits != CLUSTER_BITS || encryption != 0 || features & !DIRTY != 0 {
            return Err(Error::Overlay(
                "it uses features of the format that AppPot does not",
            ));
        }
        let (size, entries) = (field(24, 8)?, field(36, 4)?);
        if entries < size.div_ceil(CLUSTER * ENTRIES) {
            return Err(Error::Overlay("its header is damaged"));
        }
        let below = below(start).ok_or(Error::Overlay(
            "it does not say what the image below it was like",
        ))?;
        Ok(Header {
            size,
            table: field(40, 8)?,
            below,
        })
    }
}

/// What the header extension of ours says.
fn below(start: &[u8]) -> Option<Below> {
    let mut at = number(start, 100, 4)? as usize;
    loop {
        let (kind, len) = (number(start, at, 4)?, number(start, at + 4, 4)? as usize);
        match kind {
            BASE if len >= 12 => {
                return Some(Below {
                    size: number(start, at + 8, 8)?,
                    mtime: number(start, at + 16, 4)? as u32,
                })
            }
            0 => return None,
            _ => at += 8 + len.next_multiple_of(8),
        }
    }
}

/// The big-endian number of `len` bytes at `at`.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    Some(
        bytes
            .iter()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Overlay;

    const SIZE: u64 = 3 * CLUSTER + 700;

    /// A file above an image of [`SIZE`] bytes: its second cluster is written, the third zeros.
    fn file() -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut put = |at: usize, number: &[u8]| {
            bytes.resize(bytes.len().max(at + number.len()), 0);
            bytes[at..at + number.len()].copy_from_slice(number);
        };
        put(4, &3u32.to_be_bytes());
        put(20, &16u32.to_be_bytes());
        put(24, &SIZE.next_multiple_of(512).to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &CLUSTER.to_be_bytes());
        put(100, &104u32.to_be_bytes());
        put(104, b"other\0\0\0"[..4].as_ref());
        put(108, &3u32.to_be_bytes());
        put(120, b"ApPt");
        put(124, &12u32.to_be_bytes());
        put(128, &SIZE.to_be_bytes());
        put(CLUSTER as usize, &(2 * CLUSTER | 1 << 63).to_be_bytes());
        let second = 2 * CLUSTER as usize;
        put(second + 8, &(3 * CLUSTER | 1 << 63).to_be_bytes());
        put(second + 16, &1u64.to_be_bytes());
        put(3 * CLUSTER as usize, &[0xee; 1000]);
        bytes
    }

    fn open(bytes: Vec<u8>) -> Result<Overlay> {
        let image: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8 | 1).collect();
        let len = bytes.len() as u64;
        Overlay::above((Box::new(bytes), len), (Box::new(image), SIZE))
    }

    impl Blocks for Vec<u8> {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let part = self.get(start..).and_then(|rest| rest.get(..buffer.len()));
            buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    #[test]
    fn written_clusters_come_from_the_overlay() {
        let overlay = open(file()).unwrap();
        let whole = SIZE.next_multiple_of(512) as usize;
        let mut read = vec![0; whole];
        overlay.read_at(&mut read, 0).unwrap();
        for (at, byte) in read.iter().enumerate() {
            let at = at as u64;
            let wanted = match at / CLUSTER {
                1 if at % CLUSTER < 1000 => 0xee,
                1 | 2 => 0,
                _ if at >= SIZE => 0,
                _ => (at / 512) as u8 | 1,
            };
            assert_eq!(*byte, wanted, "{at}");
        }
        assert!(overlay.read_at(&mut [0], whole as u64).is_err());
        assert!(overlay.read_at(&mut [0; 2], u64::MAX).is_err());
    }

    #[test]
    fn what_others_make_is_refused() {
        let damaged = |at: usize, byte| {
            let mut bytes = file();
            bytes[at] = byte;
            open(bytes).map(drop).unwrap_err().to_string()
        };
        for (at, byte, reason) in [
            (0, 0, "no copy-on-write file"),
            (7, 2, "version"),
            (23, 15, "features"),
            (35, 1, "features"),
            (79, 2, "features"),
            (79, 4, "features"),
            (39, 0, "damaged"),
            (30, 0, "size"),
            (120, 0, "does not say"),
            (134, 9, "another one"),
            (40, 1, "incomplete"),
            (CLUSTER as usize + 2, 1, "incomplete"),
        ] {
            let said = damaged(at, byte);
            assert!(said.contains(reason), "{at}: {said}");
        }
        let whole = file();
        for len in (0..200).chain([CLUSTER as usize, 3 * CLUSTER as usize - 1]) {
            assert!(open(whole[..len].to_vec()).is_err(), "{len}");
        }
    }

    #[test]
    fn clusters_that_cannot_be_are_errors() {
        for (at, byte) in [(0, 0x40), (2, 1)] {
            let mut bytes = file();
            bytes[2 * CLUSTER as usize + 8 + at] = byte;
            let overlay = open(bytes).unwrap();
            assert!(overlay.read_at(&mut [0; 8], CLUSTER).is_err(), "{at}");
        }
    }
}
