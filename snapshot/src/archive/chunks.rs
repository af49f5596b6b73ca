//! An archive's bytes, read in aligned pieces: so a block device can be read without the page cache
//! (`O_DIRECT`), which in a small guest costs more than the reading.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;

use super::TRAILER;
use crate::entry::{Hash, HASH_LEN};
use crate::{Error, Result};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 18;
/// What every device accepts.
const ALIGNMENT: usize = 4096;

/// A buffer that begins at a multiple of [`ALIGNMENT`].
pub(super) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    filled: usize,
}

impl Aligned {
    pub(super) fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Aligned {
            memory,
            start,
            len,
            filled: 0,
        }
    }

    /// What was read last.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.filled]
    }

    /// Reads what there is from `offset` on, the buffer full at most.
    pub(super) fn read(&mut self, file: &File, offset: u64) -> io::Result<()> {
        self.filled = 0;
        let room = &mut self.memory[self.start..self.start + self.len];
        loop {
            match file.read_at(room, offset) {
                Ok(len) => {
                    self.filled = len;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The bytes before the last frame, and their checksum on the way.
pub(super) struct Chunks {
    file: File,
    /// Length of the whole archive.
    len: u64,
    /// Where the buffer's content is from, and what of it has been used.
    offset: u64,
    buffer: Aligned,
    used: usize,
    hasher: blake3::Hasher,
    /// What the checksum has to be, when that is examined on the way.
    pub(super) expected: Option<Hash>,
}

impl Chunks {
    pub(super) fn new(file: File, len: u64) -> Self {
        Chunks {
            file,
            len,
            offset: 0,
            buffer: Aligned::new(CHUNK),
            used: 0,
            hasher: blake3::Hasher::new(),
            expected: None,
        }
    }

    /// Goes on to the next piece; false at the end of the file.
    fn advance(&mut self) -> io::Result<bool> {
        self.offset += self.buffer.filled as u64;
        self.used = 0;
        self.buffer.read(&self.file, self.offset)?;
        if self.expected.is_some() {
            // The hash at the end is not part of what it is of.
            let end = (self.len - HASH_LEN as u64).saturating_sub(self.offset);
            let bytes = self.buffer.bytes();
            let part = bytes.len().min(usize::try_from(end).unwrap_or(usize::MAX));
            self.hasher.update(&bytes[..part]);
        }
        Ok(self.buffer.filled > 0)
    }

    /// Reads to the end and compares the checksum, if there is one to compare with.
    pub(super) fn finish(mut self) -> Result<()> {
        let Some(expected) = self.expected else {
            return Ok(());
        };
        while self.advance().map_err(Error::stream("read the archive"))? {}
        match *self.hasher.finalize().as_bytes() == expected {
            true => Ok(()),
            false => Err(Error::Checksum),
        }
    }

    /// Reads everything to compare the checksum, and gives the file back.
    pub(super) fn check(mut self, expected: &Hash) -> Result<File> {
        self.expected = Some(*expected);
        let again = self.file.try_clone();
        self.finish()?;
        again.map_err(Error::stream("read the archive"))
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used >= self.buffer.filled {
            self.advance()?;
        }
        let end = (self.len - TRAILER as u64).saturating_sub(self.offset);
        let end = usize::try_from(end).unwrap_or(usize::MAX);
        let bytes = self.buffer.bytes();
        Ok(&bytes[self.used.min(end).min(bytes.len())..bytes.len().min(end)])
    }

    fn consume(&mut self, len: usize) {
        self.used = (self.used + len).min(self.buffer.filled);
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let len = available.len().min(buffer.len());
        buffer[..len].copy_from_slice(&available[..len]);
        self.consume(len);
        Ok(len)
    }
}
