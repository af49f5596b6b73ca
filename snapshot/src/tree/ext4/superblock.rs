//! The superblock: the filesystem's measures and features.

use super::bytes::{join, le16, le32};
use super::corrupt;
use crate::tree::Blocks;
use crate::{Error, Result};

/// Features without which the filesystem cannot be understood, and that are understood here.
const KNOWN: u32 = FILETYPE
    | RECOVERY
    | META_BG
    | EXTENTS
    | BITS64
    | MMP
    | FLEX_BG
    | EA_INODE
    | CSUM_SEED
    | LARGEDIR
    | INLINE_DATA
    | CASEFOLD;

const FILETYPE: u32 = 0x2;
const RECOVERY: u32 = 0x4;
const META_BG: u32 = 0x10;
const EXTENTS: u32 = 0x40;
const BITS64: u32 = 0x80;
const MMP: u32 = 0x100;
const FLEX_BG: u32 = 0x200;
const EA_INODE: u32 = 0x400;
const CSUM_SEED: u32 = 0x2000;
const LARGEDIR: u32 = 0x4000;
const INLINE_DATA: u32 = 0x8000;
const CASEFOLD: u32 = 0x2_0000;

/// Names of features that are not.
const UNKNOWN: [(u32, &str); 3] = [
    (0x1, "compression"),
    (0x8, "journal_dev"),
    (0x1_0000, "encrypt"),
];

const SPARSE_SUPER: u32 = 0x1;

/// More groups than this (about 1 PiB) are taken for damage.
const MAX_GROUPS: u64 = 1 << 23;

/// What the superblock says.
#[derive(Debug)]
pub(super) struct Superblock {
    /// Bytes in a block.
    pub(super) block_size: u64,
    /// Bytes in an inode.
    pub(super) inode_size: u16,
    /// Inodes in a group.
    pub(super) inodes_per_group: u32,
    /// Number of groups.
    pub(super) groups: u64,
    /// Bytes in a group descriptor.
    pub(super) descriptor_size: u64,
    /// The journal's inode, 0 for none.
    pub(super) journal: u32,
    first_data_block: u64,
    blocks_per_group: u64,
    first_meta_group: u64,
    incompatible: u32,
    read_only: u32,
}

impl Superblock {
    pub(super) fn read(blocks: &dyn Blocks, offset: u64) -> Result<Self> {
        let mut raw = [0; 1024];
        let at = offset
            .checked_add(1024)
            .ok_or_else(|| corrupt("its place"))?;
        blocks
            .read_at(&mut raw, at)
            .map_err(Error::stream("read the image"))?;
        Self::decode(&raw)
    }

    fn decode(raw: &[u8; 1024]) -> Result<Self> {
        if le16(raw, 0x38) != 0xef53 {
            return Err(Error::Filesystem(String::from("it is no ext4 filesystem")));
        }
        let incompatible = le32(raw, 0x60);
        refuse_unknown(incompatible)?;
        let dynamic = le32(raw, 0x4c) > 0;
        let block_size = 1024u64 << le32(raw, 0x18).min(63);
        let bits64 = incompatible & BITS64 != 0;
        let high = if bits64 { le32(raw, 0x150) } else { 0 };
        let count = join(le32(raw, 4), high);
        let first_data_block = u64::from(le32(raw, 0x14));
        let blocks_per_group = u64::from(le32(raw, 0x20)).max(1);
        let superblock = Superblock {
            block_size,
            inode_size: if dynamic { le16(raw, 0x58) } else { 128 },
            inodes_per_group: le32(raw, 0x28),
            groups: count
                .saturating_sub(first_data_block)
                .div_ceil(blocks_per_group),
            descriptor_size: if bits64 { le16(raw, 0xfe).into() } else { 32 },
            journal: le32(raw, 0xe0),
            first_data_block,
            blocks_per_group,
            first_meta_group: le32(raw, 0x104).into(),
            incompatible,
            read_only: le32(raw, 0x64),
        };
        superblock.check()?;
        Ok(superblock)
    }

    fn check(&self) -> Result<()> {
        let inode = u64::from(self.inode_size);
        let sound = (1024..=65536).contains(&self.block_size)
            && (128..=self.block_size).contains(&inode)
            && inode.is_power_of_two()
            && self.inodes_per_group > 0
            && (32..=1024).contains(&self.descriptor_size)
            && self.descriptor_size.is_power_of_two()
            && self.groups <= MAX_GROUPS;
        match sound {
            true => Ok(()),
            false => Err(corrupt("its superblock")),
        }
    }

    /// Whether the journal holds what is not in its place yet.
    pub(super) fn needs_recovery(&self) -> bool {
        self.incompatible & RECOVERY != 0
    }

    /// The block that holds the `index`th block of group descriptors.
    pub(super) fn descriptor_block(&self, index: u64) -> u64 {
        let meta = self.incompatible & META_BG != 0;
        if !meta || index < self.first_meta_group {
            // The first copy of the superblock is at byte 1024, whatever the first data block.
            return 1024 / self.block_size + 1 + index;
        }
        let group = index * (self.block_size / self.descriptor_size);
        let first = self.first_data_block + group * self.blocks_per_group;
        first + u64::from(self.has_superblock(group))
    }

    /// Whether the group begins with a copy of the superblock: with sparse_super, groups 0, 1 and
    /// powers of 3, 5 and 7.
    fn has_superblock(&self, group: u64) -> bool {
        let power = |base: u64| {
            let mut number = base;
            while number < group {
                number *= base;
            }
            number == group
        };
        self.read_only & SPARSE_SUPER == 0 || group < 2 || power(3) || power(5) || power(7)
    }
}

fn refuse_unknown(incompatible: u32) -> Result<()> {
    if incompatible & !KNOWN == 0 {
        return Ok(());
    }
    let name = UNKNOWN
        .iter()
        .find(|(bit, _)| incompatible & bit != 0)
        .map_or_else(
            || format!("{:#x}", incompatible & !KNOWN),
            |(_, name)| (*name).to_owned(),
        );
    Err(Error::Filesystem(format!(
        "it has the feature '{name}', which is not known here"
    )))
}
