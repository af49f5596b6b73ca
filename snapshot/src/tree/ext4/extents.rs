//! Where a file's blocks are: the extent tree of ext4, the block map of ext2 and ext3.

use super::bytes::{join, le16, le32};
use super::inode::Inode;
use super::{corrupt, Ext4};
use crate::Result;

/// A stretch of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first block, as the file counts.
    pub(super) logical: u64,
    /// Number of blocks.
    pub(super) len: u64,
    /// The first block, as the filesystem counts.
    pub(super) physical: u64,
}

impl Extent {
    /// The block after the last, as the file counts.
    pub(super) fn end(&self) -> u64 {
        self.logical + self.len
    }
}

const HEADER: usize = 12;
const MAGIC: u16 = 0xf30a;
/// Deepest tree that ext4 makes.
const MAX_DEPTH: u16 = 5;
/// A longer extent is one of blocks that are reserved but hold no data.
const LONGEST: u16 = 1 << 15;
/// A file in more pieces than this is taken for damage.
const MAX_PIECES: usize = 1 << 24;

/// The extents of a file that has a tree of them.
pub(super) fn from_tree(ext4: &Ext4, inode: &Inode) -> Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let depth = le16(inode.map(), 6);
    if depth > MAX_DEPTH {
        return Err(bad(inode));
    }
    let mut budget = inode.size() / ext4.block_size() + 1024;
    node(ext4, inode, inode.map(), depth, &mut budget, &mut extents)?;
    // What follows relies on order; a damaged tree has none.
    let ordered = extents
        .windows(2)
        .all(|pair| pair[0].end() <= pair[1].logical);
    match ordered {
        true => Ok(extents),
        false => Err(bad(inode)),
    }
}

fn node(
    ext4: &Ext4,
    inode: &Inode,
    bytes: &[u8],
    depth: u16,
    budget: &mut u64,
    extents: &mut Vec<Extent>,
) -> Result<()> {
    let (magic, count) = (le16(bytes, 0), usize::from(le16(bytes, 2)));
    if magic != MAGIC || le16(bytes, 6) != depth || HEADER * (count + 1) > bytes.len() {
        return Err(bad(inode));
    }
    for entry in bytes[HEADER..HEADER * (count + 1)].chunks(HEADER) {
        // A tree whose branches are all the same one has no end.
        *budget = budget.checked_sub(1).ok_or_else(|| bad(inode))?;
        if depth > 0 {
            let child = ext4.block(join(le32(entry, 4), le16(entry, 8).into()))?;
            node(ext4, inode, &child, depth - 1, budget, extents)?;
            continue;
        }
        let len = le16(entry, 4);
        if len <= LONGEST {
            extents.push(Extent {
                logical: le32(entry, 0).into(),
                len: len.into(),
                physical: join(le32(entry, 8), le16(entry, 6).into()),
            });
        }
    }
    Ok(())
}

fn bad(inode: &Inode) -> crate::Error {
    corrupt(format!("the blocks of inode {}", inode.number))
}

/// The extents of a file that has a map of its blocks: twelve direct ones, then three trees.
pub(super) fn from_block_map(ext4: &Ext4, inode: &Inode) -> Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut walk = Walk {
        ext4,
        logical: 0,
        end: inode.size().div_ceil(ext4.block_size()),
        extents: &mut extents,
    };
    for slot in 0..15 {
        let depth = (slot as u32).saturating_sub(11);
        walk.pointer(le32(inode.map(), slot * 4).into(), depth)?;
    }
    match walk.logical < walk.end {
        true => Err(bad(inode)),
        false => Ok(extents),
    }
}

struct Walk<'a> {
    ext4: &'a Ext4,
    logical: u64,
    end: u64,
    extents: &'a mut Vec<Extent>,
}

impl Walk<'_> {
    /// Follows one pointer, which spans the more blocks the deeper its tree is; 0 is a hole.
    fn pointer(&mut self, block: u64, depth: u32) -> Result<()> {
        if self.logical >= self.end || self.extents.len() >= MAX_PIECES {
            return Ok(());
        }
        if block == 0 {
            self.logical += (self.ext4.block_size() / 4).pow(depth);
            return Ok(());
        }
        if depth == 0 {
            self.push(block);
            return Ok(());
        }
        let table = self.ext4.block(block)?;
        for pointer in table.chunks(4) {
            self.pointer(le32(pointer, 0).into(), depth - 1)?;
        }
        Ok(())
    }

    fn push(&mut self, block: u64) {
        match self.extents.last_mut() {
            Some(last) if last.end() == self.logical && last.physical + last.len == block => {
                last.len += 1;
            }
            _ => self.extents.push(Extent {
                logical: self.logical,
                len: 1,
                physical: block,
            }),
        }
        self.logical += 1;
    }
}
