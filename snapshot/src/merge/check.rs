//! Whether a tree is the base of an archive, as far as the archive remembers it.
//!
//! A file may look as in the base or as after the merge: merging twice is no error.

use std::path::Path;

use rustix::fs::{major, minor, FileType};

use super::directories::{Directories, Merging};
use super::node::Node;
use crate::archive::Manifest;
use crate::diff::{prior, Action, Change, Prior};
use crate::entry::{shown, Content, Kind, Meta, Time};
use crate::rules::{is_own, Rules, Verdict};
use crate::{Error, Result};

/// Compares the tree at `root` with what the archive remembers.
pub(super) fn check(manifest: &Manifest, root: &Path) -> Result<()> {
    let mut directories = Directories::open(root, Merging::Reading)?;
    let rules = Rules::default();
    for change in &manifest.changes {
        if is_own(&change.path) {
            continue;
        }
        let now = state(&mut directories, &change.path)?;
        if now == change.prior || is_done(change, now.as_ref()) {
            continue;
        }
        // The base does not record what is left out by default, so the archive knows no past of it.
        let unrecorded =
            change.prior.is_none() && rules.judge_whole(&change.path, false) != Verdict::Keep;
        if !unrecorded {
            return Err(different(change, now.is_some()));
        }
    }
    Ok(())
}

fn different(change: &Change, is_there: bool) -> Error {
    let path = shown(&change.path);
    let path = path.display();
    Error::OtherBase(match (change.prior.is_some(), is_there) {
        (true, true) => format!("'{path}' is another one here"),
        (true, false) => format!("there is no '{path}' here"),
        (false, _) => format!("there is a '{path}' here already"),
    })
}

/// Whether the change has been made already.
fn is_done(change: &Change, now: Option<&Prior>) -> bool {
    match &change.action {
        Action::Put(entry) | Action::Meta(entry) => match entry.kind {
            // Its leader is what is compared.
            Kind::Link(_) => now.is_some(),
            _ => now == Some(&prior(&entry.kind, &entry.meta)),
        },
        Action::Delete => now.is_none(),
        Action::Witness => false,
    }
}

/// How a path looks now; none when there is nothing.
fn state(directories: &mut Directories, path: &[u8]) -> Result<Option<Prior>> {
    let Some((level, name)) = directories.existing(path)? else {
        return Ok(None);
    };
    let failed = || Error::file("examine", shown(path));
    let Some(node) = Node::open(&level.directory, name).map_err(failed())? else {
        return Ok(None);
    };
    let stat = node.stat();
    let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
    let kind = match node.kind() {
        FileType::Directory => Kind::Directory,
        FileType::RegularFile => Kind::File(Content {
            size: stat.st_size as u64,
            ..Content::default()
        }),
        FileType::Symlink => Kind::Symlink(node.target().map_err(failed())?),
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::Character(major, minor),
        FileType::BlockDevice => Kind::Block(major, minor),
        // A socket, which is never recorded.
        _ => return Ok(None),
    };
    let meta = Meta {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time {
            seconds: stat.st_mtime,
            nanoseconds: stat.st_mtime_nsec as u32,
        },
        xattrs: Vec::new(),
    };
    Ok(Some(prior(&kind, &meta)))
}
