//! What is sent with a request: bytes, or a part of a file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use crate::sign::hex;
use crate::{Error, Result};

/// What is sent.
#[derive(Clone, Copy)]
pub(crate) enum Body<'a> {
    Bytes(&'a [u8]),
    /// `len` bytes of the file, from `start`. `goes_on` is asked before each piece.
    Part {
        file: &'a File,
        start: u64,
        len: u64,
        goes_on: &'a dyn Fn(usize) -> bool,
    },
}

impl Body<'_> {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Part { len, .. } => *len,
        }
    }

    /// The SHA-256 of it, as text.
    pub(crate) fn digest(&self) -> Result<String> {
        let mut digest = Sha256::new();
        let mut reader = Reading::of(*self);
        reader.announces = false;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(hex(&digest.finalize())),
                Ok(len) => digest.update(&buffer[..len]),
                Err(_) if reader.is_stopped => return Err(Error::Stopped),
                Err(error) => return Err(Error::io("read what is to be sent")(error)),
            }
        }
    }
}

/// A body as it is read.
pub(crate) struct Reading<'a> {
    body: Body<'a>,
    at: u64,
    /// Whether the pieces are on their way, and not only looked at.
    announces: bool,
    /// Whether somebody has stopped it: reading failed by that.
    pub(crate) is_stopped: bool,
}

impl<'a> Reading<'a> {
    pub(crate) fn of(body: Body<'a>) -> Self {
        Reading {
            body,
            at: 0,
            announces: true,
            is_stopped: false,
        }
    }
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.body.len() - self.at).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let len = match self.body {
            Body::Bytes(bytes) => {
                let from = bytes.len() - left;
                buffer[..most].copy_from_slice(&bytes[from..from + most]);
                most
            }
            Body::Part { goes_on, .. } if !goes_on(if self.announces { most } else { 0 }) => {
                self.is_stopped = true;
                return Err(io::ErrorKind::Other.into());
            }
            Body::Part { file, start, .. } => file.read_at(&mut buffer[..most], start + self.at)?,
        };
        self.at += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_file_is_sent_until_somebody_stops_it() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"0123456789").unwrap();
        let part = |goes_on| Body::Part {
            file: &file,
            start: 2,
            len: 5,
            goes_on,
        };
        let mut text = String::new();
        Reading::of(part(&|_| true))
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "23456");
        assert_eq!(
            part(&|_| true).digest().unwrap(),
            Body::Bytes(b"23456").digest().unwrap()
        );
        let mut stopped = Reading::of(part(&|_| false));
        assert!(stopped.read(&mut [0]).is_err() && stopped.is_stopped);
    }
}
