//! From a listing to a stream.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{self, FileType, Mode, OFlags};

use super::listing::{place, Item, Listing, Skipped, Stamp};
use super::{FILES, RESULTS};
use crate::content::Contents;
use crate::entry::{Content, Entry, Kind, Meta};
use crate::tree::LiveFile;
use crate::{tar, Error, Result};

/// Bytes read from a file at once.
const CHUNK: usize = 256 << 10;
/// Most holes of a file that are told of; the rest travels as zeros.
const MAX_RUNS: usize = 1 << 12;
/// Bytes of paths in one header.
const DELETED_AT_ONCE: usize = 32 << 10;

/// What travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cargo<'a> {
    /// The job's files, to the guest.
    Files,
    /// What the job changed, and the paths that are gone.
    Results(&'a [&'a [u8]]),
}

/// What there is to tell while packing.
#[derive(Debug)]
pub enum Told<'a> {
    /// So many bytes of files more.
    Bytes(u64),
    /// This did not travel.
    Skipped(&'a [u8], Skipped),
    /// This changed while it was read; it was filled up with zeros, or cut off.
    Changed(&'a [u8]),
}

/// Writes the stream of `items`, which are below `root`.
///
/// # Errors
/// The stream cannot be written, or a file cannot be read to its end.
pub fn pack(
    root: &Path,
    cargo: Cargo,
    items: &[&Item],
    out: &mut dyn Write,
    told: &mut dyn FnMut(Told),
) -> Result<()> {
    let mut packer = Packer {
        root,
        out,
        told,
        leaders: HashMap::new(),
        buffer: vec![0; CHUNK],
    };
    packer.start(cargo, items)?;
    for item in items {
        packer.item(item)?;
    }
    packer.put(&tar::global(b"apppot-end", &[(b"APPPOT.end", b"1")]))?;
    packer.put(&[0; 2 * tar::BLOCK])?;
    packer.out.flush().map_err(Error::stream("send files"))
}

struct Packer<'a> {
    root: &'a Path,
    out: &'a mut dyn Write,
    told: &'a mut dyn FnMut(Told),
    /// The first name of every file that has several.
    leaders: HashMap<(u64, u64), &'a [u8]>,
    buffer: Vec<u8>,
}

