//! Standard input on its way to the command: from frames, or from the ring that frames announce.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use apppot_contract::link::WINDOW;

/// Bytes read from the ring at once.
const CHUNK: usize = 256 << 10;

/// Direct I/O wants memory and offsets that are multiples of the device's sector; a page is safe.
const ALIGNMENT: usize = 4096;
const SECTOR: u64 = 512;

/// Credit is returned in steps of at least this, so that the launcher hears of it rarely.
const CREDIT_STEP: u64 = 512 << 10;

/// What is on the way.
pub(crate) struct Input {
    source: Source,
    /// The launcher has said that there is no more.
    ended: bool,
    /// Consumed, but the launcher has not been told.
    owed: u64,
    /// The last byte that came in a frame.
    last: Option<u8>,
}

enum Source {
    Frames(VecDeque<u8>),
    Ring(RingReader),
}

impl Input {
    /// Input that comes in frames.
    pub(crate) fn frames() -> Self {
        Self::new(Source::Frames(VecDeque::new()))
    }

    /// Input that is in the ring on the block device `device`.
    pub(crate) fn ring(device: &Path) -> io::Result<Self> {
        RingReader::open(device).map(|ring| Self::new(Source::Ring(ring)))
    }

    fn new(source: Source) -> Self {
        Input {
            source,
            ended: false,
            owed: 0,
            last: None,
        }
    }

    /// Takes a frame's bytes.
    ///
    /// # Errors
    /// More than the window: the launcher breaks the rules.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        match &mut self.source {
            Source::Frames(queue) if queue.len() + bytes.len() <= WINDOW => {
                queue.extend(bytes);
                self.last = bytes.last().copied().or(self.last);
                Ok(())
            }
            Source::Frames(_) => Err("more standard input than the window allows"),
            Source::Ring(_) => Err("standard input in frames beside the ring"),
        }
    }

    /// Takes the announcement that the ring has been given `total` bytes since the start.
    ///
    /// # Errors
    /// There is no ring, or it cannot hold so many.
    pub(crate) fn announce(&mut self, total: u64) -> Result<(), &'static str> {
        match &mut self.source {
            Source::Ring(ring) => ring.announce(total),
            Source::Frames(_) => Err("a wrong announcement of standard input"),
        }
    }

    /// There will be no more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// As [`Input::end`], for a terminal: Ctrl-D is typed, twice after an unfinished line, which the
    /// first one only hands over.
    pub(crate) fn end_typed(&mut self) {
        const CTRL_D: u8 = 4;
        if let Source::Frames(queue) = &mut self.source {
            let finished = self.last.is_none_or(|byte| byte == b'\n');
            queue.extend(std::iter::repeat_n(CTRL_D, if finished { 1 } else { 2 }));
        }
        self.ended = true;
    }

    /// Whether there are bytes for the command.
    pub(crate) fn has_bytes(&self) -> bool {
        match &self.source {
            Source::Frames(queue) => !queue.is_empty(),
            Source::Ring(ring) => ring.has_bytes(),
        }
    }

    /// Whether everything has been handed over and no more will come.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.ended && !self.has_bytes()
    }

    /// Writes to `sink` what it takes without blocking. Returns the credit that is due.
    ///
    /// # Errors
    /// As write(2), but for `WouldBlock`; or the ring cannot be read.
    pub(crate) fn pump(&mut self, sink: &mut File) -> io::Result<Option<u32>> {
        while self.has_bytes() {
            let written = match &mut self.source {
                Source::Frames(queue) => {
                    let written = write_some(sink, queue.as_slices().0)?;
                    queue.drain(..written.unwrap_or(0));
                    written
                }
                Source::Ring(ring) => {
                    let written = write_some(sink, ring.bytes()?)?;
                    ring.consume(written.unwrap_or(0));
                    written
                }
            };
            match written {
                Some(len) => self.owed += len as u64,
                None => break,
            }
        }
        let due = self.owed >= CREDIT_STEP || (self.owed > 0 && !self.has_bytes());
        Ok(due.then(|| u32::try_from(std::mem::take(&mut self.owed)).unwrap_or(u32::MAX)))
    }
}

