//! The inode that holds the blocks reserved for more group descriptors, so that the kernel can grow the
//! filesystem while it is mounted.
//!
//! It is a block map of the old kind: the double-indirect block names the reserved blocks after the
//! first superblock, and each of those the blocks that correspond to it after the copies.

use apppot_snapshot::entry::Meta;

use super::disk::Disk;
use super::geometry::{has_copy, Geometry, BLOCK, DESCRIPTOR_BLOCKS, GROUP};
use super::inode::{self, Inode};
use super::Put;
use crate::Result;

/// Block numbers in a block.
const POINTERS: u64 = BLOCK / 4;
/// The slot of the double-indirect block.
const DOUBLE: usize = 13;

/// Writes the map and returns the inode. The first `used` blocks of descriptors are in use.
pub(super) fn write(disk: &mut Disk, geometry: &Geometry, used: u32) -> Result<Inode> {
    let copies: Vec<u32> = (1..geometry.groups)
        .filter(|group| has_copy(*group))
        .collect();
    let mut double = [0; BLOCK as usize];
    for reserved in used..DESCRIPTOR_BLOCKS {
        let block = 1 + reserved;
        double.put32(reserved as usize * 4, block);
        let mut pointers = [0; BLOCK as usize];
        for (at, group) in copies.iter().enumerate() {
            pointers.put32(at * 4, block + group * GROUP);
        }
        disk.write_at(block, 0, &pointers)?;
    }
    let at = disk.write_block(&double)?;
    let meta = Meta {
        mode: 0o600,
        ..Meta::default()
    };
    let mut inode = Inode::new(inode::REGULAR, meta);
    inode.map.put32(DOUBLE * 4, at);
    inode.size = (POINTERS * POINTERS + POINTERS + 12) * BLOCK;
    inode.blocks = 1 + u64::from(DESCRIPTOR_BLOCKS - used) * (1 + copies.len() as u64);
    Ok(inode)
}
