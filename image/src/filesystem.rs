//! A filesystem in the making: what is added to it, and its end.

use std::fs::File;
use std::io::{Cursor, Read};

use apppot_snapshot::content::Contents;
use apppot_snapshot::entry::{self, Meta};
use apppot_snapshot::rules::Rules;

use crate::error::shown;
use crate::ext4::{self, ContentWriter, Disk, Extent, LOST_AND_FOUND, MAX_FILE};
use crate::tar::{self, Member};
use crate::tree::{Kind, Tree};
use crate::{Error, Result};

/// What an untrusted source may make of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of contents, decompressed, in all that is added.
    pub bytes: u64,
    /// Names in all that is added.
    pub names: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            bytes: 64 << 30,
            names: 4 << 20,
        }
    }
}

/// How the filesystem is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where it begins in the file, bytes: a partition of a disk.
    pub start: u64,
    /// Its size, bytes; `None` for what is added, a quarter more, and 128 MiB.
    pub size: Option<u64>,
    /// Its label, up to 16 bytes.
    pub label: String,
    /// What is too much.
    pub limits: Limits,
}

/// Kinds of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// All its members are files.
    Plain,
    /// A layer of a container image: members `.wh.*` hide what is below.
    Layer,
}

/// A filesystem that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its size, bytes.
    pub size: u64,
    /// Bytes of it that are in use.
    pub used: u64,
    /// Files of all kinds.
    pub files: usize,
    /// Its UUID, which follows from its files.
    pub uuid: [u8; 16],
    /// Files whose access control lists were left out, because the archive has them as text.
    pub text_acls: usize,
}

/// An ext4 filesystem in the making. Contents are written as they come, the rest by
/// [`finish`](Filesystem::finish); without that the file holds no filesystem.
#[derive(Debug)]
pub struct Filesystem {
    disk: Disk,
    tree: Tree,
    options: Options,
    bytes: u64,
    names: u64,
    text_acls: usize,
}

/// Names that mean something in a layer (OCI image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of this kind belong to a storage driver.
const RESERVED: &[u8] = b".wh..wh.";

impl Filesystem {
    /// Begins a filesystem in `file`, where nothing but zeros is from `options.start` on.
    ///
    /// # Errors
    /// The label is too long.
    pub fn new(file: File, options: Options) -> Result<Self> {
        if options.label.len() > 16 {
            return Err(Error::Limit(String::from("a label has at most 16 bytes")));
        }
        Ok(Filesystem {
            disk: Disk::new(file, options.start, options.size),
            tree: Tree::new(),
            options,
            bytes: 0,
            names: 0,
            text_acls: 0,
        })
    }

    /// Adds the members of a tar archive, decompressed. Later ones replace earlier ones.
    ///
    /// # Errors
    /// The archive breaks a rule or exceeds a limit, or writing fails.
    pub fn add_tar(&mut self, reader: impl Read, archive: Archive) -> Result<()> {
        self.tree.begin_layer();
        let mut reader = tar::Reader::new(reader, archive == Archive::Layer);
        while let Some(member) = reader.next_member()? {
            self.count(1, 0)?;
            self.add_member(member, &mut reader, archive)?;
            self.disk.free(&std::mem::take(&mut self.tree.garbage))?;
        }
        Ok(())
    }

    fn add_member(
        &mut self,
        member: Member,
        content: &mut dyn Read,
        archive: Archive,
    ) -> Result<()> {
        let path = member.path.clone();
        let refused = |reason: String| Error::Member {
            member: shown(&path),
            reason,
        };
        if archive == Archive::Layer && self.white_out(&path).map_err(refused)? {
            return Ok(());
        }
        self.text_acls += usize::from(member.has_text_acl);
        let kind = match member.kind {
            tar::Kind::Link(target) => return self.tree.link(&path, &target).map_err(refused),
            tar::Kind::File => {
                let runs = member.runs.unwrap_or_else(|| vec![(0, member.size)]);
                let extents = self.store(member.size, &runs, content);
                let extents = extents.map_err(|error| match error {
                    Error::Limit(why) => Error::Limit(format!("'{}': {why}", shown(&path))),
                    error => error,
                })?;
                Kind::File {
                    size: member.size,
                    extents,
                }
            }
            tar::Kind::Symlink(target) => symlink(target).map_err(refused)?,
            tar::Kind::Character(major, minor) => Kind::Character(major, minor),
            tar::Kind::Block(major, minor) => Kind::Block(major, minor),
            tar::Kind::Directory => Kind::directory(0, 0),
            tar::Kind::Fifo => Kind::Fifo,
        };
        self.tree.put(&path, kind, member.meta).map_err(refused)
    }

