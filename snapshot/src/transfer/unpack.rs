//! From a stream into a directory.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::levels::{Level, Levels, Owner};
use super::listing::{place, Listing, Stamp};
use super::new::{dress, keep, reserve, New};
use super::reader::{malformed, Member, Reader};
use super::rest::Rest;
use super::Patterns;
use crate::entry::{Content, Entry, Kind};
use crate::way::times;
use crate::{Error, Result};

/// What a file is called on its way to its place, where it must have a name.
const TEMPORARY: &[u8] = b".apppot-new-";

/// The most that a stream may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of contents.
    pub bytes: u64,
    /// Members.
    pub entries: u64,
}

/// How to unpack.
pub struct Options<'a> {
    /// The most that is taken.
    pub limits: Limits,
    /// Who gets the files: user and group, for root; else they are the process's own.
    pub owner: Option<(u32, u32)>,
    /// For results: what was sent. Files are replaced at once or not at all, and what was changed
    /// here since then is kept beside.
    pub sent: Option<&'a Listing>,
    /// What is taken; the rest is passed over.
    pub patterns: &'a Patterns,
    /// Whether what is gone there is removed here, if nobody has changed it since.
    pub delete: bool,
    /// Makes the file for what cannot be put into its place.
    pub rest: Option<&'a mut dyn FnMut() -> Option<(File, PathBuf)>>,
    /// Is told what happens.
    pub told: &'a mut dyn FnMut(Notice),
}

/// What there is to tell while unpacking.
#[derive(Debug)]
pub enum Notice<'a> {
    /// The stream has begun: members and bytes, as the sender says.
    Start(u64, u64),
    /// So many bytes more.
    Bytes(u64),
    /// A file was changed on both sides: here it is under the second name now.
    Kept(PathBuf, PathBuf),
    /// This is gone there and was changed here, so it stays.
    NotDeleted(&'a Path),
}

/// What has been done.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// Members put into their places.
    pub entries: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// What went wrong, after which nothing more was put into its place.
    pub trouble: Option<Trouble>,
}

/// What went wrong with a stream.
#[derive(Debug)]
pub struct Trouble {
    /// The reason.
    pub error: Error,
    /// The first path that is not in its place.
    pub at: PathBuf,
    /// Whether that one is lost, with or without a rest.
    pub lost: bool,
    /// Where the rest is, as a tar, and how many members of it.
    pub rest: Option<(PathBuf, u64)>,
}

/// Unpacks a stream into `root`.
///
/// # Errors
/// The stream breaks a rule, ends early, or exceeds a limit; or nothing could be done at all. What
/// the filesystem refuses is [`Trouble`] instead when there is a way to keep the rest.
pub fn unpack<R: Read>(
    root: &Path,
    reader: &mut Reader<R>,
    options: Options,
    done: &mut Unpacked,
) -> Result<()> {
    let owner = match options.owner {
        Some((uid, gid)) => Owner::Ids(uid, gid),
        None => Owner::Ours,
    };
    let mut unpacker = Unpacker {
        levels: Levels::open(root, owner)?,
        owner,
        options,
        done,
        members: 0,
        mode: None,
        gone: Vec::new(),
        temporaries: 0,
    };
    unpacker.run(reader)?;
    if let (Some(mode), Owner::Ids(..)) = (unpacker.mode, owner) {
        let directory = unpacker.levels.root();
        directory
            .and_then(|directory| fs::fchmod(directory, owner.mode(mode, 0)))
            .map_err(Error::file("change", root))?;
    }
    unpacker.levels.close()
}

struct Unpacker<'a, 'd> {
    levels: Levels,
    owner: Owner,
    options: Options<'a>,
    done: &'d mut Unpacked,
    members: u64,
    /// Permissions of the directory.
    mode: Option<u16>,
    /// What is to be removed.
    gone: Vec<Vec<u8>>,
    temporaries: u64,
}

impl Unpacker<'_, '_> {
    fn run<R: Read>(&mut self, reader: &mut Reader<R>) -> Result<()> {
        let mut rest: Option<Rest> = None;
        loop {
            match reader.next()? {
                Member::Start {
                    results,
                    entries,
                    bytes,
                    mode,
                } => {
                    self.mode = mode;
                    if results != self.options.sent.is_some() {
                        return Err(malformed("it is not the stream that belongs here"));
                    }
                    (self.options.told)(Notice::Start(entries, bytes));
                    self.check_limits(bytes, entries)?;
                }
                Member::Deleted(paths) => self.note_deleted(paths),
                Member::Entry(entry) => self.take(&entry, reader, &mut rest)?,
                Member::End => {
                    self.delete()?;
                    break;
                }
            }
        }
        if let Some(mut rest) = rest {
            let kept = rest.finish().is_ok();
            if let Some(trouble) = self.done.trouble.as_mut().filter(|_| kept) {
                trouble.rest = Some((rest.path, rest.entries));
            }
        }
        Ok(())
    }

