//! An ext2, ext3 or ext4 filesystem read from its blocks (`Documentation/filesystems/ext4`), without
//! mounting it and without rights. The journal of one that was not unmounted is replayed in memory.
//!
//! Why not a crate: see `docs/adr/`; the ones there are give neither inode numbers nor device
//! numbers, extended attributes or holes.

mod bytes;
mod directory;
mod extents;
mod inode;
mod journal;
mod superblock;
mod xattr;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::ops::Range;

use self::extents::Extent;
use self::inode::Inode;
use self::superblock::Superblock;
use super::{finish, Blocks, Found, Listing, Tree};
use crate::codec::check_path;
use crate::content::Contents;
use crate::entry::{Content, Entry, Kind, Meta};
use crate::rules::{Rules, Verdict};
use crate::{Error, Result};

/// The root directory's inode.
const ROOT: u32 = 2;

/// A filesystem in an image.
pub struct Ext4 {
    blocks: Box<dyn Blocks>,
    /// Where it begins, bytes.
    offset: u64,
    superblock: Superblock,
    /// The first block of each group's inodes.
    inode_tables: Vec<u64>,
    /// Blocks whose newest content is in the journal.
    replayed: HashMap<u64, journal::Copy>,
}

impl fmt::Debug for Ext4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ext4")
            .field("offset", &self.offset)
            .field("superblock", &self.superblock)
            .finish_non_exhaustive()
    }
}

/// The image breaks a rule of the format.
fn corrupt(what: impl fmt::Display) -> Error {
    Error::Filesystem(format!("it is damaged: {what}"))
}

impl Ext4 {
    /// Opens the filesystem that begins at byte `offset` of `blocks`.
    ///
    /// # Errors
    /// There is none, it cannot be read, or it has a feature that is not known here.
    pub fn open(blocks: Box<dyn Blocks>, offset: u64) -> Result<Self> {
        let superblock = Superblock::read(blocks.as_ref(), offset)?;
        let mut ext4 = Ext4 {
            blocks,
            offset,
            superblock,
            inode_tables: Vec::new(),
            replayed: HashMap::new(),
        };
        ext4.inode_tables = ext4.read_groups()?;
        if ext4.superblock.needs_recovery() {
            ext4.replayed = journal::replay(&ext4)?;
            ext4.inode_tables = ext4.read_groups()?;
        }
        Ok(ext4)
    }

    fn block_size(&self) -> u64 {
        self.superblock.block_size
    }

    /// One block, as the journal has it if it does.
    fn block(&self, number: u64) -> Result<Vec<u8>> {
        let mut block = vec![0; self.block_size() as usize];
        self.read_blocks(&mut block, number)
            .map_err(Error::stream("read the image"))?;
        Ok(block)
    }

    /// Whole blocks from `first` on.
    fn read_blocks(&self, buffer: &mut [u8], first: u64) -> io::Result<()> {
        self.read_bytes(buffer, first, 0)
    }

    /// Bytes that begin `skip` bytes into block `first`; the buffer may span blocks.
    fn read_bytes(&self, buffer: &mut [u8], first: u64, skip: u64) -> io::Result<()> {
        let size = self.block_size();
        let place = |block: u64| block.checked_mul(size)?.checked_add(self.offset);
        let far = || io::Error::from(io::ErrorKind::UnexpectedEof);
        if self.replayed.is_empty() {
            let at = place(first).and_then(|at| at.checked_add(skip));
            return self.blocks.read_at(buffer, at.ok_or_else(far)?);
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = skip + done as u64;
            let (number, inside) = (first + at / size, at % size);
            let len = (size - inside).min((buffer.len() - done) as u64) as usize;
            let part = &mut buffer[done..done + len];
            let copy = self.replayed.get(&number);
            let real = copy.map_or(number, |copy| copy.block);
            self.blocks
                .read_at(part, place(real).ok_or_else(far)? + inside)?;
            if copy.is_some_and(|copy| copy.escaped) && inside < 4 {
                let magic = journal::MAGIC.to_be_bytes();
                let shared = part.len().min(4 - inside as usize);
                part[..shared].copy_from_slice(&magic[inside as usize..][..shared]);
            }
            done += len;
        }
        Ok(())
    }

