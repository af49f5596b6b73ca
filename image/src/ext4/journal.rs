//! An empty journal (`Documentation/filesystems/ext4/journal.rst`): the kernel writes it, so that a
//! machine that is killed while it writes into the image leaves a filesystem that is whole.

use super::geometry::BLOCK;

const MAGIC: u32 = 0xc03b_3998;
const SUPERBLOCK_V2: u32 = 4;

/// The first block of a journal of `blocks` blocks: nothing is in it.
pub(super) fn superblock(blocks: u32, uuid: &[u8; 16]) -> [u8; BLOCK as usize] {
    let mut out = [0; BLOCK as usize];
    // Its numbers are big-endian.
    let mut put = |at: usize, value: u32| out[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put(0, MAGIC);
    put(4, SUPERBLOCK_V2);
    put(12, BLOCK as u32);
    put(16, blocks);
    // The first block of the log, and the first transaction that is expected.
    put(20, 1);
    put(24, 1);
    // Number of filesystems that use it.
    put(64, 1);
    out[48..64].copy_from_slice(uuid);
    out
}
