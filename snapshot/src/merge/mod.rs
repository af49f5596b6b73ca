//! Merging an archive into a tree: the root of a guest that boots, or any directory.
//!
//! Nothing outside the root is touched, whatever the archive says: every directory on the way to a
//! file is opened by its name from the one above, and symbolic links are not followed. New content
//! is written beside its place and renamed into it. Before the first change the whole tree is
//! compared with what the archive remembers of its base.

mod check;
mod directories;
mod node;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use self::directories::{Directories, Merging};
use self::node::Node;
use crate::archive::{Archive, Manifest, Members, MAX_CHANGES};
use crate::diff::{Action, Change};
use crate::entry::{shown, split, Content, Entry, Hash, Kind};
use crate::rules::is_own;
use crate::{hex, Error, Result};

/// How to merge.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether the tree must look as the archive remembers its base.
    pub check_base: bool,
    /// Whether owners, set-id bits, devices and attributes of the system are made. Without it the
    /// result is the caller's: no program in it runs with another's rights.
    pub privileged: bool,
    /// Most changes.
    pub max_changes: usize,
    /// Most bytes of content.
    pub max_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            check_base: true,
            privileged: rustix::process::geteuid().is_root(),
            max_changes: MAX_CHANGES,
            max_bytes: 1 << 40,
        }
    }
}

/// What a merge did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files of all kinds that were made or replaced.
    pub made: usize,
    /// Files whose metadata were changed.
    pub altered: usize,
    /// Files and directories that were removed.
    pub removed: usize,
    /// What was left alone: AppPot's own files, directories with such files or mounts in them.
    pub kept: usize,
    /// Bytes of content that were written.
    pub bytes: u64,
}

/// Merges an archive into the tree at `root`.
///
/// # Errors
/// The tree is not the archive's base, a limit is exceeded or the space too small: then nothing was
/// changed. The archive is malformed or a file cannot be made: then the tree may be half changed,
/// and merging again, once the reason is gone, completes it.
pub fn merge(archive: Archive, root: &Path, options: &Options) -> Result<Summary> {
    let (manifest, mut members) = archive.into_parts();
    check_limits(&manifest, root, options)?;
    if options.check_base {
        check::check(&manifest, root)?;
    }
    let writing = Merging::Writing {
        privileged: options.privileged,
    };
    let mut merge = Merge {
        directories: Directories::open(root, writing)?,
        options,
        summary: Summary::default(),
    };
    for change in &manifest.changes {
        merge.apply(change, &mut members)?;
    }
    merge.directories.close()?;
    members.finish()?;
    Ok(merge.summary)
}

fn check_limits(manifest: &Manifest, root: &Path, options: &Options) -> Result<()> {
    let stored = manifest.header.stored;
    if manifest.changes.len() > options.max_changes {
        return Err(Error::Limit(format!("{} changes", manifest.changes.len())));
    }
    if stored > options.max_bytes {
        return Err(Error::Limit(format!("{stored} bytes of content")));
    }
    let space = fs::statvfs(root).map_err(Error::file("examine", root))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    // A filesystem without a size (hostfs) tells nothing.
    match space.f_blocks > 0 && stored > free {
        true => Err(Error::Limit(format!(
            "{stored} bytes of content, and {free} bytes are free"
        ))),
        false => Ok(()),
    }
}

struct Merge<'a> {
    directories: Directories,
    options: &'a Options,
    summary: Summary,
}

