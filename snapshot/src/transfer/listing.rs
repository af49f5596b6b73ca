//! What is in a directory, and what has changed in it since.

use std::cmp::Ordering;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Patterns;
use crate::codec::{check_path, MAX_DEPTH, MAX_PATH};
use crate::entry::{is_within, order, shown, Time};
use crate::{Error, Result};

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Kind and permissions (`st_mode`).
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// When the content changed last.
    pub mtime: Time,
    inode: u64,
    device: u64,
    /// When anything changed last; nobody can set it.
    ctime: Time,
    /// Whether the file has other names.
    several: bool,
}

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        let time = |seconds, nanoseconds| Time {
            seconds,
            nanoseconds: nanoseconds as u32,
        };
        Stamp {
            mode: stat.st_mode,
            size: stat.st_size as u64,
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            inode: stat.st_ino,
            device: stat.st_dev,
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            several: stat.st_nlink > 1,
        }
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// What the names of one file have in common; none for a file with one name.
    pub(super) fn shared(&self) -> Option<(u64, u64)> {
        (self.several && self.kind() != FileType::Directory).then_some((self.device, self.inode))
    }

    /// Whether nothing has happened to the file in between. Of directories only their own mode and
    /// time count: what is in them is looked at by itself.
    pub(super) fn is_same(&self, now: &Stamp) -> bool {
        if self.kind() == FileType::Directory {
            return (self.mode, self.mtime) == (now.mode, now.mtime);
        }
        self == now
    }

    /// As [`Stamp::is_same`], when other names of the file may have been replaced by us, which its
    /// ctime shows.
    pub(super) fn is_same_but_for_names(&self, now: &Stamp) -> bool {
        match self.several {
            true => {
                let key = |stamp: &Stamp| (stamp.mode, stamp.size, stamp.mtime, stamp.inode);
                key(self) == key(now)
            }
            false => self.is_same(now),
        }
    }
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Path below the directory that was listed.
    pub path: Vec<u8>,
    /// Its state.
    pub stamp: Stamp,
    /// Bytes of a file without its holes.
    pub stored: u64,
}

impl Item {
    pub(super) fn is_directory(&self) -> bool {
        self.stamp.kind() == FileType::Directory
    }
}

/// Why something does not travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skipped {
    /// It is a socket.
    Socket,
    /// It is a device.
    Device,
    /// It lies too deep, or its path is too long.
    Deep,
    /// It cannot be read: why.
    Unreadable(String),
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Skipped::Socket => f.write_str("it is a socket"),
            Skipped::Device => f.write_str("it is a device"),
            Skipped::Deep => f.write_str("its path is too long"),
            Skipped::Unreadable(reason) => f.write_str(reason),
        }
    }
}

/// What is in a directory, in the tree's order; without the directory itself.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Every name that can travel.
    pub items: Vec<Item>,
    /// Every one that cannot.
    pub skipped: Vec<(Vec<u8>, Skipped)>,
    /// Directories on which other filesystems are mounted, when these do not belong to the listing.
    covered: Vec<Vec<u8>>,
}

/// Lists what is in `root`. With `crossing`, filesystems mounted below it belong to it.
///
/// # Errors
/// `root` cannot be read. What is below it and cannot be read is skipped.
pub fn list(root: &Path, crossing: bool) -> Result<Listing> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = || Error::file("open directory", root);
    let directory = fs::open(root, flags, Mode::empty()).map_err(failed())?;
    let device = fs::fstat(&directory).map_err(failed())?.st_dev;
    let mut walk = Walk {
        listing: Listing::default(),
        only: (!crossing).then_some(device),
    };
    let names = names(&directory).map_err(Error::file("read", root))?;
    walk.all(&directory, b"", names, 1);
    Ok(walk.listing)
}

struct Walk {
    listing: Listing,
    /// The one filesystem that belongs to the listing.
    only: Option<u64>,
}

impl Walk {
    fn all(&mut self, directory: &OwnedFd, path: &[u8], names: Vec<CString>, depth: usize) {
        for name in names {
            let path = match path.is_empty() {
                true => name.as_bytes().to_owned(),
                false => [path, b"/", name.as_bytes()].concat(),
            };
            if let Err(reason) = self.one(directory, &name, &path, depth) {
                self.listing.skipped.push((path, reason));
            }
        }
    }

