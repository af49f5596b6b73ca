//! One inode.

use super::bytes::{join, le16, le32};
use crate::entry::Time;

pub(super) const FIFO: u16 = 0x1000;
pub(super) const CHARACTER: u16 = 0x2000;
pub(super) const DIRECTORY: u16 = 0x4000;
pub(super) const BLOCK: u16 = 0x6000;
pub(super) const REGULAR: u16 = 0x8000;
pub(super) const SYMLINK: u16 = 0xa000;
pub(super) const SOCKET: u16 = 0xc000;

const EXTENTS: u32 = 0x8_0000;
const EA_INODE: u32 = 0x20_0000;
const INLINE: u32 = 0x1000_0000;

/// Where the block map, extent tree, short link target or device number is.
const MAP: std::ops::Range<usize> = 0x28..0x64;
/// Bytes of an inode of the oldest kind; newer ones say how many more are in use.
const OLD_SIZE: usize = 128;

/// An inode as it is stored.
#[derive(Debug)]
pub(super) struct Inode {
    /// Its number.
    pub(super) number: u32,
    /// Its bytes.
    pub(super) raw: Vec<u8>,
}

impl Inode {
    /// The kind of file, as one of the constants above.
    pub(super) fn format(&self) -> u16 {
        le16(&self.raw, 0) & 0xf000
    }

    pub(super) fn permissions(&self) -> u16 {
        le16(&self.raw, 0) & 0o7777
    }

    pub(super) fn uid(&self) -> u32 {
        u32::from(le16(&self.raw, 0x78)) << 16 | u32::from(le16(&self.raw, 2))
    }

    pub(super) fn gid(&self) -> u32 {
        u32::from(le16(&self.raw, 0x7a)) << 16 | u32::from(le16(&self.raw, 0x18))
    }

    pub(super) fn links(&self) -> u16 {
        le16(&self.raw, 0x1a)
    }

    pub(super) fn size(&self) -> u64 {
        join(le32(&self.raw, 4), le32(&self.raw, 0x6c))
    }

    /// Bytes of the newer part that are in use.
    fn extra(&self) -> usize {
        match self.raw.len() > OLD_SIZE {
            true => usize::from(le16(&self.raw, OLD_SIZE)),
            false => 0,
        }
    }

    pub(super) fn mtime(&self) -> Time {
        let seconds = i64::from(le32(&self.raw, 0x10) as i32);
        // The field ends 12 bytes into the newer part.
        if self.extra() < 12 {
            let nanoseconds = 0;
            return Time {
                seconds,
                nanoseconds,
            };
        }
        let extra = le32(&self.raw, 0x88);
        Time {
            seconds: seconds + (i64::from(extra & 3) << 32),
            nanoseconds: (extra >> 2).min(999_999_999),
        }
    }

    /// The 60 bytes that lead to the content.
    pub(super) fn map(&self) -> &[u8] {
        &self.raw[MAP]
    }

    pub(super) fn has_extents(&self) -> bool {
        le32(&self.raw, 0x20) & EXTENTS != 0
    }

    /// Whether the content is in the inode.
    pub(super) fn is_inline(&self) -> bool {
        le32(&self.raw, 0x20) & INLINE != 0
    }

    /// Whether it holds the value of an extended attribute.
    pub(super) fn is_attribute(&self) -> bool {
        le32(&self.raw, 0x20) & EA_INODE != 0
    }

    pub(super) fn is_fast_symlink(&self) -> bool {
        !self.has_extents() && !self.is_inline() && self.size() < MAP.len() as u64
    }

    /// Major and minor number of a device: the old 16-bit form first, the new one if that is zero.
    pub(super) fn device(&self) -> (u32, u32) {
        let (old, new) = (le32(self.map(), 0), le32(self.map(), 4));
        match old {
            0 => ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xfff00)),
            old => ((old >> 8) & 0xff, old & 0xff),
        }
    }

    /// The block of its extended attributes, 0 for none.
    pub(super) fn attribute_block(&self) -> u64 {
        join(le32(&self.raw, 0x68), u32::from(le16(&self.raw, 0x76)))
    }

    /// What follows the newer part: extended attributes.
    pub(super) fn attributes(&self) -> &[u8] {
        let start = OLD_SIZE + self.extra();
        match self.extra() {
            0 => &[],
            _ => self.raw.get(start..).unwrap_or_default(),
        }
    }
}
