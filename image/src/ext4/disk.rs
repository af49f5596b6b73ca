//! Blocks of the filesystem: given out one after the other, and written as they come.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{fallocate, FallocateFlags};

use super::extents::{self, Extent};
use super::geometry::{free_from, free_run, BLOCK, MAX_BLOCKS};
use crate::{Error, Result};

/// Bytes that are read and written at once.
const CHUNK: usize = 1 << 20;

/// The file that becomes the image.
#[derive(Debug)]
pub(crate) struct Disk {
    file: File,
    /// Where the filesystem begins, bytes.
    start: u64,
    /// The first block that has not been given out.
    next: u32,
    /// Blocks that were given back: first, number.
    freed: Vec<(u32, u32)>,
    /// Most blocks that may be given out.
    limit: u32,
}

fn writing(error: io::Error) -> Error {
    Error::io("write the image")(error)
}

impl Disk {
    /// A filesystem of at most `size` bytes from byte `start` of `file`, where everything is zero.
    pub(crate) fn new(file: File, start: u64, size: Option<u64>) -> Self {
        let most = size.map_or(u64::MAX, |size| size / BLOCK);
        Disk {
            file,
            start,
            next: free_from(0),
            freed: Vec::new(),
            limit: most.min(MAX_BLOCKS.into()) as u32,
        }
    }

    /// The first block that has not been given out.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    pub(super) fn freed(&self) -> &[(u32, u32)] {
        &self.freed
    }

    /// Gives out up to `wanted` blocks that lie together.
    fn some(&mut self, wanted: u32) -> Result<(u32, u32)> {
        let first = free_from(self.next);
        let count = wanted.min(free_run(first));
        self.next = first.saturating_add(count);
        if self.next > self.limit {
            return Err(self.too_small(self.next));
        }
        Ok((first, count))
    }

    /// The error that `blocks` blocks and what belongs to them do not fit.
    pub(super) fn too_small(&self, blocks: u32) -> Error {
        // Bitmaps, inodes and a journal come to the contents.
        let needed = (u64::from(blocks) + u64::from(blocks) / 32 + 8192) * BLOCK;
        let size = u64::from(self.limit) * BLOCK;
        match self.limit {
            MAX_BLOCKS => Error::Limit(format!("more than {size} bytes do not fit in an image")),
            _ => Error::Size { needed, size },
        }
    }

    /// Gives out `count` blocks that lie together, and leaves out what is too small for them.
    pub(super) fn together(&mut self, count: u32) -> Result<u32> {
        loop {
            let before = self.next;
            let (first, got) = self.some(count)?;
            if got == count {
                return Ok(first);
            }
            self.freed.push((first, got));
            debug_assert!(self.next > before, "free runs are not empty");
        }
    }

    /// Gives out `count` blocks, as extents of a file of nothing else.
    pub(super) fn blocks(&mut self, count: u32) -> Result<Vec<Extent>> {
        let (mut given, mut logical) = (Vec::new(), 0);
        while logical < count {
            let (physical, len) = self.some(count - logical)?;
            let mut at = 0;
            // An extent has its own limit.
            while at < len {
                let part = (len - at).min(16384);
                let (logical, physical) = (logical + at, physical + at);
                let len = part;
                extents::push(
                    &mut given,
                    Extent {
                        logical,
                        len,
                        physical,
                    },
                );
                at += part;
            }
            logical += len;
        }
        Ok(given)
    }

    /// Takes the blocks of a file that is no more, so that nothing of it stays in the image.
    pub(crate) fn free(&mut self, extents: &[Extent]) -> Result<()> {
        for extent in extents {
            self.freed.push((extent.physical, extent.len));
            let (offset, len) = (self.offset(extent.physical), u64::from(extent.len) * BLOCK);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if fallocate(&self.file, flags, offset, len).is_err() {
                self.zero(offset, len)?;
            }
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let zeros = vec![0; CHUNK.min(len as usize)];
        let mut at = 0;
        while at < len {
            let part = (len - at).min(zeros.len() as u64);
            let written = self.file.write_all_at(&zeros[..part as usize], offset + at);
            written.map_err(writing)?;
            at += part;
        }
        Ok(())
    }

    /// Reads a file of `size` bytes back.
    pub(crate) fn read(&self, extents: &[Extent], size: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        for extent in extents {
            let start = size.min((u64::from(extent.logical) * BLOCK) as usize);
            let len = (size - start).min((u64::from(extent.len) * BLOCK) as usize);
            let read = self
                .file
                .read_exact_at(&mut bytes[start..start + len], self.offset(extent.physical));
            read.map_err(Error::io("read the image"))?;
        }
        Ok(bytes)
    }

    fn offset(&self, block: u32) -> u64 {
        self.start + u64::from(block) * BLOCK
    }

    /// Writes whole blocks to a place that has been given out, or bytes into one.
    pub(super) fn write_at(&self, block: u32, within: u64, bytes: &[u8]) -> Result<()> {
        let offset = self.offset(block) + within;
        self.file.write_all_at(bytes, offset).map_err(writing)
    }

    /// Writes one block to the next free place.
    pub(super) fn write_block(&mut self, bytes: &[u8; BLOCK as usize]) -> Result<u32> {
        let (block, _) = self.some(1)?;
        self.write_at(block, 0, bytes)?;
        Ok(block)
    }

    /// Writes whole blocks to the next free places, as blocks of a file from its block `logical` on.
    fn write(
        &mut self,
        extents: &mut Vec<Extent>,
        mut logical: u32,
        mut bytes: &[u8],
    ) -> Result<()> {
        while !bytes.is_empty() {
            let (physical, len) = self.some((bytes.len() as u64 / BLOCK) as u32)?;
            let (part, rest) = bytes.split_at((u64::from(len) * BLOCK) as usize);
            self.write_at(physical, 0, part)?;
            extents::push(
                extents,
                Extent {
                    logical,
                    len,
                    physical,
                },
            );
            logical += len;
            bytes = rest;
        }
        Ok(())
    }

    /// Gives the filesystem its size.
    pub(super) fn set_blocks(&self, blocks: u32) -> Result<()> {
        let end = self.offset(blocks);
        let len = self.file.metadata().map_err(writing)?.len();
        match len < end {
            true => self.file.set_len(end).map_err(writing),
            false => Ok(()),
        }
    }

    /// Everything is on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(writing)
    }
}

