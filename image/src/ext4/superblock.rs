//! The superblock, and the descriptors of groups.

use super::geometry::{Geometry, DESCRIPTOR_BLOCKS, GROUP, INODE_SIZE};
use super::Put;

/// Bytes of the superblock, and where it is in the first block.
pub(super) const LEN: usize = 1024;
pub(super) const OFFSET: u64 = 1024;

/// Bytes of a group's descriptor.
pub(super) const DESCRIPTOR: usize = 32;

/// The first inode that is not reserved: `lost+found`.
pub(super) const FIRST_INODE: u32 = 11;
/// The root directory.
pub(super) const ROOT_INODE: u32 = 2;
/// Blocks reserved for descriptors.
pub(super) const RESIZE_INODE: u32 = 7;
/// The journal.
pub(super) const JOURNAL_INODE: u32 = 8;

/// has_journal, ext_attr, resize_inode, dir_index
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x10 | 0x20;
/// filetype, extents, flex_bg
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x200;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize
const READ_ONLY: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40;

/// What changes from filesystem to filesystem.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) geometry: Geometry,
    pub(super) free_blocks: u32,
    pub(super) free_inodes: u32,
    pub(super) uuid: [u8; 16],
    /// At most 16 bytes.
    pub(super) label: String,
    /// Seconds since the epoch at which the filesystem was made.
    pub(super) made: u32,
    /// The journal inode's map and size, for when the inode is lost.
    pub(super) journal: ([u8; 60], u64),
}

impl Superblock {
    /// The bytes of the copy at the beginning of `group`.
    pub(super) fn encode(&self, group: u32, descriptor_blocks: u32) -> [u8; LEN] {
        let mut out = [0; LEN];
        let geometry = &self.geometry;
        for (at, value) in [
            (0, geometry.inodes()),
            (4, geometry.blocks),
            (12, self.free_blocks),
            (16, self.free_inodes),
            // Blocks of 2^(10+2) bytes, in clusters of the same size.
            (24, 2),
            (28, 2),
            (32, GROUP),
            (36, GROUP),
            (40, geometry.inodes_per_group),
            (48, self.made),
            (64, self.made),
            (76, 1),
            (84, FIRST_INODE),
            (92, COMPATIBLE),
            (96, INCOMPATIBLE),
            (100, READ_ONLY),
            (224, JOURNAL_INODE),
            // Mounted with user_xattr and acl unless told otherwise.
            (256, 0xc),
            (264, self.made),
            // Names are hashed as unsigned characters.
            (352, 2),
        ] {
            out.put32(at, value);
        }
        for (at, value) in [
            (54, 0xffff), // never checked because of a count
            (56, 0xef53),
            (58, 1), // clean
            (60, 1), // errors: go on
            (88, INODE_SIZE as u16),
            (90, group as u16),
            (206, (DESCRIPTOR_BLOCKS - descriptor_blocks) as u16),
            (348, 32), // bytes of an inode's newer part, least and usual
            (350, 32),
        ] {
            out.put16(at, value);
        }
        out[104..120].copy_from_slice(&self.uuid);
        out[120..120 + self.label.len()].copy_from_slice(self.label.as_bytes());
        out[236..252].copy_from_slice(&self.uuid);
        out[252] = 1; // half MD4
        out[253] = 1; // there is a copy of the journal's map
        let (map, size) = &self.journal;
        out[268..328].copy_from_slice(map);
        out.put32(328, (size >> 32) as u32);
        out.put32(332, *size as u32);
        out[372] = 4; // groups of 2^4 groups
        out
    }
}

/// One group's descriptor.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) block_bitmap: u32,
    pub(super) inode_bitmap: u32,
    pub(super) inode_table: u32,
    pub(super) free_blocks: u32,
    pub(super) free_inodes: u32,
    pub(super) directories: u32,
}

impl Descriptor {
    pub(super) fn encode(&self) -> [u8; DESCRIPTOR] {
        let mut out = [0; DESCRIPTOR];
        out.put32(0, self.block_bitmap);
        out.put32(4, self.inode_bitmap);
        out.put32(8, self.inode_table);
        out.put16(12, self.free_blocks as u16);
        out.put16(14, self.free_inodes as u16);
        out.put16(16, self.directories as u16);
        out
    }
}
