//! The guest's console: kept for the case that something goes wrong, shown on request.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::{fcntl, FcntlArg, OFlag};

use crate::outcome::printable;

/// Bytes that are kept, the last ones.
const KEPT: usize = 64 << 10;
/// Lines that an error shows.
const SHOWN: usize = 20;

/// The console of one machine.
#[derive(Debug)]
pub(crate) struct Console {
    pipe: Option<File>,
    kept: VecDeque<u8>,
    show: bool,
}

impl Console {
    pub(crate) fn new(pipe: Option<File>, show: bool) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Console {
            pipe,
            kept: VecDeque::new(),
            show,
        })
    }

    /// What to poll for reading.
    pub(crate) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Reads what is there, once. What is to be shown of it.
    pub(crate) fn read(&mut self) -> Option<String> {
        let mut buffer = [0; 4096];
        let pipe = self.pipe.as_mut()?;
        match pipe.read(&mut buffer) {
            Ok(0) => self.pipe = None,
            Ok(len) => {
                return Some(self.keep(&buffer[..len]));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Some(String::new()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.pipe = None,
        }
        None
    }

    fn keep(&mut self, bytes: &[u8]) -> String {
        self.kept.extend(bytes);
        let excess = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..excess);
        match self.show {
            true => printable(bytes),
            false => String::new(),
        }
    }

    /// The lines that matter, made printable: a panic with what follows, else the last ones.
    pub(crate) fn tail(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.kept.iter().copied().collect();
        tail(&bytes)
    }
}

/// The lines of a console that matter, as in [`Console::tail`].
pub(crate) fn tail(bytes: &[u8]) -> Vec<String> {
    let text = printable(bytes);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let panic = lines.iter().position(|line| line.contains("Kernel panic"));
    let first = panic.unwrap_or(lines.len().saturating_sub(SHOWN));
    let shown = lines[first..].iter().take(SHOWN);
    shown.map(|&line| line.to_owned()).collect()
}