    fn read_groups(&self) -> Result<Vec<u64>> {
        let per_block = self.block_size() / self.superblock.descriptor_size;
        let mut tables = Vec::new();
        let mut block = Vec::new();
        for group in 0..self.superblock.groups {
            if group % per_block == 0 {
                block = self.block(self.superblock.descriptor_block(group / per_block))?;
            }
            let at = (group % per_block * self.superblock.descriptor_size) as usize;
            let high = match self.superblock.descriptor_size >= 64 {
                true => bytes::le32(&block, at + 0x28),
                false => 0,
            };
            tables.push(bytes::join(bytes::le32(&block, at + 8), high));
        }
        Ok(tables)
    }

    fn inode(&self, number: u32) -> Result<Inode> {
        let per_group = self.superblock.inodes_per_group;
        let index = number.checked_sub(1).ok_or_else(|| corrupt("inode 0"))?;
        let table = self.inode_tables.get((index / per_group) as usize);
        let table = table.ok_or_else(|| corrupt(format!("there is no inode {number}")))?;
        let mut raw = vec![0; usize::from(self.superblock.inode_size)];
        let at = u64::from(index % per_group) * raw.len() as u64;
        let (block, skip) = (table + at / self.block_size(), at % self.block_size());
        self.read_bytes(&mut raw, block, skip)
            .map_err(Error::stream("read the image"))?;
        Ok(Inode { number, raw })
    }

    /// A file's whole content; for small ones such as directories and links.
    fn read_whole(&self, inode: &Inode, longest: u64) -> Result<Vec<u8>> {
        if inode.size() > longest {
            return Err(corrupt(format!("inode {} is too large", inode.number)));
        }
        if inode.is_inline() {
            return self.inline_data(inode);
        }
        let mut content = vec![0; inode.size() as usize];
        let file = self.file(inode)?;
        file.read_at(&mut content, 0)
            .map_err(Error::stream("read the image"))?;
        Ok(content)
    }

    /// Content that is stored in the inode itself: the first 60 bytes in place of the block map,
    /// the rest as an extended attribute.
    fn inline_data(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut content = inode.map().to_vec();
        content.extend(xattr::inline_rest(inode));
        content.resize(inode.size().min(1 << 16) as usize, 0);
        Ok(content)
    }

    fn file(&self, inode: &Inode) -> Result<StoredFile<'_>> {
        let extents = match inode.has_extents() {
            true => extents::from_tree(self, inode)?,
            false => extents::from_block_map(self, inode)?,
        };
        Ok(StoredFile {
            ext4: self,
            size: inode.size(),
            extents,
        })
    }

    fn entry(&self, path: &[u8], inode: &Inode) -> Result<Option<Entry>> {
        let kind = match inode.format() {
            inode::DIRECTORY => Kind::Directory,
            inode::REGULAR => Kind::File(Content {
                size: inode.size(),
                ..Content::default()
            }),
            inode::SYMLINK => Kind::Symlink(self.symlink(inode)?),
            inode::FIFO => Kind::Fifo,
            inode::CHARACTER => Kind::Character(inode.device().0, inode.device().1),
            inode::BLOCK => Kind::Block(inode.device().0, inode.device().1),
            inode::SOCKET => return Ok(None),
            other => return Err(corrupt(format!("inode {} is a {other:#x}", inode.number))),
        };
        let meta = Meta {
            mode: inode.permissions(),
            uid: inode.uid(),
            gid: inode.gid(),
            mtime: inode.mtime(),
            xattrs: xattr::read(self, inode)?,
        };
        let path = path.to_owned();
        Ok(Some(Entry { path, kind, meta }))
    }

    fn symlink(&self, inode: &Inode) -> Result<Vec<u8>> {
        match inode.is_fast_symlink() {
            true => Ok(inode.map()[..inode.size() as usize].to_vec()),
            false => self.read_whole(inode, crate::codec::MAX_PATH as u64),
        }
    }

    /// Lists one directory; subdirectories to be listed go to `waiting`.
    fn list(
        &self,
        (directory, number, within): (Vec<u8>, u32, Verdict),
        rules: &Rules,
        waiting: &mut Vec<(Vec<u8>, u32, Verdict)>,
        found: &mut Vec<(Found, Option<u32>)>,
    ) -> Result<()> {
        let names = directory::names(self, &self.inode(number)?)?;
        for (name, number) in names {
            let path = match directory.is_empty() {
                true => name,
                false => [&directory[..], b"/", &name].concat(),
            };
            check_path(&path).map_err(corrupt)?;
            let inode = self.inode(number)?;
            let is_directory = inode.format() == inode::DIRECTORY;
            let verdict = rules.judge(&path, is_directory, within);
            if verdict == Verdict::Keep {
                if let Some(entry) = self.entry(&path, &inode)? {
                    let several = !is_directory && inode.links() > 1;
                    let inode = u64::from(number);
                    found.push((Found { entry, inode }, several.then_some(number)));
                }
            }
            if is_directory && verdict != Verdict::Skip {
                waiting.push((path, number, verdict));
            }
        }
        Ok(())
    }
}