    fn check_limits(&self, bytes: u64, entries: u64) -> Result<()> {
        let limits = self.options.limits;
        let (what, most) = match () {
            () if bytes > limits.bytes => (format!("{bytes} bytes of files"), limits.bytes),
            () if entries > limits.entries => (format!("{entries} files"), limits.entries),
            () => return Ok(()),
        };
        Err(Error::Limit(format!("{what}, the limit is {most}")))
    }

    /// What was never sent cannot be gone.
    fn note_deleted(&mut self, paths: Vec<Vec<u8>>) {
        if let Some(sent) = self.options.sent.filter(|_| self.options.delete) {
            let ours = |path: &Vec<u8>| sent.get(path).is_some();
            self.gone.extend(paths.into_iter().filter(ours));
        }
    }

    fn take<R: Read>(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<R>,
        rest: &mut Option<Rest>,
    ) -> Result<()> {
        if !self
            .options
            .patterns
            .keep(&entry.path, entry.is_directory())
            && !entry.is_directory()
        {
            return Ok(());
        }
        self.members += 1;
        let size = match &entry.kind {
            Kind::File(content) => content.stored(),
            _ => 0,
        };
        self.check_limits(self.done.bytes.saturating_add(size), self.members)?;
        if let Some(rest) = rest {
            return rest.keep(entry, reader);
        }
        let mut begun = false;
        match self.put(entry, reader, &mut begun) {
            Ok(()) => {
                self.done.entries += 1;
                self.done.bytes += size;
                Ok(())
            }
            // The stream itself is sound.
            Err(error @ Error::File { .. }) => self.in_trouble(error, entry, reader, rest, begun),
            Err(error) => Err(error),
        }
    }

    /// From here on members are kept elsewhere, if there is such a place.
    fn in_trouble<R: Read>(
        &mut self,
        error: Error,
        entry: &Entry,
        reader: &mut Reader<R>,
        rest: &mut Option<Rest>,
        begun: bool,
    ) -> Result<()> {
        let made = self.options.rest.as_mut().and_then(|make| make());
        let Some(made) = made else {
            return Err(error);
        };
        let rest = rest.insert(Rest::new(made));
        self.done.trouble = Some(Trouble {
            error,
            at: place(&entry.path),
            lost: begun,
            rest: None,
        });
        match begun {
            true => Ok(()),
            false => rest.keep(entry, reader),
        }
    }

    /// Puts a member into its place. `begun` says whether bytes of its content are gone.
    fn put<R: Read>(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<R>,
        begun: &mut bool,
    ) -> Result<()> {
        let path = &entry.path;
        let failed = || Error::file("make", place(path));
        match &entry.kind {
            Kind::Directory => self.directory(entry),
            Kind::File(content) => self.file(entry, content, reader, begun),
            Kind::Symlink(target) => {
                let target = CString::new(&target[..]).map_err(|_| malformed("a link is none"))?;
                self.other(entry, |level, name| {
                    fs::symlinkat(&target, &level.directory, name)
                })
            }
            Kind::Fifo => self.other(entry, |level, name| {
                let mode = Mode::from_raw_mode(0o600);
                fs::mknodat(&level.directory, name, FileType::Fifo, mode, 0)
            }),
            Kind::Link(leader) => {
                let (directory, leader) = self.levels.apart(leader).map_err(failed())?;
                self.other(entry, |level, name| {
                    fs::linkat(&directory, leader, &level.directory, name, AtFlags::empty())
                })
            }
            Kind::Character(..) | Kind::Block(..) => {
                Err(malformed("a member is of a kind that does not travel"))
            }
        }
    }

    fn directory(&mut self, entry: &Entry) -> Result<()> {
        let path = &entry.path;
        let failed = || Error::file("make directory", place(path));
        let stat = self.examine(path)?;
        if stat.is_some_and(|stat| stat.kind() != FileType::Directory) {
            self.make_room(path, stat, true)?;
        }
        if stat.is_none_or(|stat| stat.kind() != FileType::Directory) {
            let (level, name) = self.levels.parent_to_change(path)?;
            // Nobody else looks into it before it has its own mode.
            fs::mkdirat(&level.directory, name, Mode::from_raw_mode(0o700)).map_err(failed())?;
        }
        self.levels.enter(path, entry.meta.clone())
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        content: &Content,
        reader: &mut Reader<R>,
        begun: &mut bool,
    ) -> Result<()> {
        let path = &entry.path;
        let failed = || Error::file("write", place(path));
        let unwritten = || Error::file::<std::io::Error>("write", place(path));
        let atomically = self.options.sent.is_some();
        let temporary = self.temporary();
        let (level, name) = self.levels.parent_to_change(path)?;
        let new = New::make(level, &temporary, name, atomically).map_err(failed())?;
        let file = File::from(new.file.try_clone().map_err(unwritten())?);
        if content.runs.is_some() {
            file.set_len(content.size).map_err(unwritten())?;
        }
        if atomically {
            reserve(&file, content).map_err(failed())?;
        }
        let told = &mut self.options.told;
        reader.content(content, &mut |offset, bytes| {
            *begun = true;
            file.write_all_at(bytes, offset).map_err(unwritten())?;
            told(Notice::Bytes(bytes.len() as u64));
            Ok(())
        })?;
        let stat = fs::fstat(&file).map_err(failed())?;
        self.owner.give(&file, &stat).map_err(failed())?;
        fs::fchmod(&file, self.owner.mode(entry.meta.mode, 0)).map_err(failed())?;
        fs::futimens(&file, &times(entry.meta.mtime)).map_err(failed())?;
        if atomically {
            let stat = self.examine(path)?;
            self.make_room(path, stat, false)?;
            let (level, name) = self.levels.parent_to_change(path)?;
            return new.settle(level, name).map_err(failed());
        }
        new.stays();
        Ok(())
    }

