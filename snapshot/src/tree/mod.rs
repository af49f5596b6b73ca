//! Trees of files that can be recorded: a live directory, or an image that nobody has mounted.

mod directory;
mod ext4;
mod overlay;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

pub use directory::Directory;
pub(crate) use directory::LiveFile;
pub use ext4::Ext4;
pub use overlay::Overlay;

use crate::content::{self, Buffer, Contents};
use crate::entry::{order, Entry, Kind};
use crate::rules::Rules;
use crate::{Error, Result};

/// A source of entries and of what is in the files.
pub trait Tree: Sync {
    /// All entries that the rules keep, in the tree's order, with the sizes of files but not yet
    /// their hashes.
    ///
    /// # Errors
    /// The tree cannot be read, or is deeper than what can be recorded.
    fn walk(&self, rules: &Rules) -> Result<Listing>;

    /// Opens a file that [`walk`](Tree::walk) has found.
    ///
    /// # Errors
    /// It cannot be opened, or is no regular file any more.
    fn open(&self, found: &Found) -> Result<Box<dyn Contents + '_>>;
}

/// What is in a tree.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The entries, in the tree's order.
    pub found: Vec<Found>,
    /// Directories on which other filesystems are mounted: nothing is known about what is below.
    pub covered: Vec<Vec<u8>>,
}

/// An entry, and where the tree finds its file again.
#[derive(Debug, Clone)]
pub struct Found {
    /// The entry.
    pub entry: Entry,
    /// The number of its inode.
    pub(crate) inode: u64,
}

/// Bytes of a disk or partition.
pub trait Blocks: Send + Sync {
    /// Fills `buffer` from byte `offset`.
    ///
    /// # Errors
    /// Reading fails or the bytes do not exist.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Blocks for std::fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

/// Records a tree: every entry with the hash of its content, in the tree's order.
///
/// `progress` is told of every hundred files or so: how many of how many are done.
///
/// # Errors
/// The tree cannot be read, or a file changes meanwhile.
pub fn record(
    tree: &dyn Tree,
    rules: &Rules,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Listing> {
    let mut listing = tree.walk(rules)?;
    let found = &mut listing.found;
    let files: Vec<usize> = (0..found.len())
        .filter(|&at| matches!(&found[at].entry.kind, Kind::File(file) if file.size > 0))
        .collect();
    let hashed = hash_all(tree, found, &files, progress)?;
    let empty = *blake3::hash(b"").as_bytes();
    for found in found.iter_mut() {
        if let Kind::File(file) = &mut found.entry.kind {
            file.hash = empty;
        }
    }
    for (at, content) in hashed {
        found[at].entry.kind = Kind::File(content);
    }
    Ok(listing)
}

type Hashed = Vec<(usize, crate::entry::Content)>;

/// Hashes files on all CPUs; a thread takes the next ones when it has done its own.
fn hash_all(
    tree: &dyn Tree,
    found: &[Found],
    files: &[usize],
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Hashed> {
    const STRIDE: usize = 64;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        let mut hashed = Vec::new();
        let mut buffer = Buffer::default();
        loop {
            let start = next.fetch_add(STRIDE, Ordering::Relaxed);
            if start >= files.len() {
                return hashed;
            }
            progress(start, files.len());
            for &at in &files[start..files.len().min(start + STRIDE)] {
                match hash(tree, &found[at], &mut buffer) {
                    Ok(content) => hashed.push((at, content)),
                    Err(error) => {
                        next.store(files.len(), Ordering::Relaxed);
                        if let Ok(mut failure) = failure.lock() {
                            failure.get_or_insert(error);
                        }
                        return hashed;
                    }
                }
            }
        }
    };
    let hashed = std::thread::scope(|scope| {
        let wanted = threads.min(files.len().div_ceil(STRIDE));
        let others: Vec<_> = (1..wanted).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            all.extend(other.join().unwrap_or_default());
        }
        all
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ if hashed.len() < files.len() => Err(Error::Filesystem(String::from(
            "a thread that hashes files has died",
        ))),
        _ => Ok(hashed),
    }
}

fn hash(tree: &dyn Tree, found: &Found, buffer: &mut Buffer) -> Result<crate::entry::Content> {
    let file = tree.open(found)?;
    let content = content::examine(file.as_ref(), buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Moving(found.entry.shown()),
        _ => Error::file("read", found.entry.shown())(error),
    })?;
    match &found.entry.kind {
        Kind::File(file) if file.size == content.size => Ok(content),
        _ => Err(Error::Moving(found.entry.shown())),
    }
}

/// Puts entries into the tree's order and makes links of all but the first name of each file.
///
/// `groups` gives the key of entries whose files have several names.
fn finish<K: std::hash::Hash + Eq>(mut found: Vec<(Found, Option<K>)>) -> Vec<Found> {
    found.sort_by(|(a, _), (b, _)| order(&a.entry.path, &b.entry.path));
    let mut leaders: HashMap<K, Vec<u8>> = HashMap::new();
    found
        .into_iter()
        .map(|(mut found, key)| {
            let Some(key) = key else { return found };
            match leaders.get(&key) {
                Some(leader) => {
                    found.entry.kind = Kind::Link(leader.clone());
                    found.entry.meta = crate::entry::Meta::default();
                }
                None => {
                    leaders.insert(key, found.entry.path.clone());
                }
            }
            found
        })
        .collect()
}
