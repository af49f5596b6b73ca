//! Names in a directory. Indexed directories read as linear ones: the index hides in entries without
//! an inode.

use super::bytes::{le16, le32};
use super::inode::Inode;
use super::{corrupt, Ext4};
use crate::Result;

/// A larger directory than this (ten million names) is not read.
const MAX_SIZE: u64 = 1 << 30;
/// Inode, length of the entry, length of the name, kind.
const HEADER: usize = 8;

/// The names in a directory, `.` and `..` left out, with their inodes.
pub(super) fn names(ext4: &Ext4, inode: &Inode) -> Result<Vec<(Vec<u8>, u32)>> {
    let content = ext4.read_whole(inode, MAX_SIZE)?;
    let mut names = Vec::new();
    if inode.is_inline() {
        // The first four bytes are the inode of `..`; the rest is in two parts.
        let (first, second) = content.split_at(content.len().min(60));
        part(inode, first.get(4..).unwrap_or_default(), &mut names)?;
        part(inode, second, &mut names)?;
        return Ok(names);
    }
    for block in content.chunks(ext4.block_size() as usize) {
        part(inode, block, &mut names)?;
    }
    Ok(names)
}

fn part(inode: &Inode, mut rest: &[u8], names: &mut Vec<(Vec<u8>, u32)>) -> Result<()> {
    while rest.len() >= HEADER {
        let len = match le16(rest, 4) {
            // A length of 64 KiB does not fit its field.
            0 | 0xffff => rest.len(),
            len => usize::from(len),
        };
        let name = HEADER + usize::from(rest[6]);
        if len < HEADER || len > rest.len() || name > len {
            return Err(corrupt(format!("the directory of inode {}", inode.number)));
        }
        let number = le32(rest, 0);
        let name = &rest[HEADER..name];
        if number != 0 && !matches!(name, b"" | b"." | b"..") {
            names.push((name.to_owned(), number));
        }
        rest = &rest[len..];
    }
    Ok(())
}
