//! The directories of an unpacking, and whose they are.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{self, Gid, Mode, Stat, Uid};
use rustix::io::Errno;

use super::listing::place;
use crate::way::{self, times, Steps, Way};

/// The directories from the root to where the unpacking is.
pub(super) type Levels = Way<Owner>;
/// A directory that is open.
pub(super) type Level = way::Level<bool>;

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

impl Steps for Owner {
    /// Whether the directory's mode was changed, to be able to change names in it.
    type Note = bool;

    const CROSSES: bool = true;

    fn shown(path: &[u8]) -> PathBuf {
        place(path)
    }

    fn note(&self, _directory: &OwnedFd) -> bool {
        false
    }

    fn made(&self, directory: &OwnedFd) -> rustix::io::Result<()> {
        self.give(directory, &fs::fstat(directory)?)
    }

    /// Names can be changed in a directory of ours that its owner has closed.
    fn loosen(level: &mut Level) {
        let mode = level.before.st_mode;
        let closed = mode & 0o300 != 0o300;
        if closed && level.before.st_uid == rustix::process::geteuid().as_raw() {
            let mode = Mode::from_raw_mode(mode & 0o7777 | 0o700);
            level.note = fs::fchmod(&level.directory, mode).is_ok();
        }
    }

    fn leave(&self, level: Level) -> rustix::io::Result<()> {
        let (directory, before) = (&level.directory, &level.before);
        if let Some(meta) = &level.meta {
            self.give(directory, before)?;
            fs::fchmod(directory, self.mode(meta.mode, before.st_mode))?;
            return fs::futimens(directory, &times(meta.mtime));
        }
        if level.note {
            let mode = Mode::from_raw_mode(before.st_mode & 0o7777);
            fs::fchmod(directory, mode)?;
        }
        match level.restore_time() {
            // Somebody else's, in which we may make files.
            Err(Errno::PERM) => Ok(()),
            result => result,
        }
    }
}