impl<'a> Packer<'a> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .map_err(Error::stream("send files"))
    }

    fn start(&mut self, cargo: Cargo, items: &[&Item]) -> Result<()> {
        let (entries, bytes) = Listing::totals(items.iter().copied());
        let (entries, bytes) = (entries.to_string(), bytes.to_string());
        let (name, deleted) = match cargo {
            Cargo::Files => (FILES, &[][..]),
            Cargo::Results(deleted) => (RESULTS, deleted),
        };
        let mode = format!("{:o}", root_mode(self.root));
        self.put(&tar::global(
            name,
            &[
                (b"APPPOT.files", b"1"),
                (b"APPPOT.entries", entries.as_bytes()),
                (b"APPPOT.bytes", bytes.as_bytes()),
                (b"APPPOT.mode", mode.as_bytes()),
            ],
        ))?;
        let mut records: Vec<(&[u8], &[u8])> = Vec::new();
        let mut len = 0;
        for path in deleted {
            records.push((b"APPPOT.deleted", path));
            len += path.len() + 32;
            if len > DELETED_AT_ONCE {
                self.put(&tar::global(b"apppot-deleted", &records))?;
                records.clear();
                len = 0;
            }
        }
        match records.is_empty() {
            true => Ok(()),
            false => self.put(&tar::global(b"apppot-deleted", &records)),
        }
    }

    fn item(&mut self, item: &'a Item) -> Result<()> {
        let key = item.stamp.shared();
        if let Some(leader) = key.and_then(|key| self.leaders.get(&key)) {
            let link = Kind::Link(leader.to_vec());
            return self.put(&tar::header(&entry(item, link, Meta::default())));
        }
        let place = self.root.join(std::ffi::OsStr::from_bytes(&item.path));
        let sent = match item.stamp.kind() {
            FileType::Directory => self.bare(item, Kind::Directory)?,
            FileType::Fifo => self.bare(item, Kind::Fifo)?,
            FileType::Symlink => match std::fs::read_link(&place) {
                Ok(target) => {
                    self.bare(item, Kind::Symlink(target.as_os_str().as_bytes().into()))?
                }
                Err(error) => self.skip(item, error.to_string()),
            },
            _ => self.file(item, &place)?,
        };
        if let Some(key) = key.filter(|_| sent) {
            self.leaders.insert(key, &item.path);
        }
        Ok(())
    }

    fn skip(&mut self, item: &Item, reason: String) -> bool {
        (self.told)(Told::Skipped(&item.path, Skipped::Unreadable(reason)));
        false
    }

    fn bare(&mut self, item: &Item, kind: Kind) -> Result<bool> {
        self.put(&tar::header(&entry(item, kind, meta(&item.stamp))))?;
        Ok(true)
    }

    /// Whether it was sent.
    fn file(&mut self, item: &Item, place: &Path) -> Result<bool> {
        // A file that has become a FIFO must not block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match fs::open(place, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(errno) => return Ok(self.skip(item, std::io::Error::from(errno).to_string())),
        };
        let stat = match fs::fstat(&file) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => stat,
            _ => return Ok(self.skip(item, String::from("it is no file any more"))),
        };
        let live = LiveFile::new(file, stat.st_size as u64);
        let holes = (stat.st_blocks as u64).saturating_mul(512) < stat.st_size as u64;
        let runs = match holes {
            true => runs(&live).map_err(Error::file("read", place))?,
            false => None,
        };
        let content = Content {
            size: live.size(),
            runs,
            ..Content::default()
        };
        let header = entry(item, Kind::File(content.clone()), meta(&Stamp::of(&stat)));
        self.put(&tar::header(&header))?;
        let mut whole = true;
        for (start, len) in content.stretches() {
            whole &= self.stretch(&live, place, start, len)?;
        }
        let padding = tar::padding(content.stored());
        self.put(&[0; tar::BLOCK][..padding])?;
        let after = fs::fstat(live.file()).map_err(Error::file("examine", place))?;
        if !whole || Stamp::of(&after) != Stamp::of(&stat) {
            (self.told)(Told::Changed(&item.path));
        }
        Ok(true)
    }

    /// Sends a stretch of a file; what is not there any more is zeros. Whether it was all there.
    fn stretch(&mut self, live: &LiveFile, place: &Path, start: u64, len: u64) -> Result<bool> {
        let (mut at, end) = (start, start + len);
        let mut whole = true;
        while at < end {
            let want = (end - at).min(CHUNK as u64) as usize;
            let mut got = 0;
            while got < want && whole {
                let read = live
                    .file()
                    .read_at(&mut self.buffer[got..want], at + got as u64);
                match read.map_err(Error::file("read", place))? {
                    0 => whole = false,
                    more => got += more,
                }
            }
            self.buffer[got..want].fill(0);
            let bytes = &self.buffer[..want];
            self.out
                .write_all(bytes)
                .map_err(Error::stream("send files"))?;
            (self.told)(Told::Bytes(want as u64));
            at += want as u64;
        }
        Ok(whole)
    }
}

/// The permissions of the directory itself; not to write, where we may not.
fn root_mode(root: &Path) -> u32 {
    let mode = fs::stat(root).map_or(0o755, |stat| stat.st_mode & 0o1777);
    match fs::access(root, fs::Access::WRITE_OK) {
        Ok(()) => mode,
        Err(_) => mode & !0o222,
    }
}

/// The stretches of data of a file with holes; `None` when there are none.
fn runs(live: &LiveFile) -> std::io::Result<Option<Vec<(u64, u64)>>> {
    let (mut runs, mut at) = (Vec::new(), 0);
    while let Some(data) = live.data_after(at)? {
        if runs.len() + 1 == MAX_RUNS {
            runs.push((data.start, live.size() - data.start));
            break;
        }
        runs.push((data.start, data.end - data.start));
        at = data.end;
    }
    Ok((runs != [(0, live.size())]).then_some(runs))
}

fn meta(stamp: &Stamp) -> Meta {
    Meta {
        mode: (stamp.mode & 0o7777) as u16,
        mtime: stamp.mtime,
        ..Meta::default()
    }
}

fn entry(item: &Item, kind: Kind, meta: Meta) -> Entry {
    Entry {
        path: item.path.clone(),
        kind,
        meta,
    }
}

/// A skipped or changed path for people.
impl Told<'_> {
    /// The warning, if it is one.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        Some(match self {
            Told::Bytes(_) => return None,
            Told::Skipped(path, reason) => {
                format!("'{}' is left out: {reason}", place(path).display())
            }
            Told::Changed(path) => format!("'{}' changed while it was read", place(path).display()),
        })
    }
}
