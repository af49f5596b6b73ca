//! Where a file's blocks are: the extent tree.

use super::disk::Disk;
use super::geometry::BLOCK;
use super::Put;
use crate::Result;

/// A stretch of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first block, as the file counts.
    pub(crate) logical: u32,
    /// Number of blocks.
    pub(crate) len: u32,
    /// The first block, as the filesystem counts.
    pub(crate) physical: u32,
}

/// The longest extent.
const LONGEST: u32 = 32768;
const MAGIC: u16 = 0xf30a;
/// Bytes of a header, and of an entry.
const ENTRY: usize = 12;
/// Entries in an inode, and in a block.
const IN_INODE: usize = 4;
const IN_BLOCK: usize = (BLOCK as usize - ENTRY) / ENTRY;

/// Adds blocks to a file's extents.
pub(super) fn push(extents: &mut Vec<Extent>, new: Extent) {
    match extents.last_mut() {
        Some(last)
            if last.logical + last.len == new.logical
                && last.physical + last.len == new.physical
                && last.len + new.len <= LONGEST =>
        {
            last.len += new.len;
        }
        _ => extents.push(new),
    }
}

/// Writes the tree of `extents`. Returns the part that is in the inode, and the number of blocks that
/// the rest takes.
pub(super) fn write(disk: &mut Disk, extents: &[Extent]) -> Result<([u8; 60], u32)> {
    let mut entries: Vec<[u8; ENTRY]> = extents.iter().map(leaf).collect();
    let (mut depth, mut blocks) = (0, 0);
    while entries.len() > IN_INODE {
        let mut above = Vec::new();
        for part in entries.chunks(IN_BLOCK) {
            let mut block = [0; BLOCK as usize];
            node(&mut block, part, IN_BLOCK, depth);
            let at = disk.write_block(&block)?;
            above.push(index(&part[0], at));
            blocks += 1;
        }
        entries = above;
        depth += 1;
    }
    let mut root = [0; 60];
    node(&mut root, &entries, IN_INODE, depth);
    Ok((root, blocks))
}

fn leaf(extent: &Extent) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry.put32(0, extent.logical);
    entry.put16(4, extent.len as u16);
    entry.put32(8, extent.physical);
    entry
}

/// The entry that leads to a block whose first entry is `first`.
fn index(first: &[u8; ENTRY], block: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..4].copy_from_slice(&first[..4]);
    entry.put32(4, block);
    entry
}

fn node(out: &mut [u8], entries: &[[u8; ENTRY]], most: usize, depth: u16) {
    out.put16(0, MAGIC);
    out.put16(2, entries.len() as u16);
    out.put16(4, most as u16);
    out.put16(6, depth);
    for (at, entry) in entries.iter().enumerate() {
        out[ENTRY * (at + 1)..][..ENTRY].copy_from_slice(entry);
    }
}
