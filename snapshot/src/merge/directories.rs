//! The directories of a merge.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{self, AtFlags, Mode};
use rustix::io::Errno;

use super::node::Node;
use crate::entry::shown;
use crate::rules::is_own;
use crate::way::{Level, Steps, Way, DIRECTORY};
use crate::{Error, Result};

/// The directories from the root to where the merge is.
pub(super) type Directories = Way<Merging>;

/// How directories are dealt with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Merging {
    /// They are looked at.
    Reading,
    /// They get their times back, or what they are to have.
    Writing {
        /// As [`Options::privileged`](super::Options::privileged).
        privileged: bool,
    },
}

impl Steps for Merging {
    /// Whether new files in it have no attributes but those that they are given.
    type Note = bool;

    const CROSSES: bool = false;

    fn shown(path: &[u8]) -> PathBuf {
        shown(path)
    }

    fn note(&self, directory: &OwnedFd) -> bool {
        // What a directory hands down are access control lists, and labels where there are any.
        matches!(self, Merging::Writing { .. }) && fs::flistxattr(directory, &mut [0; 1]) == Ok(0)
    }

    fn leave(&self, level: Level<bool>) -> rustix::io::Result<()> {
        match (self, &level.meta) {
            (Merging::Reading, _) => Ok(()),
            (Merging::Writing { privileged }, Some(meta)) => {
                let directory = rustix::io::dup(&level.directory)?;
                Node::from(directory, level.before).set_meta(meta, *privileged)
            }
            (Merging::Writing { .. }, None) => level.restore_time(),
        }
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
