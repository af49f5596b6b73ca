//! The way to a file: directories opened by their names one from another, none of them a symbolic link.
//!
//! What is done in a tree comes in the tree's order, so each directory is opened once. Left again, it
//! has the time that it had, or what it was to get.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::entry::{is_within, split, Meta, Time};
use crate::{Error, Result};

/// How directories are opened.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What is done with the directories on the way, beside opening them.
pub(crate) trait Steps {
    /// What is remembered of each.
    type Note;

    /// Whether a filesystem that is mounted in the tree belongs to it.
    const CROSSES: bool;

    /// A directory's path, for people.
    fn shown(path: &[u8]) -> PathBuf;

    /// A directory was opened.
    fn note(&self, directory: &OwnedFd) -> Self::Note;

    /// A directory was made because something is to be in it.
    fn made(&self, _directory: &OwnedFd) -> rustix::io::Result<()> {
        Ok(())
    }

    /// Names in a directory change for the first time.
    fn loosen(_level: &mut Level<Self::Note>) {}

    /// A directory is left.
    fn leave(&self, level: Level<Self::Note>) -> rustix::io::Result<()>;
}

/// A directory that is open.
#[derive(Debug)]
pub(crate) struct Level<N> {
    path: Vec<u8>,
    pub(crate) directory: Rc<OwnedFd>,
    /// What it was when it was opened.
    pub(crate) before: Stat,
    /// Whether names in it were changed.
    touched: bool,
    /// What it is to have when it is left.
    pub(crate) meta: Option<Meta>,
    pub(crate) note: N,
}

impl<N> Level<N> {
    /// Gives it the time that it had, if names in it were changed.
    pub(crate) fn restore_time(&self) -> rustix::io::Result<()> {
        if !self.touched {
            return Ok(());
        }
        let mtime = Time {
            seconds: self.before.st_mtime,
            nanoseconds: self.before.st_mtime_nsec as u32,
        };
        fs::futimens(&self.directory, &times(mtime))
    }
}

/// The times of a file that was last changed at `mtime`.
pub(crate) fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanoseconds.into(),
        },
    }
}

/// The directory that a path's last name is in, and that name.
type Place<'w, 'p, S> = (&'w mut Level<<S as Steps>::Note>, &'p [u8]);

/// The directories from the root to where the work is.
#[derive(Debug)]
pub(crate) struct Way<S: Steps> {
    levels: Vec<Level<S::Note>>,
    steps: S,
}

impl<S: Steps> Way<S> {
    /// Starts at `root`, which is the caller's and may be reached through symbolic links.
    pub(crate) fn open(root: &Path, steps: S) -> Result<Self> {
        let directory = fs::open(root, DIRECTORY - OFlags::NOFOLLOW, Mode::empty());
        let directory = directory.map_err(Error::file("open directory", root))?;
        let levels = Vec::new();
        let mut way = Way { levels, steps };
        way.push(Vec::new(), directory)?;
        Ok(way)
    }

    fn push(&mut self, path: Vec<u8>, directory: OwnedFd) -> Result<()> {
        let before = fs::fstat(&directory).map_err(Error::file("examine", S::shown(&path)))?;
        let note = self.steps.note(&directory);
        self.levels.push(Level {
            path,
            directory: Rc::new(directory),
            before,
            touched: false,
            meta: None,
            note,
        });
        Ok(())
    }

