//! Names in a directory. Indexed directories read as linear ones: the index hides in entries without
//! an inode.

use super::bytes::{le16, le32};
use super::inode::Inode;
use super::{corrupt, Ext4};
use crate::tree::Contents;
use crate::{Error, Result};

/// A larger directory than this (ten million names) is not read.
const MAX_SIZE: u64 = 1 << 30;
/// Inode, length of the entry, length of the name, kind.
const HEADER: usize = 8;

/// The names in a directory, `.` and `..` left out, with their inodes.
pub(super) fn names(ext4: &Ext4, inode: &Inode) -> Result<Vec<(Vec<u8>, u32)>> {
    let mut names = Vec::new();
    if inode.is_inline() {
        let content = ext4.inline_data(inode)?;
        // The first four bytes are the inode of `..`; the rest is in two parts.
        let (first, second) = content.split_at(content.len().min(60));
        part(inode, first.get(4..).unwrap_or_default(), &mut names)?;
        part(inode, second, &mut names)?;
        return Ok(names);
    }
    if inode.size() > MAX_SIZE {
        return Err(corrupt(format!("inode {} is too large", inode.number)));
    }
    let file = ext4.file(inode)?;
    let failed = || Error::stream("read the image");
    let mut block = vec![0; ext4.block_size() as usize];
    for offset in (0..inode.size()).step_by(block.len()) {
        // A few bytes can claim to be a large directory, which has no blocks then.
        let data = file.data_after(offset).map_err(failed())?;
        if data.is_none_or(|data| data.start != offset) {
            let reason = format!("a hole in the directory of inode {}", inode.number);
            return Err(corrupt(reason));
        }
        let len = (inode.size() - offset).min(block.len() as u64) as usize;
        file.read_at(&mut block[..len], offset).map_err(failed())?;
        part(inode, &block[..len], &mut names)?;
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
