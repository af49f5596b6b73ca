//! New files on their way to their places, and what makes room for them.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{self, AtFlags, FallocateFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::levels::{Level, Owner};
use crate::entry::{Content, Entry, Kind};
use crate::way::times;

/// What is added to the name of a file that was there and must make room.
const KEPT: &str = ".apppot-kept";

/// Gives a symbolic link or FIFO its owner, mode and time.
pub(super) fn dress(
    level: &Level,
    name: &[u8],
    entry: &Entry,
    owner: Owner,
) -> rustix::io::Result<()> {
    let directory = &level.directory;
    if let Owner::Ids(uid, gid) = owner {
        let (uid, gid) = (fs::Uid::from_raw(uid), fs::Gid::from_raw(gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        match fs::chownat(directory, name, Some(uid), Some(gid), flags) {
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    if entry.kind == Kind::Fifo {
        // By descriptor: a name could be led elsewhere meanwhile.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(directory, name, flags, Mode::empty())?;
        let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::chmod(itself, owner.mode(entry.meta.mode, 0))?;
    }
    let times = times(entry.meta.mtime);
    fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Takes the room that a file needs, so that a full disk is noticed before anything is read.
pub(super) fn reserve(file: &File, content: &Content) -> rustix::io::Result<()> {
    for (start, len) in content.stretches() {
        match fs::fallocate(file, FallocateFlags::empty(), start, len) {
            Ok(()) | Err(Errno::INTR) => {}
            // The filesystem cannot.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Gives a file another name beside its own; or moves it there. Returns that name.
pub(super) fn keep(level: &Level, name: &[u8], moves: bool) -> rustix::io::Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let directory = &level.directory;
    for number in 1..1000 {
        let suffix = match number {
            1 => KEPT.to_owned(),
            _ => format!("{KEPT}-{number}"),
        };
        let stem = &name[..name.len().min(255 - suffix.len())];
        let kept = [stem, suffix.as_bytes()].concat();
        let linked = match moves {
            true => Err(Errno::PERM),
            false => fs::linkat(directory, name, directory, &kept[..], AtFlags::empty()),
        };
        let result = match linked {
            // A directory, or a filesystem without links.
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK) => {
                let flags = RenameFlags::NOREPLACE;
                fs::renameat_with(directory, name, directory, &kept[..], flags)
            }
            result => result,
        };
        match result {
            Ok(()) => return Ok(std::ffi::OsStr::from_bytes(&kept).into()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

/// A new file: without a name, or under a temporary one, which goes away with this.
pub(super) struct New<'n> {
    pub(super) file: OwnedFd,
    directory: OwnedFd,
    /// The name that it has now.
    name: Option<&'n [u8]>,
    temporary: &'n [u8],
}

impl<'n> New<'n> {
    pub(super) fn make(
        level: &Level,
        temporary: &'n [u8],
        name: &'n [u8],
        atomically: bool,
    ) -> rustix::io::Result<Self> {
        let directory = level.directory.try_clone().map_err(|_| Errno::MFILE)?;
        let (write, mode) = (OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o600));
        let named = |name: &'n [u8]| {
            let flags = write | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            fs::openat(&directory, name, flags, mode).map(|file| (file, Some(name)))
        };
        let (file, name) = match atomically {
            false => named(name)?,
            true => match fs::openat(&directory, ".", write | OFlags::TMPFILE, mode) {
                Ok(file) => (file, None),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                    named(temporary)?
                }
                Err(errno) => return Err(errno),
            },
        };
        Ok(New {
            file,
            directory,
            name,
            temporary,
        })
    }

    /// Puts it into its place.
    pub(super) fn settle(mut self, level: &Level, name: &[u8]) -> rustix::io::Result<()> {
        let directory = &level.directory;
        if self.name.is_none() {
            let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let link = |name: &[u8]| {
                fs::linkat(fs::CWD, &source, directory, name, AtFlags::SYMLINK_FOLLOW)
            };
            match link(name) {
                Err(Errno::EXIST) => link(self.temporary)?,
                result => return result,
            }
            self.name = Some(self.temporary);
        }
        fs::renameat(directory, self.temporary, directory, name)?;
        self.stays();
        Ok(())
    }

    pub(super) fn stays(mut self) {
        self.name = None;
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name {
            let _ = fs::unlinkat(&self.directory, name, AtFlags::empty());
        }
    }
}
