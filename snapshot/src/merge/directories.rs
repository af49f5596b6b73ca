//! The way to a file: open directories from the root down, none of them a symbolic link.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::node::Node;
use crate::entry::{is_within, shown, split, Meta};
use crate::rules::is_own;
use crate::{Error, Result};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The directories from the root to where the merge is. Changes come in the tree's order, so each is
/// opened once; when it is left, it gets its time back.
pub(super) struct Directories {
    levels: Vec<Level>,
    /// Whether directories get their times back.
    writing: bool,
}

struct Level {
    path: Vec<u8>,
    directory: Rc<OwnedFd>,
    before: Stat,
    touched: bool,
    /// Whether new files in it have no attributes but those that they are given.
    bare: bool,
    /// What it is to have when it is left.
    meta: Option<(Meta, bool)>,
}

impl Directories {
    /// Opens `root`, which is the caller's and may be reached through symbolic links.
    pub(super) fn open(root: &Path, writing: bool) -> Result<Self> {
        let directory = fs::open(root, DIRECTORY - OFlags::NOFOLLOW, Mode::empty());
        let directory = directory.map_err(Error::file("open directory", root))?;
        let mut directories = Directories {
            levels: Vec::new(),
            writing,
        };
        directories.push(Vec::new(), directory)?;
        Ok(directories)
    }

    fn push(&mut self, path: Vec<u8>, directory: OwnedFd) -> Result<()> {
        let before = fs::fstat(&directory).map_err(Error::file("examine", shown(&path)))?;
        // What a directory hands down are access control lists, and labels where there are any.
        let bare = self.writing && fs::flistxattr(&directory, &mut [0; 1]) == Ok(0);
        self.levels.push(Level {
            path,
            directory: Rc::new(directory),
            before,
            touched: false,
            bare,
            meta: None,
        });
        Ok(())
    }