    /// The directory that holds `path`, made if it is missing, and the name in it.
    pub(crate) fn parent<'p>(&mut self, path: &'p [u8]) -> Result<Place<'_, 'p, S>> {
        let (parent, name) = split(path).unwrap_or((b"", b"."));
        match self.go(parent, true)? {
            true => Ok((self.last(parent)?, name)),
            false => Err(Error::file("open directory", S::shown(parent))(
                Errno::NOENT,
            )),
        }
    }

    /// As [`parent`](Self::parent), for a name that is about to be made, replaced or removed.
    pub(crate) fn parent_to_change<'p>(&mut self, path: &'p [u8]) -> Result<Place<'_, 'p, S>> {
        let (level, name) = self.parent(path)?;
        touch::<S>(level);
        Ok((level, name))
    }

    /// As [`parent`](Self::parent), when the directory exists; nothing is made.
    pub(crate) fn existing<'p>(&mut self, path: &'p [u8]) -> Result<Option<Place<'_, 'p, S>>> {
        let (parent, name) = split(path).unwrap_or((b"", b"."));
        match self.go(parent, false)? {
            true => Ok(Some((self.last(parent)?, name))),
            false => Ok(None),
        }
    }

    /// Enters the directory at `path`, which gets `meta` when it is left.
    pub(crate) fn enter(&mut self, path: &[u8], meta: Meta) -> Result<()> {
        if !self.go(path, true)? {
            return Err(Error::file("open directory", S::shown(path))(Errno::NOENT));
        }
        self.last(path)?.meta = Some(meta);
        Ok(())
    }

    /// Notes that names are changed in the directory that was asked for last.
    pub(crate) fn touch(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            touch::<S>(level);
        }
    }

    fn last(&mut self, path: &[u8]) -> Result<&mut Level<S::Note>> {
        let last = self.levels.last_mut();
        last.ok_or_else(|| Error::file("open directory", S::shown(path))(Errno::BADF))
    }

    /// Leaves what is not above `path` and opens what is, making what is missing if `make`; false
    /// when there is no such directory.
    fn go(&mut self, path: &[u8], make: bool) -> Result<bool> {
        let is_above = |level: &Level<S::Note>| is_within(path, &level.path);
        while self.levels.last().is_some_and(|level| !is_above(level)) {
            self.leave()?;
        }
        let start = self.levels.last().map_or(0, |level| level.path.len());
        for name in names(&path[start..]) {
            if !self.descend(name, make)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn descend(&mut self, name: &[u8], make: bool) -> Result<bool> {
        let level = self.last(name)?;
        let path = match level.path.is_empty() {
            true => name.to_owned(),
            false => [&level.path[..], b"/", name].concat(),
        };
        let failed = || Error::file("open directory", S::shown(&path));
        let above = Rc::clone(&level.directory);
        let mut opened = fs::openat(&above, name, DIRECTORY, Mode::empty());
        if make && matches!(opened, Err(Errno::NOENT)) {
            touch::<S>(level);
            fs::mkdirat(&above, name, Mode::from_raw_mode(0o755))
                .map_err(Error::file("make directory", S::shown(&path)))?;
            opened = fs::openat(&above, name, DIRECTORY, Mode::empty());
            if let Ok(directory) = &opened {
                self.steps.made(directory).map_err(failed())?;
            }
        }
        match opened {
            Ok(directory) => {
                self.push(path, directory)?;
                match S::CROSSES || !self.is_mounted() {
                    true => Ok(true),
                    false => self.refuse_mount(make),
                }
            }
            // It is something else, such as a symbolic link.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !make => Ok(false),
            Err(errno) => Err(failed()(errno)),
        }
    }

    /// Whether another filesystem is mounted on the directory that was opened last.
    fn is_mounted(&self) -> bool {
        let device = |level: &Level<S::Note>| level.before.st_dev;
        self.levels.first().map(device) != self.levels.last().map(device)
    }

    fn refuse_mount(&mut self, make: bool) -> Result<bool> {
        match self.levels.pop() {
            Some(level) if make => {
                let error = std::io::Error::other("another filesystem is mounted there");
                Err(Error::file("merge into", S::shown(&level.path))(error))
            }
            _ => Ok(false),
        }
    }

    fn leave(&mut self) -> Result<()> {
        match self.levels.pop() {
            Some(level) => {
                let failed = Error::file("change", S::shown(&level.path));
                self.steps.leave(level).map_err(failed)
            }
            None => Ok(()),
        }
    }

    /// Leaves everything.
    pub(crate) fn close(mut self) -> Result<()> {
        while !self.levels.is_empty() {
            self.leave()?;
        }
        Ok(())
    }

    /// The directory of another path, without leaving this place, and the name in it.
    pub(crate) fn apart<'p>(&self, path: &'p [u8]) -> rustix::io::Result<(OwnedFd, &'p [u8])> {
        let (parent, name) = split(path).ok_or(Errno::ISDIR)?;
        let mut directory = fs::openat(self.root()?, ".", DIRECTORY, Mode::empty())?;
        for name in names(parent) {
            directory = fs::openat(&directory, name, DIRECTORY, Mode::empty())?;
        }
        Ok((directory, name))
    }

    /// Where the way starts.
    pub(crate) fn root(&self) -> rustix::io::Result<BorrowedFd<'_>> {
        let root = self.levels.first().ok_or(Errno::BADF)?;
        Ok(root.directory.as_fd())
    }
}

fn touch<S: Steps>(level: &mut Level<S::Note>) {
    if !level.touched {
        S::loosen(level);
        level.touched = true;
    }
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
}
