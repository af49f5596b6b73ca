//! The ring: standard input for guests whose link is slow towards them.
//!
//! A UML kernel reads its serial lines a byte at a time, about 2 MB/s; its block devices read at
//! memory speed. So the bytes are put into a memfd that the guest sees as a block device, and
//! only how many there are goes over the link.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{memfd_create, MFdFlags};

/// Size of the ring, bytes: a multiple of the page size.
pub(crate) const SIZE: u64 = 4 << 20;

/// The host's side of the ring.
#[derive(Debug)]
pub struct Ring {
    memory: File,
    /// Bytes put in since the start.
    produced: u64,
    /// Bytes that the guest has returned since the start.
    consumed: u64,
}

impl Ring {
    /// An empty ring.
    ///
    /// # Errors
    /// The kernel gives no memory.
    pub fn new() -> io::Result<Self> {
        Self::over(memfd_create(c"apppot-ring", MFdFlags::MFD_CLOEXEC)?.into())
    }

    /// An empty ring in `memory`, a new file.
    ///
    /// # Errors
    /// There is no room.
    pub(crate) fn over(memory: File) -> io::Result<Self> {
        memory.set_len(SIZE)?;
        Ok(Ring {
            memory,
            produced: 0,
            consumed: 0,
        })
    }

    /// The memory, for the guest.
    pub(crate) fn memory(&self) -> io::Result<std::os::fd::OwnedFd> {
        self.memory.as_fd().try_clone_to_owned()
    }

    /// Bytes that can be put in now.
    #[must_use]
    pub fn space(&self) -> usize {
        // At most SIZE.
        (SIZE - (self.produced - self.consumed)) as usize
    }

    /// Puts `bytes` in and returns the total since the start, which the guest is to be told.
    ///
    /// # Errors
    /// The memory cannot be written.
    ///
    /// # Panics
    /// When there are more bytes than [`Ring::space`].
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<u64> {
        assert!(bytes.len() <= self.space(), "ring overrun");
        let at = self.produced % SIZE;
        let first = bytes.len().min((SIZE - at) as usize);
        self.memory.write_all_at(&bytes[..first], at)?;
        self.memory.write_all_at(&bytes[first..], 0)?;
        self.produced += bytes.len() as u64;
        Ok(self.produced)
    }

    /// The guest has returned `bytes`; more than it was given are not counted.
    pub fn credit(&mut self, bytes: u64) {
        self.consumed = self.consumed.saturating_add(bytes).min(self.produced);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wrap_around() {
        let mut ring = Ring::new().unwrap();
        let size = SIZE as usize;
        assert_eq!(ring.put(&vec![1; size - 2]).unwrap(), SIZE - 2);
        assert_eq!(ring.space(), 2);
        ring.credit(SIZE - 2);
        assert_eq!(ring.put(b"abcd").unwrap(), SIZE + 2);
        let (mut end, mut start) = ([0; 2], [0; 2]);
        ring.memory.read_exact_at(&mut end, SIZE - 2).unwrap();
        ring.memory.read_exact_at(&mut start, 0).unwrap();
        assert_eq!((&end, &start), (b"ab", b"cd"));
    }

    #[test]
    fn a_guest_cannot_return_more_than_it_was_given() {
        let mut ring = Ring::new().unwrap();
        ring.put(b"abc").unwrap();
        ring.credit(u64::MAX);
        assert_eq!(ring.space(), SIZE as usize);
    }
}