    /// The directory that holds `path`, made if it is missing, and the name in it.
    pub(super) fn parent<'p>(&mut self, path: &'p [u8]) -> Result<(Rc<OwnedFd>, &'p [u8])> {
        let (parent, name) = split(path).unwrap_or((b"", b"."));
        match self.go(parent, true)? {
            true => Ok((self.here(parent)?, name)),
            false => Err(Error::file("open directory", shown(parent))(Errno::NOENT)),
        }
    }

    /// The directory that holds `path` and the name in it, if there is one.
    pub(super) fn existing_parent<'p>(
        &mut self,
        path: &'p [u8],
    ) -> Result<Option<(Rc<OwnedFd>, &'p [u8])>> {
        let (parent, name) = split(path).unwrap_or((b"", b"."));
        match self.go(parent, false)? {
            true => Ok(Some((self.here(parent)?, name))),
            false => Ok(None),
        }
    }

    fn here(&self, path: &[u8]) -> Result<Rc<OwnedFd>> {
        let last = self.levels.last();
        let last = last.ok_or_else(|| Error::file("open directory", shown(path))(Errno::BADF))?;
        Ok(Rc::clone(&last.directory))
    }

    /// Whether new files in the directory that was asked for last have no attributes.
    pub(super) fn is_bare(&self) -> bool {
        self.levels.last().is_some_and(|level| level.bare)
    }

    /// Notes that names were changed in the directory that was asked for last.
    pub(super) fn touched(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.touched = true;
        }
    }

    /// Opens the directory at `path`, which gets `meta` when it is left.
    pub(super) fn enter(&mut self, path: &[u8], meta: Meta, privileged: bool) -> Result<()> {
        if !self.go(path, true)? {
            return Err(Error::file("open directory", shown(path))(Errno::NOENT));
        }
        if let Some(level) = self.levels.last_mut() {
            level.meta = Some((meta, privileged));
        }
        Ok(())
    }

    /// Leaves what is not above `path` and opens what is, making what is missing if `make`; false
    /// when there is no such directory.
    fn go(&mut self, path: &[u8], make: bool) -> Result<bool> {
        while let Some(level) = self.levels.last() {
            if is_within(path, &level.path) {
                break;
            }
            self.leave()?;
        }
        let start = self.levels.last().map_or(0, |level| level.path.len());
        let rest = path[start..].strip_prefix(b"/").unwrap_or(&path[start..]);
        if rest.is_empty() {
            return Ok(true);
        }
        for name in rest.split(|byte| *byte == b'/') {
            if !self.descend(name, make)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn descend(&mut self, name: &[u8], make: bool) -> Result<bool> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(false);
        };
        let path = match level.path.is_empty() {
            true => name.to_owned(),
            false => [&level.path[..], b"/", name].concat(),
        };
        let mut opened = fs::openat(level.directory.as_fd(), name, DIRECTORY, Mode::empty());
        if make && matches!(opened, Err(Errno::NOENT)) {
            let mode = Mode::from_raw_mode(0o755);
            fs::mkdirat(level.directory.as_fd(), name, mode)
                .map_err(Error::file("make directory", shown(&path)))?;
            level.touched = true;
            opened = fs::openat(level.directory.as_fd(), name, DIRECTORY, Mode::empty());
        }
        match opened {
            Ok(directory) => {
                self.push(path, directory)?;
                match self.is_mounted() {
                    false => Ok(true),
                    true => self.refuse_mount(make),
                }
            }
            // It is something else, such as a symbolic link.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !make => Ok(false),
            Err(errno) => Err(Error::file("open directory", shown(&path))(errno)),
        }
    }

    /// Whether another filesystem is mounted on the directory that was opened last: it does not belong
    /// to the tree.
    fn is_mounted(&self) -> bool {
        let device = |level: &Level| level.before.st_dev;
        self.levels.first().map(device) != self.levels.last().map(device)
    }

    fn refuse_mount(&mut self, make: bool) -> Result<bool> {
        match self.levels.pop() {
            Some(level) if make => {
                let error = std::io::Error::other("another filesystem is mounted there");
                Err(Error::file("merge into", shown(&level.path))(error))
            }
            _ => Ok(false),
        }
    }

    fn leave(&mut self) -> Result<()> {
        let Some(level) = self.levels.pop() else {
            return Ok(());
        };
        if !self.writing {
            return Ok(());
        }
        if let Some((meta, privileged)) = level.meta {
            let directory = level.directory.try_clone();
            let directory = directory.map_err(Error::file("change", shown(&level.path)))?;
            return Node::from(directory, level.before)
                .set_meta(&meta, privileged)
                .map_err(Error::file("change", shown(&level.path)));
        }
        if level.touched {
            let time = Timespec {
                tv_sec: level.before.st_mtime,
                tv_nsec: level.before.st_mtime_nsec as _,
            };
            let times = Timestamps {
                last_access: super::node::OMIT,
                last_modification: time,
            };
            fs::futimens(level.directory.as_fd(), &times)
                .map_err(Error::file("change", shown(&level.path)))?;
        }
        Ok(())
    }

    /// Leaves everything.
    pub(super) fn close(mut self) -> Result<()> {
        while !self.levels.is_empty() {
            self.leave()?;
        }
        Ok(())
    }

    /// Another place in the tree, without leaving this one.
    pub(super) fn apart<'p>(&self, path: &'p [u8]) -> rustix::io::Result<(OwnedFd, &'p [u8])> {
        let (parent, name) = split(path).ok_or(Errno::ISDIR)?;
        let root = self.levels.first().ok_or(Errno::BADF)?;
        let mut directory = fs::openat(root.directory.as_fd(), ".", DIRECTORY, Mode::empty())?;
        for name in parent
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            directory = fs::openat(&directory, name, DIRECTORY, Mode::empty())?;
        }
        Ok((directory, name))
    }
}

/// Removes `name` with all that is below it; `path` is where it is in the tree. False when something
/// is in it that stays: AppPot's own files, or another filesystem.
pub(super) fn remove(parent: impl AsFd, name: &[u8], path: &[u8]) -> Result<bool> {
    if is_own(path) {
        return Ok(false);
    }
    let failed = || Error::file("remove", shown(path));
    match fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        // Something is mounted on it.
        Err(Errno::BUSY) => return Ok(false),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(failed()(errno)),
    }
    let directory = fs::openat(&parent, name, DIRECTORY, Mode::empty()).map_err(failed())?;
    let above = fs::fstat(&parent).map_err(failed())?;
    let here = fs::fstat(&directory).map_err(failed())?;
    if here.st_dev != above.st_dev {
        return Ok(false);
    }
    let mut all = true;
    for name in names(&directory).map_err(failed())? {
        let path = [path, b"/", name.as_bytes()].concat();
        all &= remove(&directory, name.as_bytes(), &path)?;
    }
    if all {
        fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).map_err(failed())?;
    }
    Ok(all)
}

fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for item in fs::Dir::read_from(directory)? {
        let item = item?;
        if !matches!(item.file_name().to_bytes(), b"." | b"..") {
            names.push(item.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Whether `stat` is of that kind; for callers that have only the number.
pub(super) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
