//! One inode, as it is stored.

use apppot_snapshot::entry::{Meta, Time};

use super::geometry::{BLOCK, INODE_SIZE};
use super::{attributes, Put};

pub(super) const FIFO: u16 = 0x1000;
pub(super) const CHARACTER: u16 = 0x2000;
pub(super) const DIRECTORY: u16 = 0x4000;
pub(super) const BLOCK_DEVICE: u16 = 0x6000;
pub(super) const REGULAR: u16 = 0x8000;
pub(super) const SYMLINK: u16 = 0xa000;

const EXTENTS: u32 = 0x8_0000;
/// Bytes of the newer part in use.
const EXTRA: u16 = 32;

/// What an inode is made of.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) format: u16,
    pub(super) meta: Meta,
    pub(super) links: u16,
    pub(super) size: u64,
    /// Blocks that it takes in all: contents, extent tree, attributes.
    pub(super) blocks: u64,
    /// The 60 bytes that lead to the content.
    pub(super) map: [u8; 60],
    /// Whether the map is an extent tree.
    pub(super) has_extents: bool,
    /// The block of its extended attributes, 0 for none.
    pub(super) attribute_block: u32,
    /// Extended attributes in the inode.
    pub(super) attributes: Vec<u8>,
}

impl Inode {
    /// An inode without content.
    pub(super) fn new(format: u16, meta: Meta) -> Self {
        Inode {
            format,
            meta,
            links: 1,
            size: 0,
            blocks: 0,
            map: [0; 60],
            has_extents: false,
            attribute_block: 0,
            attributes: Vec::new(),
        }
    }

    /// The bytes.
    pub(super) fn encode(&self) -> [u8; INODE_SIZE] {
        let mut raw = [0; INODE_SIZE];
        let meta = &self.meta;
        let (low, high) = (
            |number: u32| number as u16,
            |number: u32| (number >> 16) as u16,
        );
        raw.put16(0, self.format | meta.mode & 0o7777);
        raw.put16(2, low(meta.uid));
        raw.put16(0x78, high(meta.uid));
        raw.put16(0x18, low(meta.gid));
        raw.put16(0x7a, high(meta.gid));
        raw.put16(0x1a, self.links);
        raw.put32(4, self.size as u32);
        raw.put32(0x6c, (self.size >> 32) as u32);
        // Counted in 512 bytes.
        let sectors = self.blocks * (BLOCK / 512);
        raw.put32(0x1c, sectors as u32);
        raw.put16(0x74, (sectors >> 32) as u16);
        raw.put32(0x20, if self.has_extents { EXTENTS } else { 0 });
        raw[0x28..0x64].copy_from_slice(&self.map);
        raw.put32(0x68, self.attribute_block);
        raw.put16(0x80, EXTRA);
        let (seconds, extra) = time(meta.mtime);
        // Access, change and modification, and then creation.
        for (at, more) in [(0x08, 0x8c), (0x0c, 0x84), (0x10, 0x88), (0x90, 0x94)] {
            raw.put32(at, seconds);
            raw.put32(more, extra);
        }
        raw[attributes::IN_INODE..][..self.attributes.len()].copy_from_slice(&self.attributes);
        raw
    }
}

/// Seconds, and two more bits of them below the nanoseconds. What lies outside of 1901 to 2446 becomes
/// the nearest that can be stored.
fn time(time: Time) -> (u32, u32) {
    const FIRST: i64 = i32::MIN as i64;
    const LAST: i64 = FIRST + (1 << 34) - 1;
    let seconds = time.seconds.clamp(FIRST, LAST);
    let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32 & 3;
    (seconds as u32, time.nanoseconds << 2 | epoch)
}

/// The map of a device: the old form where its numbers fit, else the new one.
pub(super) fn device(major: u32, minor: u32) -> [u8; 60] {
    let mut map = [0; 60];
    match major < 256 && minor < 256 {
        true => map.put32(0, major << 8 | minor),
        false => map.put32(
            4,
            minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12,
        ),
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_34_bits() {
        let at = |seconds| {
            let nanoseconds = 5;
            time(Time {
                seconds,
                nanoseconds,
            })
        };
        assert_eq!(at(0), (0, 20));
        assert_eq!(at(-1), (u32::MAX, 20));
        assert_eq!(at(0x7fff_ffff), (0x7fff_ffff, 20));
        assert_eq!(at(0x8000_0000), (0x8000_0000, 21));
        assert_eq!(at(1 << 32), (0, 21));
        assert_eq!(at(i64::MAX).1 & 3, 3);
    }
}
