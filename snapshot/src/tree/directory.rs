//! A live tree: the running system, or any directory that holds a root filesystem.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};

use super::{finish, Found, Listing, Tree};
use crate::codec::check_path;
use crate::content::Contents;
use crate::entry::{Content, Entry, Kind, Meta, Time, Xattrs};
use crate::rules::{Rules, Verdict};
use crate::{xattrs, Error, Result};

/// A directory with all that is below it on its filesystem.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    device: u64,
    crossing: bool,
}

type Key = (u64, u64);

/// A walk on its way.
#[derive(Default)]
struct Walk {
    waiting: Vec<(Vec<u8>, Verdict)>,
    found: Vec<(Found, Option<Key>)>,
    covered: Vec<Vec<u8>>,
}

impl Directory {
    /// Opens the tree at `root`. With `crossing`, other filesystems mounted below belong to it.
    ///
    /// # Errors
    /// `root` is no directory or cannot be examined.
    pub fn open(root: &Path, crossing: bool) -> Result<Self> {
        let metadata = std::fs::metadata(root).map_err(Error::file("open directory", root))?;
        if !metadata.is_dir() {
            let error = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(Error::file("open directory", root)(error));
        }
        Ok(Directory {
            root: root.to_owned(),
            device: metadata.dev(),
            crossing,
        })
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        match path.is_empty() {
            true => self.root.clone(),
            false => self.root.join(OsStr::from_bytes(path)),
        }
    }

    /// Lists one directory; subdirectories to be listed wait.
    fn list(
        &self,
        directory: &[u8],
        within: Verdict,
        rules: &Rules,
        walk: &mut Walk,
    ) -> Result<()> {
        let place = self.place(directory);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // The root itself may be reached through a symbolic link.
        let flags = match directory.is_empty() {
            true => flags - OFlags::NOFOLLOW,
            false => flags,
        };
        let opened = fs::open(&place, flags, Mode::empty());
        let opened = opened.map_err(Error::file("open directory", &place))?;
        let listing = fs::Dir::read_from(&opened).map_err(Error::file("read", &place))?;
        for item in listing {
            let item = item.map_err(Error::file("read", &place))?;
            let name = item.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = joined(directory, name.to_bytes());
            let stat = match fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // It vanished between being listed and being looked at.
                Err(rustix::io::Errno::NOENT) => continue,
                Err(errno) => return Err(Error::file("examine", self.place(&path))(errno)),
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory && !self.crossing && stat.st_dev != self.device {
                walk.covered.push(path);
                continue;
            }
            let verdict = rules.judge(&path, is_directory, within);
            if verdict == Verdict::Keep {
                walk.found.extend(self.entry(&path, &stat)?);
            }
            if is_directory && verdict != Verdict::Skip {
                check_path(&path).map_err(|flaw| too_deep(&self.place(&path), flaw))?;
                walk.waiting.push((path, verdict));
            }
        }
        Ok(())
    }

    /// The entry of one file; none for a socket.
    fn entry(&self, path: &[u8], stat: &Stat) -> Result<Option<(Found, Option<Key>)>> {
        let place = self.place(path);
        let device = || (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::File(Content {
                size: stat.st_size as u64,
                ..Content::default()
            }),
            FileType::Symlink => {
                let target = std::fs::read_link(&place).map_err(Error::file("read", &place))?;
                Kind::Symlink(target.into_os_string().into_encoded_bytes())
            }
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::Character(device().0, device().1),
            FileType::BlockDevice => Kind::Block(device().0, device().1),
            _ => return Ok(None),
        };
        let several = kind != Kind::Directory && stat.st_nlink > 1;
        let meta = Meta {
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Time {
                seconds: stat.st_mtime,
                nanoseconds: stat.st_mtime_nsec as u32,
            },
            xattrs: read_xattrs(&place).map_err(Error::file("read attributes of", &place))?,
        };
        let entry = Entry {
            path: path.to_owned(),
            kind,
            meta,
        };
        let inode = stat.st_ino;
        let key = several.then_some((stat.st_dev, inode));
        Ok(Some((Found { entry, inode }, key)))
    }
}

impl Tree for Directory {
    fn walk(&self, rules: &Rules) -> Result<Listing> {
        let root = fs::stat(&self.root).map_err(Error::file("examine", &self.root))?;
        let mut walk = Walk::default();
        walk.found.extend(self.entry(b"", &root)?);
        walk.waiting.push((Vec::new(), Verdict::Keep));
        while let Some((directory, verdict)) = walk.waiting.pop() {
            self.list(&directory, verdict, rules, &mut walk)?;
        }
        Ok(Listing {
            found: finish(walk.found),
            covered: walk.covered,
        })
    }

    fn open(&self, found: &Found) -> Result<Box<dyn Contents + '_>> {
        let place = self.place(&found.entry.path);
        // A file that has become a FIFO must not block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match fs::open(&place, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => {
                return Err(Error::Moving(place))
            }
            Err(errno) => return Err(Error::file("open", place)(errno)),
        };
        let metadata = file.metadata().map_err(Error::file("examine", &place))?;
        if !metadata.is_file() || metadata.ino() != found.inode {
            return Err(Error::Moving(place));
        }
        let size = metadata.len();
        Ok(Box::new(LiveFile { file, size }))
    }
}

fn too_deep(place: &Path, flaw: &'static str) -> Error {
    Error::file("record", place)(io::Error::other(flaw))
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory.is_empty() {
        true => name.to_owned(),
        false => [directory, b"/", name].concat(),
    }
}

/// A regular file of a live tree.
pub(crate) struct LiveFile {
    file: File,
    size: u64,
}

impl LiveFile {
    /// A file of which `size` bytes are looked at.
    pub(crate) fn new(file: File, size: u64) -> Self {
        LiveFile { file, size }
    }

    /// The file itself.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Contents for LiveFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn data_after(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        if offset >= self.size {
            return Ok(None);
        }
        // Small files are not worth two more system calls.
        if self.size < crate::content::BLOCK {
            return Ok(Some(offset..self.size));
        }
        let seek = |to| fs::seek(&self.file, to);
        match seek(SeekFrom::Data(offset)) {
            Ok(start) if start < self.size => {
                let end = seek(SeekFrom::Hole(start))?;
                Ok(Some(start..end.clamp(start + 1, self.size)))
            }
            Ok(_) | Err(rustix::io::Errno::NXIO) => Ok(None),
            // The filesystem knows of no holes.
            Err(rustix::io::Errno::INVAL) => Ok(Some(offset..self.size)),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The recorded extended attributes of a file, which is not followed.
pub(crate) fn read_xattrs(place: &Path) -> io::Result<Xattrs> {
    let names = match growing(|buffer| fs::llistxattr(place, buffer)) {
        Ok(names) => names,
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    let mut recorded = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if !xattrs::is_recorded(name.to_bytes()) {
            continue;
        }
        let name: CString = name.to_owned();
        match growing(|buffer| fs::lgetxattr(place, &name, buffer)) {
            Ok(value) => recorded.push((name.into_bytes(), value)),
            Err(rustix::io::Errno::NODATA) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    recorded.sort();
    Ok(recorded)
}

/// Calls with an ever larger buffer until the answer fits.
fn growing(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(rustix::io::Errno::RANGE) if buffer.len() < 1 << 20 => {
                buffer.resize(buffer.len() * 4, 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}