    /// Makes something that has no content, and puts it into its place.
    fn other(
        &mut self,
        entry: &Entry,
        make: impl FnOnce(&Level, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<()> {
        let path = &entry.path;
        let failed = || Error::file("make", place(path));
        let temporary = self.temporary();
        let owner = self.owner;
        let (level, _) = self.levels.parent_to_change(path)?;
        make(level, &temporary).map_err(failed())?;
        let finish = |level: &Level| match &entry.kind {
            Kind::Link(_) => Ok(()),
            _ => dress(level, &temporary, entry, owner),
        };
        let finished = finish(level).map_err(failed());
        let settled = finished.and_then(|()| {
            let stat = self.examine(path)?;
            self.make_room(path, stat, false)?;
            let (level, name) = self.levels.parent_to_change(path)?;
            let directory = &level.directory;
            fs::renameat(directory, &temporary[..], directory, name).map_err(failed())
        });
        let (level, _) = self.levels.parent_to_change(path)?;
        if settled.is_err() || matches!(entry.kind, Kind::Link(_)) {
            // A rename between two names of one file does nothing.
            let _ = fs::unlinkat(&level.directory, &temporary[..], AtFlags::empty());
        }
        settled
    }

    fn temporary(&mut self) -> Vec<u8> {
        self.temporaries += 1;
        let number = format!("{}-{}", std::process::id(), self.temporaries);
        [TEMPORARY, number.as_bytes()].concat()
    }

    /// What has the name now.
    fn examine(&mut self, path: &[u8]) -> Result<Option<Stamp>> {
        let Some((level, name)) = self.levels.existing(path)? else {
            return Ok(None);
        };
        match fs::statat(&level.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Stamp::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::file("examine", place(path))(errno)),
        }
    }

    /// Sees to it that nothing is lost when `path` is replaced. A file that makes room for a file
    /// stays where it is until then.
    fn make_room(&mut self, path: &[u8], now: Option<Stamp>, for_directory: bool) -> Result<()> {
        let (Some(now), Some(sent)) = (now, self.options.sent) else {
            return Ok(());
        };
        let failed = || Error::file("replace", place(path));
        let was = sent.get(path);
        let is_directory = now.kind() == FileType::Directory;
        let (level, name) = self.levels.parent_to_change(path)?;
        if was.is_some_and(|was| was.is_same_but_for_names(&now)) {
            match (is_directory, for_directory) {
                (false, false) => return Ok(()),
                (false, true) => {
                    let removed = fs::unlinkat(&level.directory, name, AtFlags::empty());
                    return removed.map_err(failed());
                }
                // An empty one is no loss.
                (true, _) => {
                    if fs::unlinkat(&level.directory, name, AtFlags::REMOVEDIR).is_ok() {
                        return Ok(());
                    }
                }
            }
        }
        let kept = keep(level, name, is_directory || for_directory).map_err(failed())?;
        let beside = crate::entry::split(path).map_or(PathBuf::new(), |(parent, _)| place(parent));
        (self.options.told)(Notice::Kept(place(path), beside.join(kept)));
        Ok(())
    }

    /// Removes what is gone, the deepest first.
    fn delete(&mut self) -> Result<()> {
        for path in std::mem::take(&mut self.gone).into_iter().rev() {
            let Some(now) = self.examine(&path)? else {
                continue;
            };
            let was = self.options.sent.and_then(|sent| sent.get(&path));
            let same = was.is_some_and(|was| was.is_same_but_for_names(&now));
            let is_directory = now.kind() == FileType::Directory;
            if !same && !is_directory {
                (self.options.told)(Notice::NotDeleted(&place(&path)));
                continue;
            }
            let (level, name) = self.levels.parent_to_change(&path)?;
            let flags = match is_directory {
                true => AtFlags::REMOVEDIR,
                false => AtFlags::empty(),
            };
            match fs::unlinkat(&level.directory, name, flags) {
                // Something was made in it meanwhile.
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => return Err(Error::file("remove", place(&path))(errno)),
            }
        }
        Ok(())
    }
}
