//! Writing ext4 (`Documentation/filesystems/ext4/`): contents first, wherever the next free block is,
//! then everything that leads to them.
//!
//! ```text
//! superblock, descriptors, room for more │ contents … │ directories │ journal │ bitmaps, inode tables │ free
//! ```
//!
//! Copies of superblock and descriptors stand where every ext4 has them. Bitmaps and inode tables of
//! all groups lie together, as the feature flex_bg allows.

mod attributes;
mod directory;
mod disk;
mod extents;
mod finish;
mod geometry;
mod inode;
mod journal;
mod resize;
mod superblock;

pub(crate) use disk::{ContentWriter, Disk};
pub(crate) use extents::Extent;
pub(crate) use finish::{finish, LOST_AND_FOUND};
pub(crate) use geometry::MAX_FILE;

/// Writes numbers into structures, little-endian.
trait Put {
    fn put16(&mut self, at: usize, value: u16);
    fn put32(&mut self, at: usize, value: u32);
}

impl Put for [u8] {
    fn put16(&mut self, at: usize, value: u16) {
        self[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}
