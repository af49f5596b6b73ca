//! Extended attributes: after the inode, or in a block of their own.

use apppot_snapshot::entry::Xattrs;

use super::geometry::{BLOCK, INODE_SIZE};
use super::Put;

const MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER: usize = 32;
const ENTRY_HEADER: usize = 16;
/// Where they begin in an inode: after the old part and the newer one.
pub(super) const IN_INODE: usize = 128 + 32;

/// Prefixes that are stored as a number.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Where attributes are stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// At the end of the inode; maybe nothing.
    Inode(Vec<u8>),
    /// In a block.
    Block(Box<[u8; BLOCK as usize]>),
}

/// One attribute as it is stored.
struct Attribute<'a> {
    prefix: u8,
    name: &'a [u8],
    value: Vec<u8>,
}

impl<'a> Attribute<'a> {
    fn new((name, value): &'a (Vec<u8>, Vec<u8>)) -> Option<Self> {
        let found = PREFIXES.iter().find(|(_, prefix)| name.starts_with(prefix));
        let (prefix, text) = found?;
        let value = match prefix {
            2 | 3 => acl(value)?,
            _ => value.clone(),
        };
        let name = &name[text.len()..];
        (name.len() <= 255).then_some(Attribute {
            prefix: *prefix,
            name,
            value,
        })
    }

    fn header(&self) -> usize {
        (ENTRY_HEADER + self.name.len()).next_multiple_of(4)
    }

    fn len(&self) -> usize {
        self.header() + self.value.len().next_multiple_of(4)
    }

    /// The hash that e2fsck checks: of the name's bytes, then of the value's words.
    fn hash(&self) -> u32 {
        let name = self
            .name
            .iter()
            .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// Stores attributes; `None` when they do not fit or one of them is unknown to ext4.
pub(super) fn store(xattrs: &Xattrs) -> Option<Stored> {
    if xattrs.is_empty() {
        return Some(Stored::Inode(Vec::new()));
    }
    let all: Option<Vec<Attribute>> = xattrs.iter().map(Attribute::new).collect();
    let mut all = all?;
    all.sort_by_key(|one| (one.prefix, one.name.len(), one.name));
    let mut inode = vec![0; INODE_SIZE - IN_INODE];
    inode.put32(0, MAGIC);
    if fill(&mut inode[4..], 0, &all).is_some() {
        return Some(Stored::Inode(inode));
    }
    let mut block = Box::new([0; BLOCK as usize]);
    let hash = fill(&mut block[..], BLOCK_HEADER, &all)?;
    block.put32(0, MAGIC);
    // One inode has it; it takes one block.
    block.put32(4, 1);
    block.put32(8, 1);
    block.put32(12, hash);
    Some(Stored::Block(block))
}

/// Entries from `first` on, values from the end; offsets count from the beginning of `out`.
fn fill(out: &mut [u8], first: usize, all: &[Attribute]) -> Option<u32> {
    let needed: usize = all.iter().map(Attribute::len).sum();
    // Four zero bytes end the entries.
    if first + needed + 4 > out.len() {
        return None;
    }
    let (mut entry, mut value, mut hash) = (first, out.len(), 0u32);
    for one in all {
        value -= one.value.len().next_multiple_of(4);
        out[value..value + one.value.len()].copy_from_slice(&one.value);
        out[entry] = one.name.len() as u8;
        out[entry + 1] = one.prefix;
        let offset = if one.value.is_empty() { 0 } else { value };
        out.put16(entry + 2, offset as u16);
        out.put32(entry + 8, one.value.len() as u32);
        out.put32(entry + 12, one.hash());
        out[entry + ENTRY_HEADER..][..one.name.len()].copy_from_slice(one.name);
        entry += one.header();
        hash = hash.rotate_left(16) ^ one.hash();
    }
    Some(hash)
}

/// From version 2 of access control lists (of system calls) to version 1 (on disk: no number where
/// the tag needs none).
fn acl(value: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || entries.len() % 8 != 0 {
        return None;
    }
    let mut out = 1u32.to_le_bytes().to_vec();
    for entry in entries.chunks(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let len = if tag == USER || tag == GROUP { 8 } else { 4 };
        out.extend_from_slice(&entry[..len]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, len: usize) -> (Vec<u8>, Vec<u8>) {
        (name.as_bytes().to_owned(), vec![7; len])
    }

    #[test]
    fn short_ones_are_in_the_inode_and_long_ones_in_a_block() {
        let fits = |all: &[(Vec<u8>, Vec<u8>)]| match store(&all.to_vec()) {
            Some(Stored::Inode(bytes)) => format!("inode {}", bytes.len()),
            Some(Stored::Block(_)) => String::from("block"),
            None => String::from("none"),
        };
        assert_eq!(fits(&[]), "inode 0");
        assert_eq!(fits(&[one("security.capability", 20)]), "inode 96");
        assert_eq!(fits(&[one("user.a", 68)]), "inode 96");
        assert_eq!(fits(&[one("user.a", 69)]), "block");
        assert_eq!(fits(&[one("user.a", 4000)]), "block");
        assert_eq!(fits(&[one("user.a", 4093)]), "none");
        assert_eq!(fits(&[one("strange.a", 4)]), "none");
        assert_eq!(fits(&[one("system.posix_acl_access", 4)]), "none");
    }
}
