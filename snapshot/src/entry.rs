//! What is known about one name in a tree.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Bytes in a content hash, BLAKE3's default.
pub const HASH_LEN: usize = 32;

/// A BLAKE3 hash.
pub type Hash = [u8; HASH_LEN];

/// One name in a tree, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path below the tree's root, without a leading slash; empty for the root itself. Any bytes.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Everything that chmod, chown, touch and setfattr change. All zero for [`Kind::Link`], which
    /// shares its leader's.
    pub meta: Meta,
}

/// Metadata of a file of any kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with set-id and sticky bits, `0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When the content changed last.
    pub mtime: Time,
    /// Extended attributes with their namespace, sorted by name; access control lists are
    /// `system.posix_acl_access` and `system.posix_acl_default`, capabilities are
    /// `security.capability`.
    pub xattrs: Xattrs,
}

/// Extended attributes: names with their namespace, and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A moment since the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds after that second, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Kinds of files. Sockets are not recorded: they mean nothing without the process behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link and where it leads, any bytes.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A character device with its major and minor number.
    Character(u32, u32),
    /// A block device with its major and minor number.
    Block(u32, u32),
    /// Another name of the file that the tree holds under this path, which comes earlier in the
    /// tree's order: a hard link.
    Link(Vec<u8>),
}

/// What is in a regular file: equal values mean equal bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Length, bytes.
    pub size: u64,
    /// The stretches of data as (offset, length), when aligned blocks of
    /// [`BLOCK`](crate::content::BLOCK) zero bytes lie between or after them; `None` when there
    /// are none. This follows from the bytes alone, not from how a filesystem stores them.
    pub runs: Option<Vec<(u64, u64)>>,
    /// BLAKE3 of the stretches of data, one after the other; so the file's own BLAKE3 when `runs`
    /// is `None`.
    pub hash: Hash,
}

impl Content {
    /// Bytes that are stored: the size without the blocks of zeros.
    #[must_use]
    pub fn stored(&self) -> u64 {
        match &self.runs {
            None => self.size,
            Some(runs) => runs.iter().map(|(_, len)| len).sum(),
        }
    }

    /// The stretches of data, also of a file without holes.
    pub fn stretches(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let whole = (self.runs.is_none() && self.size > 0).then_some((0, self.size));
        let runs = self.runs.as_deref().unwrap_or_default();
        whole.into_iter().chain(runs.iter().copied())
    }
}

impl Entry {
    /// The path for people, with a leading slash.
    #[must_use]
    pub fn shown(&self) -> PathBuf {
        shown(&self.path)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// A recorded path for people, with a leading slash.
#[must_use]
pub fn shown(path: &[u8]) -> PathBuf {
    let mut shown = PathBuf::from("/");
    shown.push(OsStr::from_bytes(path));
    shown
}

/// The order of a tree: parents before children, siblings by the bytes of their names, everything
/// below a directory before its next sibling.
#[must_use]
pub fn order(a: &[u8], b: &[u8]) -> Ordering {
    // The root's path has no name at all, which is less than any.
    match (a.is_empty(), b.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => {
            let names = |path| <[u8]>::split(path, |byte| *byte == b'/');
            names(a).cmp(names(b))
        }
    }
}

/// Whether `path` is `directory` or lies below it.
#[must_use]
pub fn is_within(path: &[u8], directory: &[u8]) -> bool {
    match path.strip_prefix(directory) {
        Some(rest) => directory.is_empty() || rest.is_empty() || rest[0] == b'/',
        None => false,
    }
}

/// The directory that holds `path` and the name in it; `None` for the root.
#[must_use]
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None => Some((&[], path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_come_directly_after_their_directory() {
        let mut paths = ["b", "a.b", "a/b", "a", "", "a/b/c", "a-b"];
        paths.sort_by(|a, b| order(a.as_bytes(), b.as_bytes()));
        assert_eq!(paths, ["", "a", "a/b", "a/b/c", "a-b", "a.b", "b"]);
    }

    #[test]
    fn within_means_whole_names() {
        assert!(is_within(b"a/b", b"a") && is_within(b"a", b"a") && is_within(b"a", b""));
        assert!(!is_within(b"ab", b"a") && !is_within(b"a", b"a/b"));
    }

    #[test]
    fn paths_split_at_their_last_slash() {
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"c"), Some((&b""[..], &b"c"[..])));
        assert_eq!(split(b""), None);
    }
}
