//! The way to a place: directories opened one after the other, none of them a symbolic link.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::listing::place;
use crate::entry::{is_within, split, Meta, Time};
use crate::{Error, Result};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Leave this time alone (utimensat(2)).
const OMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: fs::UTIME_OMIT,
};

/// Whose files are put into their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The process's own. Set-id bits do not come.
    Ours,
    /// These ids', with all bits of modes.
    Ids(u32, u32),
}

impl Owner {
    /// Gives a file its owner, where that is another.
    pub(super) fn give(self, file: impl AsFd, stat: &Stat) -> rustix::io::Result<()> {
        let Owner::Ids(uid, gid) = self else {
            return Ok(());
        };
        if (stat.st_uid, stat.st_gid) == (uid, gid) {
            return Ok(());
        }
        match fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
            // A filesystem of the host's, where everything belongs to the caller.
            Err(Errno::PERM) => Ok(()),
            result => result,
        }
    }

    /// The mode that a file gets that had `before`.
    pub(super) fn mode(self, wanted: u16, before: u32) -> Mode {
        Mode::from_raw_mode(match self {
            Owner::Ids(..) => u32::from(wanted & 0o7777),
            Owner::Ours => u32::from(wanted & 0o1777) | before & 0o6000,
        })
    }
}

/// The directories from the root to where the unpacking is.
#[derive(Debug)]
pub(super) struct Levels {
    levels: Vec<Level>,
    owner: Owner,
}

/// A directory that is open.
#[derive(Debug)]
pub(super) struct Level {
    path: Vec<u8>,
    pub(super) directory: OwnedFd,
    before: Stat,
    /// Whether names in it were changed.
    touched: bool,
    /// Whether its mode was, to be able to.
    loosened: bool,
    /// What it is to have when it is left.
    meta: Option<Meta>,
}

/// The times of a file that was last changed at `mtime`.
pub(super) fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: OMIT,
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanoseconds.into(),
        },
    }
}

impl Levels {
    /// Starts at `root`, which may be reached through symbolic links.
    pub(super) fn open(root: &Path, owner: Owner) -> Result<Self> {
        let directory = fs::open(root, DIRECTORY - OFlags::NOFOLLOW, Mode::empty());
        let directory = directory.map_err(Error::file("open directory", root))?;
        let mut levels = Levels {
            levels: Vec::new(),
            owner,
        };
        levels.push(Vec::new(), directory)?;
        Ok(levels)
    }

    fn push(&mut self, path: Vec<u8>, directory: OwnedFd) -> Result<()> {
        let before = fs::fstat(&directory).map_err(Error::file("examine", place(&path)))?;
        self.levels.push(Level {
            path,
            directory,
            before,
            touched: false,
            loosened: false,
            meta: None,
        });
        Ok(())
    }

