//! Where the parts of the filesystem are.

/// Bytes in a block.
pub(crate) const BLOCK: u64 = 4096;
/// Blocks in a group: as many as a bitmap of one block has bits.
pub(super) const GROUP: u32 = 32768;
/// Blocks for group descriptors, used and reserved. With 128 descriptors of 128 MiB each in a block,
/// the filesystem can grow to 512 GiB without moving anything.
pub(super) const DESCRIPTOR_BLOCKS: u32 = 32;
/// Group descriptors in a block.
const DESCRIPTORS: u32 = 128;
/// Most blocks that a filesystem of this kind has.
pub(super) const MAX_BLOCKS: u32 = DESCRIPTOR_BLOCKS * DESCRIPTORS * GROUP;
/// The longest file, bytes: 2^32 blocks less one.
pub(crate) const MAX_FILE: u64 = (u32::MAX as u64) * BLOCK;

/// Bytes of an inode.
pub(super) const INODE_SIZE: usize = 256;
/// Inodes in a block.
pub(super) const INODES_PER_BLOCK: u32 = (BLOCK as usize / INODE_SIZE) as u32;
/// Where one inode for each so many bytes of the filesystem is the rule of mke2fs.
const BYTES_PER_INODE: u64 = 16384;

/// Whether a group begins with a copy of the superblock (feature sparse_super).
pub(super) fn has_copy(group: u32) -> bool {
    let is_power_of = |base: u32| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power_of)
}

/// The first block at or after `block` that does not belong to a copy of the superblock and its
/// descriptors.
pub(super) fn free_from(block: u32) -> u32 {
    let (group, within) = (block / GROUP, block % GROUP);
    match within <= DESCRIPTOR_BLOCKS && has_copy(group) {
        true => group * GROUP + DESCRIPTOR_BLOCKS + 1,
        false => block,
    }
}

/// Blocks from `block` on, which is free, up to the next copy of the superblock.
pub(super) fn free_run(block: u32) -> u32 {
    let mut group = block / GROUP + 1;
    while !has_copy(group) {
        group += 1;
    }
    group * GROUP - block
}

/// Size and division of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Blocks in all.
    pub(super) blocks: u32,
    /// Groups of blocks; the last may be short.
    pub(super) groups: u32,
    /// Inodes in each group.
    pub(super) inodes_per_group: u32,
}

impl Geometry {
    /// A filesystem of about `blocks` blocks that has room for `inodes` inodes; `None` when it cannot
    /// have so many.
    pub(super) fn new(blocks: u32, inodes: u32) -> Option<Self> {
        // A last group that is hardly larger than its copies is left out.
        let last = blocks % GROUP;
        let blocks = match last > 0 && last < 2 * DESCRIPTOR_BLOCKS && blocks > GROUP {
            true => blocks - last,
            false => blocks,
        };
        let groups = blocks.div_ceil(GROUP);
        let usual = u64::from(blocks) * BLOCK / BYTES_PER_INODE;
        let wanted = u64::from(inodes + inodes / 4).max(usual);
        let per_group = wanted
            .div_ceil(groups.max(1).into())
            .next_multiple_of(INODES_PER_BLOCK.into())
            .min(GROUP.into()) as u32;
        let enough = u64::from(per_group) * u64::from(groups) >= u64::from(inodes);
        (blocks > 0 && enough).then_some(Geometry {
            blocks,
            groups,
            inodes_per_group: per_group,
        })
    }

    /// Inodes in all.
    pub(super) fn inodes(&self) -> u32 {
        self.groups * self.inodes_per_group
    }

    /// Blocks of one group's inode table.
    pub(super) fn table(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// Blocks in a group.
    pub(super) fn blocks_in(&self, group: u32) -> u32 {
        GROUP.min(self.blocks - group * GROUP)
    }

    /// Blocks of the journal, as mke2fs has it.
    pub(super) fn journal(&self) -> u32 {
        match self.blocks {
            0..32768 => 1024,
            32768..262_144 => 4096,
            262_144..524_288 => 8192,
            _ => 16384,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_where_sparse_super_has_them() {
        let groups: Vec<u32> = (0..130).filter(|group| has_copy(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn contents_keep_clear_of_copies() {
        assert_eq!(free_from(0), 33);
        assert_eq!(free_from(33), 33);
        assert_eq!(free_from(GROUP), GROUP + 33);
        assert_eq!(free_from(2 * GROUP), 2 * GROUP);
        assert_eq!(free_run(33), GROUP - 33);
        assert_eq!(free_run(GROUP + 40), 2 * GROUP - 40);
    }

    #[test]
    fn many_small_files_get_more_inodes_than_usual() {
        let usual = Geometry::new(GROUP, 100).unwrap();
        assert_eq!((usual.groups, usual.inodes()), (1, 8192));
        let many = Geometry::new(GROUP, 20_000).unwrap();
        assert!(many.inodes() >= 25_000);
        assert_eq!(Geometry::new(GROUP, 40_000), None);
    }
}