    fn one(
        &mut self,
        parent: &OwnedFd,
        name: &CString,
        path: &[u8],
        depth: usize,
    ) -> std::result::Result<(), Skipped> {
        let unreadable =
            |errno: Errno| Skipped::Unreadable(std::io::Error::from(errno).to_string());
        let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It vanished between being listed and being looked at.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(unreadable(errno)),
        };
        if path.len() > MAX_PATH || depth > MAX_DEPTH || check_path(path).is_err() {
            return Err(Skipped::Deep);
        }
        let stamp = Stamp::of(&stat);
        let item = || Item {
            path: path.to_owned(),
            stamp,
            stored: stamp.size.min((stat.st_blocks as u64).saturating_mul(512)),
        };
        match stamp.kind() {
            FileType::Directory if self.only.is_some_and(|only| only != stat.st_dev) => {
                self.listing.covered.push(path.to_owned());
            }
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = fs::openat(parent, name, flags, Mode::empty());
                let directory = directory.map_err(unreadable)?;
                let names = names(&directory).map_err(unreadable)?;
                self.listing.items.push(item());
                self.all(&directory, path, names, depth + 1);
            }
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {
                self.listing.items.push(item());
            }
            FileType::Socket => return Err(Skipped::Socket),
            _ => return Err(Skipped::Device),
        }
        Ok(())
    }
}

/// The names in a directory, sorted.
fn names(directory: impl AsFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for item in fs::Dir::read_from(directory)? {
        let item = item?;
        if !matches!(item.file_name().to_bytes(), b"." | b"..") {
            names.push(item.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// What is to be sent of a listing that was taken after another.
#[derive(Debug, Default)]
pub struct Changes<'a> {
    /// What is new or has changed.
    pub items: Vec<&'a Item>,
    /// Paths that were there before.
    pub deleted: Vec<&'a [u8]>,
}

impl Listing {
    /// What the patterns want of it, with the directories on the way.
    #[must_use]
    pub fn select(&self, patterns: &Patterns) -> Vec<&Item> {
        select(self.items.iter(), patterns)
    }

    /// Only what the patterns want of it.
    #[must_use]
    pub fn narrowed(self, patterns: &Patterns) -> Self {
        let skipped = self.skipped.iter();
        let missed = skipped.filter(|(path, _)| patterns.keep(path, false));
        Listing {
            items: self.select(patterns).into_iter().cloned().collect(),
            skipped: missed.cloned().collect(),
            ..self
        }
    }

    /// Whether any name matches these patterns.
    #[must_use]
    pub fn has_any(&self, patterns: &Patterns) -> bool {
        let mut items = self.items.iter();
        items.any(|item| patterns.keep(&item.path, item.is_directory()))
    }

    /// What has changed since `before`, as far as the patterns want it.
    #[must_use]
    pub fn changes<'a>(&'a self, before: &'a Listing, patterns: &Patterns) -> Changes<'a> {
        let mut old = before.items.iter().peekable();
        let mut deleted = Vec::new();
        let mut changed = Vec::new();
        for item in &self.items {
            while let Some(gone) = old.next_if(|old| order(&old.path, &item.path) == Ordering::Less)
            {
                deleted.push(gone);
            }
            let was = old.next_if(|old| old.path == item.path);
            if !was.is_some_and(|was| was.stamp.is_same(&item.stamp)) {
                changed.push(item);
            }
        }
        deleted.extend(old);
        let hidden = |path: &[u8]| {
            let within = |covered: &Vec<u8>| is_within(path, covered);
            let skipped = self.skipped.iter().map(|(path, _)| path);
            self.covered.iter().chain(skipped).any(within)
        };
        deleted
            .retain(|item| patterns.keep(&item.path, item.is_directory()) && !hidden(&item.path));
        Changes {
            items: select(changed.into_iter(), patterns),
            deleted: deleted.iter().map(|item| &item.path[..]).collect(),
        }
    }

    /// What is known about a path.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Stamp> {
        let found = self.items.binary_search_by(|item| order(&item.path, path));
        found.ok().map(|at| &self.items[at].stamp)
    }

    /// Number of names, and bytes in files without their holes. Names of one file are counted once.
    #[must_use]
    pub fn totals<'a>(items: impl IntoIterator<Item = &'a Item>) -> (u64, u64) {
        let mut seen = std::collections::HashSet::new();
        let mut totals = (0, 0);
        for item in items {
            totals.0 += 1;
            let first = item.stamp.shared().is_none_or(|key| seen.insert(key));
            if first && item.stamp.kind() == FileType::RegularFile {
                totals.1 += item.stored;
            }
        }
        totals
    }
}

fn select<'a>(items: impl Iterator<Item = &'a Item>, patterns: &Patterns) -> Vec<&'a Item> {
    let mut selected = Vec::new();
    let mut above: Vec<&Item> = Vec::new();
    for item in items {
        above.retain(|directory| is_within(&item.path, &directory.path));
        if patterns.keep(&item.path, item.is_directory()) {
            selected.append(&mut above);
            selected.push(item);
        } else if item.is_directory() {
            above.push(item);
        }
    }
    selected
}

/// A path for people, relative.
pub(super) fn place(path: &[u8]) -> std::path::PathBuf {
    let shown = shown(path);
    shown.strip_prefix("/").unwrap_or(&shown).to_owned()
}
