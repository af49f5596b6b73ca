//! The journal (`Documentation/filesystems/ext4/journal.rst`) of a filesystem that was not unmounted:
//! which blocks have their newest content in it. Nothing is written.
//!
//! A transaction counts when its commit block is there. Checksums of commit blocks are not examined:
//! they matter to disks that reorder writes, and an image was written by a kernel through a host.

use std::collections::HashMap;

use super::bytes::{be16, be32, join};
use super::{corrupt, Ext4, StoredFile};
use crate::content::Contents;
use crate::{Error, Result};

/// First word of every block that is the journal's own.
pub(super) const MAGIC: u32 = 0xc03b_3998;

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const BITS64: u32 = 0x2;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
/// revoke, 64bit, async_commit, csum_v2, csum_v3.
const KNOWN: u32 = 0x1f;

/// A block's newest content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copy {
    /// Where it is, as the filesystem counts.
    pub(super) block: u64,
    /// Whether its first word was [`MAGIC`] and has been blanked.
    pub(super) escaped: bool,
}

/// Reads the journal and says what it would change.
pub(super) fn replay(ext4: &Ext4) -> Result<HashMap<u64, Copy>> {
    let inode = ext4.inode(ext4.superblock.journal)?;
    let file = ext4.file(&inode)?;
    let mut journal = match Journal::open(ext4, file)? {
        Some(journal) => journal,
        None => return Ok(HashMap::new()),
    };
    let mut copies = HashMap::new();
    let mut revoked: HashMap<u64, u32> = HashMap::new();
    let mut all = Vec::new();
    while let Some(transaction) = journal.transaction()? {
        for block in transaction.revoked {
            revoked.insert(block, transaction.sequence);
        }
        all.push((transaction.sequence, transaction.copies));
    }
    for (sequence, blocks) in all {
        for (block, copy) in blocks {
            // A revocation holds for its own transaction and all before.
            let newer = |last: &u32| (sequence.wrapping_sub(*last) as i32) > 0;
            if revoked.get(&block).is_none_or(newer) {
                copies.insert(block, copy);
            }
        }
    }
    Ok(copies)
}

/// One transaction that was committed.
struct Transaction {
    sequence: u32,
    copies: Vec<(u64, Copy)>,
    revoked: Vec<u64>,
}

struct Journal<'a> {
    ext4: &'a Ext4,
    file: StoredFile<'a>,
    features: u32,
    first: u64,
    end: u64,
    /// The next block to read, and how many may still be read: the log is a ring.
    next: u64,
    left: u64,
    sequence: u32,
}

impl<'a> Journal<'a> {
    /// Nothing when the journal is empty.
    fn open(ext4: &'a Ext4, file: StoredFile<'a>) -> Result<Option<Self>> {
        let mut head = vec![0; ext4.block_size() as usize];
        file.read_at(&mut head, 0)
            .map_err(Error::stream("read the journal"))?;
        if be32(&head, 0) != MAGIC {
            return Err(corrupt("its journal"));
        }
        let features = match be32(&head, 4) {
            SUPERBLOCK_V2 => be32(&head, 40),
            _ => 0,
        };
        if features & !KNOWN != 0 {
            return Err(Error::Filesystem(format!(
                "its journal has features ({:#x}) that are not known here: mount it once",
                features & !KNOWN
            )));
        }
        let (first, end) = (u64::from(be32(&head, 20)), u64::from(be32(&head, 16)));
        let next = u64::from(be32(&head, 28));
        if next == 0 {
            return Ok(None);
        }
        let size = file.size() / ext4.block_size();
        if u64::from(be32(&head, 12)) != ext4.block_size() || first >= end || end > size {
            return Err(corrupt("its journal"));
        }
        Ok(Some(Journal {
            ext4,
            file,
            features,
            first,
            end,
            next,
            left: end - first,
            sequence: be32(&head, 24),
        }))
    }

    /// The next block with its number in the journal; none after a whole round.
    fn block(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        if self.left == 0 || !(self.first..self.end).contains(&self.next) {
            return Ok(None);
        }
        let number = self.next;
        self.left -= 1;
        self.next = match number + 1 == self.end {
            true => self.first,
            false => number + 1,
        };
        let mut block = vec![0; self.ext4.block_size() as usize];
        self.file
            .read_at(&mut block, number * self.ext4.block_size())
            .map_err(Error::stream("read the journal"))?;
        Ok(Some((number, block)))
    }

    /// The next transaction; none when what follows was not committed.
    fn transaction(&mut self) -> Result<Option<Transaction>> {
        let mut transaction = Transaction {
            sequence: self.sequence,
            copies: Vec::new(),
            revoked: Vec::new(),
        };
        while let Some((_, block)) = self.block()? {
            if be32(&block, 0) != MAGIC || be32(&block, 8) != self.sequence {
                return Ok(None);
            }
            match be32(&block, 4) {
                DESCRIPTOR => {
                    if !self.descriptor(&block, &mut transaction)? {
                        return Ok(None);
                    }
                }
                REVOKE => self.revocation(&block, &mut transaction),
                COMMIT => {
                    self.sequence = self.sequence.wrapping_add(1);
                    return Ok(Some(transaction));
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Takes the blocks that a descriptor announces; false when they are not there.
    fn descriptor(&mut self, block: &[u8], transaction: &mut Transaction) -> Result<bool> {
        const ESCAPED: u32 = 1;
        const SAME_UUID: u32 = 2;
        const LAST: u32 = 8;
        let v3 = self.features & CSUM_V3 != 0;
        let wide = self.features & BITS64 != 0;
        let len = match (v3, self.features & CSUM_V2 != 0, wide) {
            (true, ..) => 16,
            (false, true, true) => 14,
            (false, true, false) => 10,
            (false, false, true) => 12,
            (false, false, false) => 8,
        };
        let checksum = self.features & (CSUM_V2 | CSUM_V3) != 0;
        let end = block.len() - if checksum { 4 } else { 0 };
        let mut at = 12;
        while at + len <= end {
            let tag = &block[at..at + len];
            let flags = match v3 {
                true => be32(tag, 4),
                false => be16(tag, 6).into(),
            };
            let high = if wide { be32(tag, 8) } else { 0 };
            let Some((number, _)) = self.block()? else {
                return Ok(false);
            };
            let copy = Copy {
                block: self.place(number)?,
                escaped: flags & ESCAPED != 0,
            };
            transaction.copies.push((join(be32(tag, 0), high), copy));
            at += len + if flags & SAME_UUID == 0 { 16 } else { 0 };
            if flags & LAST != 0 {
                break;
            }
        }
        Ok(true)
    }

    fn revocation(&self, block: &[u8], transaction: &mut Transaction) {
        let wide = self.features & BITS64 != 0;
        let end = (be32(block, 12) as usize).clamp(16, block.len());
        let len = if wide { 8 } else { 4 };
        let numbers = block[16..end].chunks_exact(len).map(|number| match wide {
            true => join(be32(number, 4), be32(number, 0)),
            false => be32(number, 0).into(),
        });
        transaction.revoked.extend(numbers);
    }

    /// Where a block of the journal is in the filesystem.
    fn place(&self, number: u64) -> Result<u64> {
        let extents = &self.file.extents;
        let index = extents.partition_point(|extent| extent.end() <= number);
        extents
            .get(index)
            .filter(|extent| extent.logical <= number)
            .map(|extent| extent.physical + (number - extent.logical))
            .ok_or_else(|| corrupt("its journal"))
    }
}
