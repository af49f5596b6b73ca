//! Contents of files: read in blocks, hashed, blocks of zeros left out.

use std::io;
use std::ops::Range;

use crate::codec::MAX_RUNS;
use crate::entry::Content;

/// An aligned block of this many zero bytes is a hole, however the filesystem stores it: so the
/// same file gives the same archive wherever it is read from.
pub const BLOCK: u64 = 1 << 20;

/// A file that can be read.
pub trait Contents {
    /// Length, bytes.
    fn size(&self) -> u64;
    /// Fills `buffer` from `offset`; holes read as zeros.
    ///
    /// # Errors
    /// Reading fails, or the file ends before the buffer is full.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// The next stretch at or after `offset` that may hold something else than zeros; `None` when
    /// there is none.
    ///
    /// # Errors
    /// The file cannot be examined.
    fn data_after(&self, offset: u64) -> io::Result<Option<Range<u64>>>;
}

/// Room for one block, used again for file after file.
pub(crate) struct Buffer(pub(crate) Box<[u8]>);

impl Default for Buffer {
    fn default() -> Self {
        Buffer(vec![0; BLOCK as usize].into())
    }
}

/// Reads a file once and says what is in it.
///
/// # Errors
/// Reading fails, or the file has more holes than are recorded.
pub(crate) fn examine(file: &dyn Contents, buffer: &mut Buffer) -> io::Result<Content> {
    let size = file.size();
    let mut hasher = blake3::Hasher::new();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut data = file.data_after(0)?;
    let mut offset = 0;
    while let Some(range) = &data {
        // Whole blocks before the data are holes.
        offset = offset.max(range.start / BLOCK * BLOCK);
        let len = BLOCK.min(size - offset);
        let block = &mut buffer.0[..len as usize];
        file.read_at(block, offset)?;
        if len < BLOCK || !is_zero(block) {
            hasher.update(block);
            extend(&mut runs, offset, len);
        }
        offset += len;
        if offset >= size {
            break;
        }
        if offset >= range.end {
            data = file.data_after(offset)?;
        }
    }
    tail(file, &mut offset, buffer, &mut hasher, &mut runs)?;
    if runs.len() > MAX_RUNS {
        return Err(io::Error::other("it has too many holes"));
    }
    let dense = runs.iter().map(|(_, len)| len).sum::<u64>() == size;
    Ok(Content {
        size,
        runs: (!dense).then_some(runs),
        hash: *hasher.finalize().as_bytes(),
    })
}

/// The last, short block is data even where the filesystem has a hole there.
fn tail(
    file: &dyn Contents,
    offset: &mut u64,
    buffer: &mut Buffer,
    hasher: &mut blake3::Hasher,
    runs: &mut Vec<(u64, u64)>,
) -> io::Result<()> {
    let size = file.size();
    let start = size / BLOCK * BLOCK;
    if *offset >= size || start == size {
        return Ok(());
    }
    let len = size - start;
    let block = &mut buffer.0[..len as usize];
    file.read_at(block, start)?;
    hasher.update(block);
    extend(runs, start, len);
    *offset = size;
    Ok(())
}

fn extend(runs: &mut Vec<(u64, u64)>, offset: u64, len: u64) {
    match runs.last_mut() {
        Some((start, length)) if *start + *length == offset => *length += len,
        _ => runs.push((offset, len)),
    }
}

/// Whether all bytes are zero; the compiler makes it vector instructions.
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(4096)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory whose filesystem knows of no holes, or of all.
    struct Memory(Vec<u8>, bool);

    impl Contents for Memory {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
            Ok(())
        }
        fn data_after(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
            if !self.1 {
                return Ok((offset < self.size()).then_some(offset..self.size()));
            }
            let page = |at: u64| (at / 4096) as usize * 4096;
            let is_data = |at: &u64| {
                let page = page(*at);
                !is_zero(&self.0[page..self.0.len().min(page + 4096)])
            };
            let first = (offset..self.size()).step_by(4096).find(is_data);
            Ok(first.map(|start| {
                let start = (page(start) as u64).max(offset);
                start..(page(start) as u64 + 4096).min(self.size())
            }))
        }
    }

    #[test]
    fn holes_follow_from_the_bytes_not_from_their_storage() {
        let block = BLOCK as usize;
        for (len, data, runs) in [
            (0, vec![], None),
            (10, vec![], None),
            (block, vec![], Some(vec![])),
            (block + 1, vec![], Some(vec![(BLOCK, 1)])),
            (3 * block, vec![block + 9], Some(vec![(BLOCK, BLOCK)])),
            (
                3 * block,
                vec![0, 3 * block - 1],
                Some(vec![(0, BLOCK), (2 * BLOCK, BLOCK)]),
            ),
            (2 * block, vec![5000, block], None),
        ] {
            let mut bytes = vec![0; len];
            data.iter().for_each(|&at| bytes[at] = 1);
            let read =
                |knows| examine(&Memory(bytes.clone(), knows), &mut Buffer::default()).unwrap();
            assert_eq!(read(true), read(false), "{len} {data:?}");
            assert_eq!(read(true).runs, runs, "{len} {data:?}");
            if runs.is_none() {
                assert_eq!(read(true).hash, *blake3::hash(&bytes).as_bytes());
            }
        }
    }
}