    /// Whether the member is a whiteout, which has then done its work.
    fn white_out(&mut self, path: &[u8]) -> std::result::Result<bool, String> {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (directory, name) = path.split_at(slash.map_or(0, |at| at + 1));
        if name == OPAQUE {
            self.tree.make_opaque(directory)?;
        } else if name.starts_with(RESERVED) {
            return Ok(true);
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.tree.white_out(&[directory, hidden].concat())?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Adds everything that is in another tree: a directory, an image.
    ///
    /// # Errors
    /// The tree cannot be read, a limit is exceeded, or writing fails.
    pub fn add_tree(&mut self, tree: &dyn apppot_snapshot::tree::Tree) -> Result<()> {
        self.tree.begin_layer();
        for found in tree.walk(&Rules::everything())?.found {
            self.count(1, 0)?;
            let refused = |reason: String| Error::Member {
                member: shown(&found.entry.path),
                reason,
            };
            let kind = match &found.entry.kind {
                entry::Kind::Directory => Kind::directory(0, 0),
                entry::Kind::File(_) => self.copy(tree.open(&found)?.as_ref())?,
                entry::Kind::Symlink(target) => symlink(target.clone()).map_err(refused)?,
                entry::Kind::Fifo => Kind::Fifo,
                entry::Kind::Character(major, minor) => Kind::Character(*major, *minor),
                entry::Kind::Block(major, minor) => Kind::Block(*major, *minor),
                entry::Kind::Link(target) => {
                    let linked = self.tree.link(&found.entry.path, target);
                    linked.map_err(refused)?;
                    continue;
                }
            };
            let put = self
                .tree
                .put(&found.entry.path, kind, found.entry.meta.clone());
            put.map_err(refused)?;
        }
        self.disk.free(&std::mem::take(&mut self.tree.garbage))
    }

    /// Copies a file of another tree.
    fn copy(&mut self, file: &dyn Contents) -> Result<Kind> {
        let size = file.size();
        let reading = || Error::io("read the source");
        let mut runs = Vec::new();
        let mut next = file.data_after(0).map_err(reading())?;
        while let Some(run) = next {
            runs.push((run.start, run.end - run.start));
            next = file.data_after(run.end).map_err(reading())?;
        }
        let mut content = Stretches {
            file,
            runs: &runs,
            done: 0,
        };
        let extents = self.store(size, &runs, &mut content)?;
        Ok(Kind::File { size, extents })
    }

    /// Adds a regular file of root's, in place of what is there.
    ///
    /// # Errors
    /// The path leads nowhere, or writing fails.
    pub fn add_file(&mut self, path: &str, mode: u16, content: &[u8]) -> Result<()> {
        self.tree.begin_layer();
        let size = content.len() as u64;
        let extents = self.store(size, &[(0, size)], &mut Cursor::new(content))?;
        self.put(path, mode, Kind::File { size, extents })
    }

    /// Adds a symbolic link of root's, in place of what is there.
    ///
    /// # Errors
    /// The path leads nowhere, or the target is no path.
    pub fn add_symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.tree.begin_layer();
        let kind = symlink(target.into()).map_err(refused(path))?;
        self.put(path, 0o777, kind)
    }

    /// Gives a file that has been added another name.
    ///
    /// # Errors
    /// There is no such file, or the path leads nowhere.
    pub fn add_link(&mut self, path: &str, target: &str) -> Result<()> {
        self.tree.begin_layer();
        let linked = self.tree.link(path.as_bytes(), target.as_bytes());
        linked.map_err(refused(path))?;
        self.disk.free(&std::mem::take(&mut self.tree.garbage))
    }

    fn put(&mut self, path: &str, mode: u16, kind: Kind) -> Result<()> {
        let meta = Meta {
            mode,
            ..Meta::default()
        };
        let put = self.tree.put(path.as_bytes(), kind, meta);
        put.map_err(refused(path))?;
        self.disk.free(&std::mem::take(&mut self.tree.garbage))
    }

    /// What is in a regular file that has been added; `None` when there is none at this path.
    ///
    /// # Errors
    /// It is larger than `most` bytes, its path leads out of the root, or reading fails.
    pub fn read_file(&mut self, path: &str, most: usize) -> Result<Option<Vec<u8>>> {
        let node = self.tree.look_up(path.as_bytes()).map_err(refused(path))?;
        let Some(Kind::File { size, extents }) = node.map(|node| &node.kind) else {
            return Ok(None);
        };
        match usize::try_from(*size) {
            Ok(size) if size <= most => self.disk.read(extents, size).map(Some),
            _ => Err(Error::Limit(format!(
                "'{path}' has {size} bytes, {most} is the most"
            ))),
        }
    }

    /// Whether something has been added at this path.
    ///
    /// # Errors
    /// It leads out of the root.
    pub fn has(&mut self, path: &str) -> Result<bool> {
        let node = self.tree.look_up(path.as_bytes()).map_err(refused(path))?;
        Ok(node.is_some())
    }

    /// The names in a directory that are text; none when there is no such directory.
    ///
    /// # Errors
    /// Its path leads out of the root.
    pub fn names(&mut self, directory: &str) -> Result<Vec<String>> {
        let names = self
            .tree
            .names(directory.as_bytes())
            .map_err(refused(directory))?;
        let text = |name: Box<[u8]>| String::from_utf8(name.into()).ok();
        Ok(names.into_iter().filter_map(text).collect())
    }

    /// Writes the stretches of data of a file, which `content` gives one after the other.
    fn store(
        &mut self,
        size: u64,
        runs: &[(u64, u64)],
        content: &mut dyn Read,
    ) -> Result<Vec<Extent>> {
        if size > MAX_FILE {
            return Err(Error::Limit(format!("a file of {size} bytes")));
        }
        self.count(0, runs.iter().map(|(_, len)| len).sum())?;
        let mut writer = ContentWriter::default();
        for (offset, len) in runs {
            writer.seek(&mut self.disk, *offset)?;
            writer.take(&mut self.disk, content, *len)?;
        }
        writer.finish(&mut self.disk)
    }

    /// Counts what is added against the limits, before it is taken.
    fn count(&mut self, names: u64, bytes: u64) -> Result<()> {
        let limits = &self.options.limits;
        self.names += names;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.names > limits.names {
            return Err(Error::Limit(format!("more than {} files", limits.names)));
        }
        if self.bytes > limits.bytes {
            return Err(Error::Limit(format!(
                "more than {} bytes unpacked",
                limits.bytes
            )));
        }
        Ok(())
    }

    /// Completes the filesystem.
    ///
    /// # Errors
    /// It does not fit in its size, or writing fails.
    pub fn finish(mut self) -> Result<Summary> {
        let meta = Meta {
            mode: 0o700,
            ..Meta::default()
        };
        self.tree.begin_layer();
        let put = self.tree.put(LOST_AND_FOUND, Kind::directory(0, 0), meta);
        put.map_err(Error::Malformed)?;
        self.disk.free(&std::mem::take(&mut self.tree.garbage))?;
        let (size, label) = (self.options.size, &self.options.label);
        let finished = ext4::finish(self.disk, &self.tree, size, label)?;
        Ok(Summary {
            size: finished.size,
            used: finished.used,
            files: self.tree.len(),
            uuid: finished.uuid,
            text_acls: self.text_acls,
        })
    }
}

fn refused(path: &str) -> impl Fn(String) -> Error + '_ {
    move |reason| Error::Member {
        member: shown(path.as_bytes()),
        reason,
    }
}

fn symlink(target: Vec<u8>) -> std::result::Result<Kind, String> {
    match target.len() {
        1..4096 if !target.contains(&0) => Ok(Kind::Symlink(target)),
        _ => Err(String::from("is a symbolic link to no path")),
    }
}

/// The stretches of data of a file, one after the other.
struct Stretches<'a> {
    file: &'a dyn Contents,
    runs: &'a [(u64, u64)],
    /// Bytes of the first stretch that have been read.
    done: u64,
}

impl Read for Stretches<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while let Some((offset, len)) = self.runs.first() {
            if self.done < *len {
                let part = buffer.len().min((len - self.done) as usize);
                self.file.read_at(&mut buffer[..part], offset + self.done)?;
                self.done += part as u64;
                return Ok(part);
            }
            self.runs = &self.runs[1..];
            self.done = 0;
        }
        Ok(0)
    }
}