/// Writes the content of one file, from its beginning to its end. Blocks of zeros become holes.
#[derive(Debug, Default)]
pub(crate) struct ContentWriter {
    extents: Vec<Extent>,
    /// Bytes that wait, and where they belong, a multiple of a block.
    waiting: Vec<u8>,
    at: u64,
}

impl ContentWriter {
    /// Goes on at `offset`, which is not before what has been written.
    pub(crate) fn seek(&mut self, disk: &mut Disk, offset: u64) -> Result<()> {
        let block = offset / BLOCK * BLOCK;
        let end = self.at + self.waiting.len() as u64;
        if block >= end.next_multiple_of(BLOCK) {
            self.flush(disk)?;
            self.at = block;
        }
        let len = (offset - self.at) as usize;
        self.waiting.resize(len.max(self.waiting.len()), 0);
        Ok(())
    }

    /// Takes `len` bytes from `reader`.
    pub(crate) fn take(&mut self, disk: &mut Disk, reader: &mut dyn Read, len: u64) -> Result<()> {
        let mut left = len;
        while left > 0 {
            let room = CHUNK - self.waiting.len().min(CHUNK - 1);
            let part = left.min(room as u64) as usize;
            let start = self.waiting.len();
            self.waiting.resize(start + part, 0);
            let read = reader.read_exact(&mut self.waiting[start..]);
            read.map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Error::Truncated,
                _ => Error::io("read the source")(error),
            })?;
            left -= part as u64;
            if self.waiting.len() >= CHUNK {
                self.flush(disk)?;
            }
        }
        Ok(())
    }

    /// Writes what waits: stretches of blocks that are not all zero.
    fn flush(&mut self, disk: &mut Disk) -> Result<()> {
        let block = BLOCK as usize;
        let len = self.waiting.len();
        self.waiting.resize(len.next_multiple_of(block), 0);
        let mut first = (self.at / BLOCK) as u32;
        let mut rest = &self.waiting[..];
        while !rest.is_empty() {
            let is_hole = is_zero(&rest[..block]);
            let alike = rest
                .chunks(block)
                .take_while(|part| is_zero(part) == is_hole);
            let count = alike.count();
            let (part, others) = rest.split_at(count * block);
            if !is_hole {
                disk.write(&mut self.extents, first, part)?;
            }
            first += count as u32;
            rest = others;
        }
        self.at += len as u64;
        self.waiting.clear();
        Ok(())
    }

    /// The file is complete.
    pub(crate) fn finish(mut self, disk: &mut Disk) -> Result<Vec<Extent>> {
        self.flush(disk)?;
        self.extents.shrink_to_fit();
        Ok(self.extents)
    }
}

/// Whether all bytes are zero; the compiler makes it vector instructions.
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(256)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
