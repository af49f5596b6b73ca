//! Extended attributes: after the inode, in a block of their own, and long ones in an inode.

use super::bytes::{le16, le32};
use super::inode::Inode;
use super::{corrupt, Ext4};
use crate::entry::Xattrs;
use crate::xattrs::{is_recorded, ACL_ACCESS, ACL_DEFAULT};
use crate::Result;

const MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER: usize = 32;
const ENTRY_HEADER: usize = 16;
const LONGEST: u64 = 65536;

/// Prefixes that are stored as a number.
const PREFIXES: [(u8, &[u8]); 7] = [
    (0, b""),
    (1, b"user."),
    (2, ACL_ACCESS),
    (3, ACL_DEFAULT),
    (4, b"trusted."),
    (6, b"security."),
    (7, b"system."),
];
/// The prefix of content that is stored as an attribute.
const SYSTEM: u8 = 7;

/// The recorded attributes of an inode, sorted.
pub(super) fn read(ext4: &Ext4, inode: &Inode) -> Result<Xattrs> {
    let mut recorded = Vec::new();
    let mut add = |stored: Stored<'_>| -> Result<()> {
        let Some((_, prefix)) = PREFIXES.iter().find(|(index, _)| *index == stored.prefix) else {
            return Ok(());
        };
        let name = [prefix, stored.name].concat();
        if is_recorded(&name) {
            let value = match stored.inode {
                0 => stored.value.to_owned(),
                number => long_value(ext4, number)?,
            };
            recorded.push(converted(name, value).ok_or_else(|| bad(inode))?);
        }
        Ok(())
    };
    for stored in in_inode(inode).ok_or_else(|| bad(inode))? {
        add(stored)?;
    }
    if inode.attribute_block() != 0 {
        let block = ext4.block(inode.attribute_block())?;
        let entries = block.get(BLOCK_HEADER..).unwrap_or_default();
        if le32(&block, 0) != MAGIC {
            return Err(bad(inode));
        }
        for stored in entries_of(entries, &block).ok_or_else(|| bad(inode))? {
            add(stored)?;
        }
    }
    recorded.sort();
    recorded.dedup_by(|a, b| a.0 == b.0);
    Ok(recorded)
}

/// The part of a file's content that is stored as an attribute.
pub(super) fn inline_rest(inode: &Inode) -> Vec<u8> {
    let stored = in_inode(inode).unwrap_or_default();
    stored
        .into_iter()
        .find(|stored| stored.prefix == SYSTEM && stored.name == b"data")
        .map(|stored| stored.value.to_owned())
        .unwrap_or_default()
}

fn bad(inode: &Inode) -> crate::Error {
    corrupt(format!("the attributes of inode {}", inode.number))
}

fn long_value(ext4: &Ext4, number: u32) -> Result<Vec<u8>> {
    let inode = ext4.inode(number)?;
    match inode.is_attribute() {
        true => ext4.read_whole(&inode, LONGEST),
        false => Err(bad(&inode)),
    }
}

/// One attribute as it is stored.
struct Stored<'a> {
    prefix: u8,
    name: &'a [u8],
    value: &'a [u8],
    /// The inode that holds the value instead, if not 0.
    inode: u32,
}

fn in_inode(inode: &Inode) -> Option<Vec<Stored<'_>>> {
    let bytes = inode.attributes();
    if le32(bytes, 0) != MAGIC {
        return Some(Vec::new());
    }
    entries_of(&bytes[4..], &bytes[4..])
}

/// Entries up to the one that is all zeros; their values lie in `values`.
fn entries_of<'a>(mut rest: &'a [u8], values: &'a [u8]) -> Option<Vec<Stored<'a>>> {
    let mut found = Vec::new();
    while rest.len() >= 4 && le32(rest, 0) != 0 {
        if rest.len() < ENTRY_HEADER {
            return None;
        }
        let len = usize::from(rest[0]);
        let inode = le32(rest, 4);
        let (offset, size) = (usize::from(le16(rest, 2)), le32(rest, 8) as usize);
        let value = match inode {
            0 => values.get(offset..offset.checked_add(size)?)?,
            _ => &[],
        };
        found.push(Stored {
            prefix: rest[1],
            name: rest.get(ENTRY_HEADER..ENTRY_HEADER + len)?,
            value,
            inode,
        });
        rest = rest.get((ENTRY_HEADER + len).next_multiple_of(4)..)?;
    }
    Some(found)
}

/// Access control lists are stored more tightly than getxattr(2) gives them.
fn converted(name: Vec<u8>, value: Vec<u8>) -> Option<(Vec<u8>, Vec<u8>)> {
    if name != ACL_ACCESS && name != ACL_DEFAULT {
        return Some((name, value));
    }
    acl(&value).map(|value| (name, value))
}

/// From version 1 (on disk: no number where the tag needs none) to version 2 (of system calls).
fn acl(stored: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let mut rest = stored.get(4..).filter(|_| le32(stored, 0) == 1)?;
    let mut out = 2u32.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let tag = le16(rest, 0);
        let named = tag == USER || tag == GROUP;
        let len = if named { 8 } else { 4 };
        out.extend_from_slice(rest.get(..4)?);
        out.extend_from_slice(match named {
            true => rest.get(4..8)?,
            false => &[0xff; 4],
        });
        rest = rest.get(len..)?;
    }
    Some(out)
}
