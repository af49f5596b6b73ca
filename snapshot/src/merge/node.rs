//! One file of any kind, held open so that nobody can put another in its place, and files on their
//! way to their place.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use crate::entry::{Kind, Meta};
use crate::way::times;
use crate::xattrs::is_recorded;

/// A file of any kind.
pub(super) struct Node {
    file: OwnedFd,
    stat: Stat,
    /// Whether the descriptor is good for more than naming the file.
    open: bool,
    /// Whether it can have attributes that nobody has given it.
    inherits: bool,
}

impl Node {
    /// Opens a name, itself and not what it may lead to; none when there is no such name.
    pub(super) fn open(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match fs::openat(parent, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let stat = fs::fstat(&file)?;
        Ok(Some(Node {
            file,
            stat,
            open: false,
            inherits: true,
        }))
    }

    /// A file or directory that is open for reading or writing.
    pub(super) fn from(file: OwnedFd, stat: Stat) -> Self {
        Node {
            file,
            stat,
            open: true,
            inherits: true,
        }
    }

    /// Says that the file is new, in a directory that gives its files no attributes.
    pub(super) fn bare(mut self) -> Self {
        self.inherits = false;
        self
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Whether it is of the same kind.
    pub(super) fn is(&self, kind: &Kind) -> bool {
        matches!(
            (self.kind(), kind),
            (FileType::Directory, Kind::Directory)
                | (FileType::RegularFile, Kind::File(_))
                | (FileType::Symlink, Kind::Symlink(_))
                | (FileType::Fifo, Kind::Fifo)
                | (FileType::CharacterDevice, Kind::Character(..))
                | (FileType::BlockDevice, Kind::Block(..))
        )
    }

    /// The target of a symbolic link.
    pub(super) fn target(&self) -> rustix::io::Result<Vec<u8>> {
        fs::readlinkat(&self.file, "", Vec::new()).map(|target| target.into_bytes())
    }

    /// A name for system calls that take no descriptor of this kind.
    fn place(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// Gives it these metadata. The order matters: a new owner clears set-id bits and capabilities,
    /// and everything touches times.
    pub(super) fn set_meta(&self, meta: &Meta, privileged: bool) -> rustix::io::Result<()> {
        let place = self.place();
        if privileged && (self.stat.st_uid, self.stat.st_gid) != (meta.uid, meta.gid) {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            fs::chownat(&self.file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        let allowed = if privileged { 0o7777 } else { 0o1777 };
        let mode = Mode::from_raw_mode((meta.mode & allowed).into());
        match self.kind() {
            FileType::Symlink => {}
            _ if self.open => fs::fchmod(&self.file, mode)?,
            _ => fs::chmod(&place, mode)?,
        }
        if self.inherits || !meta.xattrs.is_empty() {
            set_xattrs(&place, meta, privileged)?;
        }
        let times = times(meta.mtime);
        match self.open {
            true => fs::futimens(&self.file, &times),
            false => fs::utimensat(fs::CWD, &place, &times, AtFlags::empty()),
        }
    }
}

/// Sets the recorded attributes and removes all others of their kind.
fn set_xattrs(place: &str, meta: &Meta, privileged: bool) -> rustix::io::Result<()> {
    let mut names = [0; 4096];
    let len = match fs::listxattr(place, &mut names) {
        Ok(len) => len,
        // The filesystem has none.
        Err(Errno::NOTSUP | Errno::NOSYS) if meta.xattrs.is_empty() => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let present = names[..len].split(|byte| *byte == 0);
    for name in present.filter(|name| is_recorded(name)) {
        if !meta.xattrs.iter().any(|(wanted, _)| wanted == name) {
            match fs::removexattr(place, name) {
                Err(errno) if privileged => return Err(errno),
                _ => {}
            }
        }
    }
    for (name, value) in &meta.xattrs {
        let systems = !name.starts_with(b"user.") && !name.starts_with(b"system.");
        if systems && !privileged {
            continue;
        }
        fs::setxattr(place, &name[..], value, XattrFlags::empty())?;
    }
    Ok(())
}

/// A name beside the place where a file is to be; what has it is removed unless it was renamed.
pub(super) struct Temporary<'a> {
    parent: BorrowedFd<'a>,
    name: Vec<u8>,
    made: Cell<bool>,
}

impl<'a> Temporary<'a> {
    pub(super) fn new(parent: BorrowedFd<'a>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".apppot-merge-{}-{count}", std::process::id());
        Temporary {
            parent,
            name: name.into_bytes(),
            made: Cell::new(false),
        }
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }

    /// Makes it; what an interrupted merge has left under the name makes room.
    pub(super) fn make<T, E>(
        &self,
        failed: impl FnOnce(Errno) -> E,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T, E> {
        let made = match make(self.parent, &self.name) {
            Err(Errno::EXIST) => fs::unlinkat(self.parent, &self.name[..], AtFlags::empty())
                .and_then(|()| make(self.parent, &self.name)),
            made => made,
        };
        self.made.set(made.is_ok());
        made.map_err(failed)
    }

    /// Moves it to its place. `is_link`: whether the place may be another name of the same file.
    pub(super) fn rename(&self, name: &[u8], is_link: bool) -> rustix::io::Result<()> {
        fs::renameat(self.parent, &self.name[..], self.parent, name)?;
        // A rename between two names of one file does nothing; dropping removes the first.
        self.made.set(is_link);
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if self.made.get() {
            let _ = fs::unlinkat(self.parent, &self.name[..], AtFlags::empty());
        }
    }
}
