//! One file.

use apppot_snapshot::entry::Meta;

use super::Children;
use crate::ext4::Extent;

/// Where a file is in the tree's list.
pub(crate) type NodeId = usize;

/// The root directory.
pub(crate) const ROOT: NodeId = 0;

/// A file of any kind.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) meta: Meta,
    /// Names that lead to it.
    pub(crate) links: u32,
}

/// Kinds of files.
#[derive(Debug)]
pub(crate) enum Kind {
    Directory {
        parent: NodeId,
        /// Directories above it.
        depth: u32,
        children: Children,
    },
    File {
        size: u64,
        extents: Vec<Extent>,
    },
    Symlink(Vec<u8>),
    Fifo,
    Character(u32, u32),
    Block(u32, u32),
}

impl Kind {
    /// An empty directory.
    pub(crate) fn directory(parent: NodeId, depth: u32) -> Self {
        Kind::Directory {
            parent,
            depth,
            children: Children::new(),
        }
    }
}

impl Node {
    pub(super) fn new(kind: Kind, meta: Meta) -> Self {
        Node {
            kind,
            meta,
            links: 0,
        }
    }
}