/// The number of bytes that were written, `None` when none would be without blocking.
fn write_some(sink: &mut File, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match sink.write(bytes) {
            Ok(len) => return Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The guest's side of the ring: read past the page cache, which would keep old bytes.
pub(crate) struct RingReader {
    device: File,
    size: u64,
    /// Bytes put in by the launcher since the start.
    announced: u64,
    /// Bytes read out since the start.
    read: u64,
    buffer: Vec<u8>,
    /// What has been read and not handed over, within `buffer`.
    chunk: std::ops::Range<usize>,
}

impl RingReader {
    /// Opens the ring on the block device at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut device = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
            .open(path)?;
        let size = device.seek(SeekFrom::End(0))?;
        if size == 0 {
            return Err(io::Error::other("the ring is empty"));
        }
        Ok(RingReader {
            device,
            size,
            announced: 0,
            read: 0,
            buffer: vec![0; CHUNK + 2 * ALIGNMENT],
            chunk: 0..0,
        })
    }

    /// The launcher has put in `total` bytes since the start.
    ///
    /// # Errors
    /// The ring cannot hold so many.
    pub(crate) fn announce(&mut self, total: u64) -> Result<(), &'static str> {
        if total < self.announced || total - self.read > self.size {
            return Err("a wrong announcement of what is in a ring");
        }
        self.announced = total;
        Ok(())
    }

    /// Whether there is something to read.
    pub(crate) fn has_bytes(&self) -> bool {
        self.read < self.announced || !self.chunk.is_empty()
    }

    /// So many of [`RingReader::bytes`] have been used.
    pub(crate) fn consume(&mut self, len: usize) {
        self.chunk.start += len;
    }

    /// The next bytes, reading when those at hand are used up.
    pub(crate) fn bytes(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() {
            self.fill()?;
        }
        Ok(&self.buffer[self.chunk.clone()])
    }

    fn fill(&mut self) -> io::Result<()> {
        let base = self.buffer.as_ptr().align_offset(ALIGNMENT);
        let at = self.read % self.size;
        let want = (self.announced - self.read)
            .min(CHUNK as u64)
            .min(self.size - at);
        let start = at / SECTOR * SECTOR;
        let end = (at + want).next_multiple_of(SECTOR);
        let sectors = &mut self.buffer[base..base + (end - start) as usize];
        self.device.read_exact_at(sectors, start)?;
        let first = base + (at - start) as usize;
        self.chunk = first..first + want as usize;
        self.read += want;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pipe() -> (File, File) {
        let (read, write) = nix::unistd::pipe().unwrap();
        (read.into(), write.into())
    }

    #[test]
    fn frames_reach_the_command_and_credit_comes_back() {
        let (mut read, mut write) = pipe();
        let mut input = Input::frames();
        input.push(b"hello").unwrap();
        assert!(!input.is_exhausted());
        assert_eq!(input.pump(&mut write).unwrap(), Some(5));
        input.end();
        assert!(input.is_exhausted());
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_launcher_that_breaks_the_rules_is_noticed() {
        let mut input = Input::frames();
        assert!(input.push(&vec![0; WINDOW + 1]).is_err());
        assert!(input.announce(1).is_err());
    }

    #[test]
    fn the_ring_is_read_in_any_steps() {
        let device = tempfile::NamedTempFile::new().unwrap();
        let size = 8192u64;
        device.as_file().set_len(size).unwrap();
        let Ok(mut input) = Input::ring(device.path()) else {
            eprintln!("skipped: no direct I/O on the temporary directory");
            return;
        };
        let (mut read, mut write) = pipe();
        let mut put = 0u64;
        let mut expected = Vec::new();
        for step in [1u64, 511, 512, 4000, 5000, 8192, 3] {
            let bytes: Vec<u8> = (0..step).map(|n| (put + n) as u8).collect();
            for (n, byte) in bytes.iter().enumerate() {
                device
                    .as_file()
                    .write_all_at(&[*byte], (put + n as u64) % size)
                    .unwrap();
            }
            put += step;
            input.announce(put).unwrap();
            input.pump(&mut write).unwrap();
            expected.extend(bytes);
            let mut got = vec![0; step as usize];
            read.read_exact(&mut got).unwrap();
            assert_eq!(got, expected[expected.len() - got.len()..]);
        }
        assert!(input.announce(put + size + 1).is_err());
    }
}