impl Merge<'_> {
    fn apply(&mut self, change: &Change, members: &mut Members) -> Result<()> {
        if is_own(&change.path) {
            return self.leave_alone(change, members);
        }
        match &change.action {
            Action::Witness => Ok(()),
            Action::Delete => self.delete(&change.path),
            Action::Meta(entry) => {
                self.summary.altered += 1;
                if entry.is_directory() {
                    members.next(entry, &mut |_, _| Ok(()))?;
                    return self.directory(entry, false);
                }
                self.alter(entry)
            }
            Action::Put(entry) => {
                self.summary.made += 1;
                match &entry.kind {
                    Kind::Directory => {
                        members.next(entry, &mut |_, _| Ok(()))?;
                        self.directory(entry, true)
                    }
                    _ => self.make(entry, members),
                }
            }
        }
    }

    /// AppPot's own files stay; the member has to be read all the same.
    fn leave_alone(&mut self, change: &Change, members: &mut Members) -> Result<()> {
        self.summary.kept += 1;
        match &change.action {
            Action::Put(entry) => members.next(entry, &mut |_, _| Ok(())),
            Action::Meta(entry) if entry.is_directory() => members.next(entry, &mut |_, _| Ok(())),
            _ => Ok(()),
        }
    }

    fn delete(&mut self, path: &[u8]) -> Result<()> {
        // A parent that is not there has no children either.
        let Some((level, name)) = self.directories.existing(path)? else {
            return Ok(());
        };
        if directories::remove(&level.directory, name, path)? {
            self.summary.removed += 1;
        } else {
            self.summary.kept += 1;
        }
        self.directories.touch();
        Ok(())
    }

    /// Makes a directory or takes the one that is there; its metadata are set when it is left.
    fn directory(&mut self, entry: &Entry, make: bool) -> Result<()> {
        if split(&entry.path).is_some() {
            let (level, name) = self.directories.parent(&entry.path)?;
            let parent = &level.directory;
            let is_there = Node::open(parent, name)
                .map_err(Error::file("examine", entry.shown()))?
                .is_some_and(|node| node.kind() == FileType::Directory);
            if !is_there {
                if !make {
                    return Err(missing(entry));
                }
                remove_old(parent, name, entry)?;
                fs::mkdirat(parent, name, Mode::RWXU)
                    .map_err(Error::file("make directory", entry.shown()))?;
                self.directories.touch();
            }
        }
        self.directories.enter(&entry.path, entry.meta.clone())
    }

    fn alter(&mut self, entry: &Entry) -> Result<()> {
        let (level, name) = self.directories.parent(&entry.path)?;
        let node = Node::open(&level.directory, name);
        let node = node.map_err(Error::file("examine", entry.shown()))?;
        let node = node.filter(|node| node.is(&entry.kind));
        let node = node.ok_or_else(|| missing(entry))?;
        node.set_meta(&entry.meta, self.options.privileged)
            .map_err(Error::file("change", entry.shown()))
    }

    /// Makes a file of any kind but a directory beside its place, and moves it there.
    fn make(&mut self, entry: &Entry, members: &mut Members) -> Result<()> {
        let (level, name) = self.directories.parent_to_change(&entry.path)?;
        let (parent, is_bare) = (Rc::clone(&level.directory), level.note);
        let temporary = node::Temporary::new(parent.as_fd());
        let is_link = matches!(entry.kind, Kind::Link(_));
        let made = match &entry.kind {
            Kind::File(content) => Some(self.file(content, entry, &temporary, members)?),
            Kind::Link(leader) => {
                members.next(entry, &mut |_, _| Ok(()))?;
                self.link(leader, entry, &temporary)?;
                None
            }
            kind => {
                members.next(entry, &mut |_, _| Ok(()))?;
                self.special(kind, entry, &temporary)?;
                Node::open(&parent, temporary.name())
                    .map_err(Error::file("examine", entry.shown()))?
            }
        };
        if let Some(node) = made {
            let node = match is_bare {
                true => node.bare(),
                false => node,
            };
            node.set_meta(&entry.meta, self.options.privileged)
                .map_err(Error::file("change", entry.shown()))?;
        }
        let moved = match temporary.rename(name, is_link) {
            Err(Errno::ISDIR) => {
                remove_old(&parent, name, entry)?;
                temporary.rename(name, is_link)
            }
            moved => moved,
        };
        moved.map_err(Error::file("rename", entry.shown()))
    }

    fn file(
        &mut self,
        content: &Content,
        entry: &Entry,
        temporary: &node::Temporary,
        members: &mut Members,
    ) -> Result<Node> {
        let failed = |errno: Errno| Error::file("make", entry.shown())(errno);
        let file = temporary.make(failed, |parent, name| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let stat = fs::fstat(&file).map_err(failed)?;
        let file = File::from(file);
        fill(&file, entry, content, members)?;
        self.summary.bytes += content.stored();
        Ok(Node::from(file.into(), stat))
    }

    fn special(&self, kind: &Kind, entry: &Entry, temporary: &node::Temporary) -> Result<()> {
        let failed = |errno| Error::file("make", entry.shown())(errno);
        let node = |kind, device| {
            temporary.make(failed, |parent, name| {
                fs::mknodat(parent, name, kind, Mode::RUSR, device)
            })
        };
        match kind {
            Kind::Symlink(target) => temporary.make(failed, |parent, name| {
                fs::symlinkat(&target[..], parent, name)
            }),
            Kind::Fifo => node(FileType::Fifo, 0),
            Kind::Character(major, minor) => {
                node(FileType::CharacterDevice, fs::makedev(*major, *minor))
            }
            Kind::Block(major, minor) => node(FileType::BlockDevice, fs::makedev(*major, *minor)),
            Kind::Directory | Kind::File(_) | Kind::Link(_) => Ok(()),
        }
    }

    fn link(&self, leader: &[u8], entry: &Entry, temporary: &node::Temporary) -> Result<()> {
        if is_own(leader) {
            return Err(Error::Malformed(format!(
                "'{}' would be another name of AppPot's own '{}'",
                entry.shown().display(),
                shown(leader).display()
            )));
        }
        let failed = |errno| Error::file("link", entry.shown())(errno);
        let (directory, name) = self.directories.apart(leader).map_err(failed)?;
        temporary.make(failed, |parent, new| {
            fs::linkat(&directory, name, parent, new, AtFlags::empty())
        })
    }
}