    /// The directory that is to hold `path`, in which a name is about to be changed, and the name.
    pub(super) fn parent<'p>(&mut self, path: &'p [u8]) -> Result<(&mut Level, &'p [u8])> {
        let (parent, name) = split(path).unwrap_or((b"", path));
        self.go(parent, true)?;
        let level = self.last(path)?;
        level.touch();
        Ok((level, name))
    }

    /// As [`Levels::parent`], when the directory exists; nothing is made.
    pub(super) fn existing<'p>(
        &mut self,
        path: &'p [u8],
    ) -> Result<Option<(&mut Level, &'p [u8])>> {
        let (parent, name) = split(path).unwrap_or((b"", path));
        if !self.go(parent, false)? {
            return Ok(None);
        }
        Ok(Some((self.last(path)?, name)))
    }

    fn last(&mut self, path: &[u8]) -> Result<&mut Level> {
        let last = self.levels.last_mut();
        last.ok_or_else(|| Error::file("open directory", place(path))(Errno::BADF))
    }

    /// Enters the directory at `path`, which gets `meta` when it is left.
    pub(super) fn enter(&mut self, path: &[u8], meta: &Meta) -> Result<()> {
        self.go(path, true)?;
        self.last(path)?.meta = Some(meta.clone());
        Ok(())
    }

    /// Leaves what is not above `path`, and opens what is. Whether it is there.
    fn go(&mut self, path: &[u8], make: bool) -> Result<bool> {
        while self
            .levels
            .last()
            .is_some_and(|level| !is_within(path, &level.path))
        {
            self.leave()?;
        }
        let start = self.levels.last().map_or(0, |level| level.path.len());
        let rest = path[start..].strip_prefix(b"/").unwrap_or(&path[start..]);
        for name in rest.split(|byte| *byte == b'/') {
            if !name.is_empty() && !self.descend(name, make)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn descend(&mut self, name: &[u8], make: bool) -> Result<bool> {
        let owner = self.owner;
        let level = self.last(name)?;
        let path = match level.path.is_empty() {
            true => name.to_owned(),
            false => [&level.path[..], b"/", name].concat(),
        };
        let failed = || Error::file("open directory", place(&path));
        let mut opened = fs::openat(&level.directory, name, DIRECTORY, Mode::empty());
        if make && matches!(opened, Err(Errno::NOENT)) {
            level.touch();
            let mode = Mode::from_raw_mode(0o755);
            fs::mkdirat(&level.directory, name, mode)
                .map_err(Error::file("make directory", place(&path)))?;
            opened = fs::openat(&level.directory, name, DIRECTORY, Mode::empty());
            if let Ok(directory) = &opened {
                let stat = fs::fstat(directory).map_err(failed())?;
                owner.give(directory, &stat).map_err(failed())?;
            }
        }
        match opened {
            Ok(directory) => self.push(path, directory).map(|()| true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !make => Ok(false),
            Err(errno) => Err(failed()(errno)),
        }
    }

    fn leave(&mut self) -> Result<()> {
        match self.levels.pop() {
            Some(level) => {
                let failed = Error::file("change", place(&level.path));
                level.finish(self.owner).map_err(failed)
            }
            None => Ok(()),
        }
    }

    /// Gives the root its permissions.
    pub(super) fn change_root(&self, mode: u16) -> rustix::io::Result<()> {
        let root = self.levels.first().ok_or(Errno::BADF)?;
        fs::fchmod(&root.directory, self.owner.mode(mode, 0))
    }

    /// Leaves everything.
    pub(super) fn close(mut self) -> Result<()> {
        while !self.levels.is_empty() {
            self.leave()?;
        }
        Ok(())
    }

    /// The directory of another path, without leaving this place, and the name in it.
    pub(super) fn apart<'p>(&self, path: &'p [u8]) -> rustix::io::Result<(OwnedFd, &'p [u8])> {
        let (parent, name) = split(path).ok_or(Errno::ISDIR)?;
        let root = self.levels.first().ok_or(Errno::BADF)?;
        let mut directory = fs::openat(&root.directory, ".", DIRECTORY, Mode::empty())?;
        for name in parent.split(|byte| *byte == b'/') {
            if !name.is_empty() {
                directory = fs::openat(&directory, name, DIRECTORY, Mode::empty())?;
            }
        }
        Ok((directory, name))
    }
}

impl Level {
    /// Notes that names in it change, and makes that possible in a directory of ours that its owner
    /// has closed.
    pub(super) fn touch(&mut self) {
        let closed = self.before.st_mode & 0o300 != 0o300;
        if closed && !self.touched && self.before.st_uid == rustix::process::geteuid().as_raw() {
            let mode = Mode::from_raw_mode(self.before.st_mode & 0o7777 | 0o700);
            self.loosened = fs::fchmod(&self.directory, mode).is_ok();
        }
        self.touched = true;
    }

    fn finish(self, owner: Owner) -> rustix::io::Result<()> {
        let before = &self.before;
        if let Some(meta) = self.meta {
            owner.give(&self.directory, before)?;
            fs::fchmod(&self.directory, owner.mode(meta.mode, before.st_mode))?;
            return fs::futimens(&self.directory, &times(meta.mtime));
        }
        if self.loosened {
            fs::fchmod(
                &self.directory,
                Mode::from_raw_mode(before.st_mode & 0o7777),
            )?;
        }
        if self.touched {
            let mtime = Time {
                seconds: before.st_mtime,
                nanoseconds: before.st_mtime_nsec as u32,
            };
            match fs::futimens(&self.directory, &times(mtime)) {
                // Somebody else's, in which we may make files.
                Err(Errno::PERM) => {}
                result => return result,
            }
        }
        Ok(())
    }
}