impl Tree for Ext4 {
    fn walk(&self, rules: &Rules) -> Result<Listing> {
        let mut found = Vec::new();
        let root = self.entry(b"", &self.inode(ROOT)?)?;
        let root = root.filter(Entry::is_directory);
        let entry = root.ok_or_else(|| corrupt("its root is no directory"))?;
        found.push((
            Found {
                entry,
                inode: u64::from(ROOT),
            },
            None,
        ));
        let mut waiting = vec![(Vec::new(), ROOT, Verdict::Keep)];
        let mut seen = HashSet::new();
        while let Some(next) = waiting.pop() {
            if !seen.insert(next.1) {
                return Err(corrupt("a directory has two names"));
            }
            self.list(next, rules, &mut waiting, &mut found)?;
        }
        Ok(Listing {
            found: finish(found),
            covered: Vec::new(),
        })
    }

    fn open(&self, found: &Found) -> Result<Box<dyn Contents + '_>> {
        let inode = self.inode(found.inode as u32)?;
        match inode.is_inline() {
            true => Ok(Box::new(InlineFile(self.inline_data(&inode)?))),
            false => Ok(Box::new(self.file(&inode)?)),
        }
    }
}

/// A regular file and where its blocks are.
struct StoredFile<'a> {
    ext4: &'a Ext4,
    size: u64,
    /// Sorted, without overlaps, without those that hold no data yet.
    extents: Vec<Extent>,
}

impl Contents for StoredFile<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let size = self.ext4.block_size();
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let left = (buffer.len() - done) as u64;
            let index = self
                .extents
                .partition_point(|extent| extent.end() * size <= at);
            let part = |len: u64| done..done + left.min(len) as usize;
            let range = match self.extents.get(index) {
                Some(extent) if extent.logical * size <= at => {
                    let skip = at - extent.logical * size;
                    let range = part(extent.end() * size - at);
                    self.ext4
                        .read_bytes(&mut buffer[range.clone()], extent.physical, skip)?;
                    range
                }
                next => {
                    let hole = next.map_or(u64::MAX, |next| next.logical * size - at);
                    let range = part(hole);
                    buffer[range.clone()].fill(0);
                    range
                }
            };
            done = range.end;
        }
        Ok(())
    }

    fn data_after(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let size = self.ext4.block_size();
        let index = self
            .extents
            .partition_point(|extent| extent.end() * size <= offset);
        let next = self.extents.get(index).map(|extent| {
            let start = (extent.logical * size).max(offset);
            start..(extent.end() * size).min(self.size)
        });
        Ok(next.filter(|range| range.start < range.end))
    }
}

/// A regular file in its inode.
struct InlineFile(Vec<u8>);

impl Contents for InlineFile {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = self.0.get(from..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn data_after(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < self.size()).then_some(offset..self.size()))
    }
}