/// Removes what is in the way of a new kind of file.
fn remove_old(parent: impl AsFd, name: &[u8], entry: &Entry) -> Result<()> {
    match directories::remove(parent.as_fd(), name, &entry.path)? {
        true => Ok(()),
        false => Err(Error::Malformed(format!(
            "'{}' would replace AppPot's own files, or a mounted filesystem",
            entry.shown().display()
        ))),
    }
}

fn missing(entry: &Entry) -> Error {
    Error::OtherBase(format!("there is no such '{}'", entry.shown().display()))
}

/// Writes a file's content; what is not written stays a hole.
fn fill(file: &File, entry: &Entry, content: &Content, members: &mut Members) -> Result<()> {
    let failed = |error| Error::file("write", entry.shown())(error);
    if content.runs.is_some() {
        file.set_len(content.size).map_err(failed)?;
    }
    members.next(entry, &mut |offset, bytes| {
        file.write_all_at(bytes, offset).map_err(failed)
    })
}

/// Where a tree remembers which archives have been merged into it.
pub fn mark(id: &Hash) -> Vec<u8> {
    format!("var/lib/apppot/merged/{}", hex(id)).into_bytes()
}

/// Whether [`remember`] has been told of this archive: what a job changed after the merge would be
/// undone by another one.
///
/// # Errors
/// The tree cannot be read.
pub fn is_merged(root: &Path, id: &Hash) -> Result<bool> {
    let path = mark(id);
    let mut directories = Directories::open(root, Merging::Reading)?;
    let Some((level, name)) = directories.existing(&path)? else {
        return Ok(false);
    };
    let node = Node::open(&level.directory, name).map_err(Error::file("examine", shown(&path)))?;
    Ok(node.is_some())
}

/// Notes in the tree that an archive has been merged into it.
///
/// # Errors
/// The note cannot be written.
pub fn remember(root: &Path, id: &Hash) -> Result<()> {
    let path = mark(id);
    let mut directories = Directories::open(root, Merging::Writing { privileged: true })?;
    let (level, name) = directories.parent(&path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    fs::openat(
        &level.directory,
        name,
        flags,
        Mode::RUSR | Mode::RGRP | Mode::ROTH,
    )
    .map_err(Error::file("make", shown(&path)))?;
    directories.close()
}
