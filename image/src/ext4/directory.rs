//! Blocks of directories: linear ones, which every reader understands; the kernel makes an index when
//! one of them grows.

use super::geometry::BLOCK;
use super::Put;

/// Inode, length of the entry, length of the name, kind.
const HEADER: usize = 8;

/// Kinds of files, as directories name them.
pub(super) mod kind {
    pub(crate) const REGULAR: u8 = 1;
    pub(crate) const DIRECTORY: u8 = 2;
    pub(crate) const CHARACTER: u8 = 3;
    pub(crate) const BLOCK: u8 = 4;
    pub(crate) const FIFO: u8 = 5;
    pub(crate) const SYMLINK: u8 = 7;
}

/// The blocks of a directory in the making.
#[derive(Debug, Default)]
pub(super) struct Directory {
    bytes: Vec<u8>,
    /// Where the last entry begins: it reaches to the end of its block.
    last: usize,
}

impl Directory {
    /// Adds a name of at most 255 bytes.
    pub(super) fn add(&mut self, name: &[u8], inode: u32, kind: u8) {
        let len = (HEADER + name.len()).next_multiple_of(4);
        let block = BLOCK as usize;
        let left = self.bytes.len().next_multiple_of(block) - self.bytes.len();
        if left < len && left > 0 {
            self.fill_block();
        }
        self.last = self.bytes.len();
        self.bytes.resize(self.last + len, 0);
        let entry = &mut self.bytes[self.last..];
        entry.put32(0, inode);
        entry.put16(4, len as u16);
        entry[6] = name.len() as u8;
        entry[7] = kind;
        entry[HEADER..HEADER + name.len()].copy_from_slice(name);
    }

    fn fill_block(&mut self) {
        let end = self.bytes.len().next_multiple_of(BLOCK as usize);
        self.bytes.resize(end, 0);
        let last = self.last;
        self.bytes[last..].put16(4, (end - last) as u16);
    }

    /// The blocks.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.fill_block();
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_fill_their_blocks() {
        let mut directory = Directory::default();
        for number in 0..1000 {
            directory.add(
                &vec![b'a'; 1 + number % 255],
                number as u32 + 1,
                kind::REGULAR,
            );
        }
        let bytes = directory.finish();
        let mut count = 0;
        for block in bytes.chunks(BLOCK as usize) {
            let mut at = 0;
            while at < block.len() {
                let len = usize::from(u16::from_le_bytes([block[at + 4], block[at + 5]]));
                assert!(len >= HEADER + usize::from(block[at + 6]) && len % 4 == 0);
                at += len;
                count += 1;
            }
            assert_eq!(at, BLOCK as usize);
        }
        assert_eq!(count, 1000);
    }
}
