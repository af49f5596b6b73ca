//! The stream in `Files` frames, or towards the guest through a ring.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::path::Path;

use apppot_contract::link::{Frame, Stream, WINDOW};

use crate::link::{Link, OutputBuffer};
use crate::stdin::RingReader;

/// Credit is returned in steps of this, so that the launcher hears of it rarely.
const CREDIT_STEP: u32 = 512 << 10;
/// Bytes of other frames that may come before the last of the files.
const MAX_KEPT: usize = 16 << 10;

/// What comes.
pub(super) struct Incoming<'a> {
    link: &'a mut Link,
    source: Source,
    /// Consumed, but the launcher has not been told.
    owed: u32,
    kept: usize,
}

enum Source {
    Frames(VecDeque<u8>),
    Ring(RingReader),
}

impl<'a> Incoming<'a> {
    pub(super) fn new(link: &'a mut Link, ring: Option<&Path>) -> io::Result<Self> {
        let source = match ring {
            Some(device) => Source::Ring(RingReader::open(device)?),
            None => Source::Frames(VecDeque::new()),
        };
        Ok(Incoming {
            link,
            source,
            owed: 0,
            kept: 0,
        })
    }

    /// Copies what is there. The number of bytes, 0 when there are none.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = match &mut self.source {
            Source::Frames(queue) => queue.read(buffer)?,
            Source::Ring(ring) if ring.has_bytes() => {
                let bytes = ring.bytes()?;
                let len = bytes.len().min(buffer.len());
                buffer[..len].copy_from_slice(&bytes[..len]);
                ring.consume(len);
                len
            }
            Source::Ring(_) => 0,
        };
        self.owed += len as u32;
        let more = match &self.source {
            Source::Frames(queue) => !queue.is_empty(),
            Source::Ring(ring) => ring.has_bytes(),
        };
        if self.owed >= CREDIT_STEP || (self.owed > 0 && !more) {
            let owed = std::mem::take(&mut self.owed);
            self.link.send(&Frame::Credit(Stream::Files, owed))?;
        }
        Ok(len)
    }

    /// Waits for frames. What is not ours is kept for the job.
    fn wait(&mut self) -> io::Result<()> {
        let mut others = Vec::new();
        while let Some(frame) = self.link.fresh().map_err(io::Error::other)? {
            match (frame, &mut self.source) {
                (Frame::Files(bytes), Source::Frames(queue))
                    if queue.len() + bytes.len() <= WINDOW =>
                {
                    queue.extend(bytes);
                }
                (Frame::FilesRing(total), Source::Ring(ring)) => {
                    ring.announce(total).map_err(io::Error::other)?;
                }
                (Frame::Files(_) | Frame::FilesRing(_), _) => {
                    return Err(io::Error::other("files in a frame that has no place here"));
                }
                (frame, _) => frame.encode(&mut others),
            }
        }
        self.kept += others.len();
        if self.kept > MAX_KEPT {
            return Err(io::Error::other(
                "too much came before the last of the files",
            ));
        }
        self.link.keep(&others);
        Ok(())
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.take(buffer)? {
                0 if !buffer.is_empty() => {}
                len => return Ok(len),
            }
            self.wait()?;
            let empty = match &self.source {
                Source::Frames(queue) => queue.is_empty(),
                Source::Ring(ring) => !ring.has_bytes(),
            };
            if empty {
                self.link.read()?;
            }
        }
    }
}

/// What goes back.
pub(super) struct Outgoing<'a> {
    link: &'a mut Link,
    buffer: OutputBuffer,
    /// Bytes in the buffer.
    len: usize,
    /// Bytes that the launcher still takes.
    credit: usize,
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(link: &'a mut Link) -> Self {
        Outgoing {
            link,
            buffer: OutputBuffer::new(),
            len: 0,
            credit: WINDOW,
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while self.credit < self.len {
            self.link.read()?;
            while let Some(frame) = self.link.next().map_err(io::Error::other)? {
                // The job has ended: nothing else has a meaning any more.
                if let Frame::Credit(Stream::Files, bytes) = frame {
                    self.credit = self.credit.saturating_add(bytes as usize).min(WINDOW);
                }
            }
        }
        if self.len > 0 {
            let frame = self.buffer.frame(&Frame::Files(b""), self.len);
            self.link.send_encoded(frame)?;
            self.credit -= self.len;
            self.len = 0;
        }
        Ok(())
    }
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(OutputBuffer::SIZE - self.len);
        let filled = self.len + len;
        self.buffer.payload(filled)[self.len..].copy_from_slice(&bytes[..len]);
        self.len = filled;
        if self.len == OutputBuffer::SIZE {
            self.send()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
