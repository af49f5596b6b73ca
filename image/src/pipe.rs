//! A stream that is read ahead by a thread of its own: decompression and hashing of one part run beside
//! the writing of another.

use std::io::{self, Read};
use std::sync::mpsc::{sync_channel, Receiver};

/// Bytes of a part, and parts that wait.
const PART: usize = 256 << 10;
const WAITING: usize = 8;

/// The end that is read.
pub(crate) struct Pipe {
    parts: Receiver<io::Result<Vec<u8>>>,
    part: Vec<u8>,
    at: usize,
}

/// Reads `reader` ahead.
pub(crate) fn ahead(mut reader: Box<dyn Read + Send>) -> io::Result<Pipe> {
    let (sender, parts) = sync_channel(WAITING);
    std::thread::Builder::new().spawn(move || loop {
        let mut part = Vec::with_capacity(PART);
        let read = reader.by_ref().take(PART as u64).read_to_end(&mut part);
        let last = !matches!(read, Ok(1..));
        // Nobody listens any more after an error on the other side.
        if sender.send(read.map(|_| part)).is_err() || last {
            return;
        }
    })?;
    Ok(Pipe {
        parts,
        part: Vec::new(),
        at: 0,
    })
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.part.len() {
            self.part = match self.parts.recv() {
                Ok(part) => part?,
                // The thread has said everything.
                Err(_) => return Ok(0),
            };
            self.at = 0;
        }
        let len = buffer.len().min(self.part.len() - self.at);
        buffer[..len].copy_from_slice(&self.part[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}
