//! Everything that leads to the contents: directories, inodes, bitmaps, descriptors, the superblock.

use std::time::{SystemTime, UNIX_EPOCH};

use apppot_snapshot::entry::Meta;

use super::attributes::{self, Stored};
use super::directory::{kind, Directory};
use super::disk::Disk;
use super::extents::{self, Extent};
use super::geometry::{has_copy, Geometry, BLOCK, DESCRIPTOR_BLOCKS, GROUP, INODE_SIZE};
use super::inode::{self, Inode};
use super::superblock::{
    Descriptor, Superblock, DESCRIPTOR, FIRST_INODE, JOURNAL_INODE, OFFSET, RESIZE_INODE,
    ROOT_INODE,
};
use super::{journal, resize};
use crate::tree::{Children, Kind, NodeId, Tree, ROOT};
use crate::{Error, Result};

/// Directory that e2fsck needs.
pub(crate) const LOST_AND_FOUND: &[u8] = b"lost+found";
/// From this number of subdirectories on, a directory counts one link (feature dir_nlink).
const MANY: usize = 64998;

/// A filesystem that is complete.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Size, bytes.
    pub(crate) size: u64,
    /// Bytes of it that are in use.
    pub(crate) used: u64,
    pub(crate) uuid: [u8; 16],
}

/// Completes the filesystem. The tree has a directory [`LOST_AND_FOUND`].
pub(crate) fn finish(disk: Disk, tree: &Tree, size: Option<u64>, label: &str) -> Result<Finished> {
    let numbers = Numbers::new(tree);
    let mut writer = Writer {
        disk,
        tree,
        table: vec![0; numbers.last as usize * INODE_SIZE],
        directories: Vec::new(),
        identity: blake3::Hasher::new(),
        newest: 0,
    };
    for (id, number) in numbers.all() {
        writer.file(id, number, &numbers)?;
    }
    writer.system(size, label)
}

/// The inode of every file.
struct Numbers {
    of: Vec<u32>,
    last: u32,
}

impl Numbers {
    /// Numbers files in the order of their names, directory by directory.
    fn new(tree: &Tree) -> Self {
        let mut of: Vec<u32> = Vec::new();
        let mut last = FIRST_INODE;
        let mut give = |of: &mut Vec<u32>, id: NodeId, number: Option<u32>| {
            if of.len() <= id {
                of.resize(id + 1, 0);
            }
            if of[id] == 0 {
                of[id] = number.unwrap_or_else(|| {
                    last += 1;
                    last
                });
            }
        };
        give(&mut of, ROOT, Some(ROOT_INODE));
        let mut waiting = vec![ROOT];
        while let Some(id) = waiting.pop() {
            let Kind::Directory { children, .. } = &tree.node(id).kind else {
                continue;
            };
            for (name, child) in children {
                let is_lost = id == ROOT && **name == *LOST_AND_FOUND;
                give(&mut of, child.id, is_lost.then_some(FIRST_INODE));
            }
            waiting.extend(children.values().rev().map(|child| child.id));
        }
        Numbers { of, last }
    }

    fn all(&self) -> impl Iterator<Item = (NodeId, u32)> + '_ {
        let numbered = self.of.iter().copied().enumerate();
        numbered.filter(|(_, number)| *number != 0)
    }
}

struct Writer<'a> {
    disk: Disk,
    tree: &'a Tree,
    /// All inodes, one after the other.
    table: Vec<u8>,
    /// Inodes that are directories.
    directories: Vec<u32>,
    /// What the filesystem's UUID follows from.
    identity: blake3::Hasher,
    /// The latest modification of a file.
    newest: i64,
}

impl Writer<'_> {
    fn store(&mut self, number: u32, inode: &Inode) {
        let at = (number as usize - 1) * INODE_SIZE;
        self.table[at..at + INODE_SIZE].copy_from_slice(&inode.encode());
    }

    /// Writes what leads to one file, and its inode.
    fn file(&mut self, id: NodeId, number: u32, numbers: &Numbers) -> Result<()> {
        let node = self.tree.node(id);
        self.newest = self.newest.max(node.meta.mtime.seconds);
        let mut inode = match &node.kind {
            Kind::Directory {
                parent, children, ..
            } => {
                self.directories.push(number);
                self.directory(number, numbers.of[*parent], children, numbers, &node.meta)?
            }
            Kind::File { size, extents } => {
                let mut inode = Inode::new(inode::REGULAR, node.meta.clone());
                inode.size = *size;
                self.contents(&mut inode, extents)?;
                inode
            }
            Kind::Symlink(target) => self.symlink(target, &node.meta)?,
            Kind::Fifo => Inode::new(inode::FIFO, node.meta.clone()),
            Kind::Character(major, minor) => device(inode::CHARACTER, *major, *minor, &node.meta),
            Kind::Block(major, minor) => device(inode::BLOCK_DEVICE, *major, *minor, &node.meta),
        };
        if !matches!(node.kind, Kind::Directory { .. }) {
            inode.links = node.links as u16;
        }
        match attributes::store(&node.meta.xattrs) {
            Some(Stored::Inode(bytes)) => inode.attributes = bytes,
            Some(Stored::Block(block)) => {
                inode.attribute_block = self.disk.write_block(&block)?;
                inode.blocks += 1;
            }
            None => {
                let why =
                    "a file's extended attributes are unknown to ext4 or longer than 4 KiB in all";
                return Err(Error::Limit(why.to_owned()));
            }
        }
        self.store(number, &inode);
        Ok(())
    }

    /// Lets `inode` lead to `extents`.
    fn contents(&mut self, inode: &mut Inode, extents: &[Extent]) -> Result<()> {
        let (map, tree) = extents::write(&mut self.disk, extents)?;
        inode.map = map;
        inode.has_extents = true;
        let blocks: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
        inode.blocks += blocks + u64::from(tree);
        Ok(())
    }

    /// Writes whole blocks, and lets `inode` lead to them.
    fn blocks(&mut self, inode: &mut Inode, bytes: &[u8]) -> Result<()> {
        let extents = self.disk.blocks((bytes.len() as u64 / BLOCK) as u32)?;
        for extent in &extents {
            let first = extent.logical as usize * BLOCK as usize;
            let len = extent.len as usize * BLOCK as usize;
            self.disk
                .write_at(extent.physical, 0, &bytes[first..first + len])?;
        }
        self.contents(inode, &extents)
    }

    fn directory(
        &mut self,
        number: u32,
        parent: u32,
        children: &Children,
        numbers: &Numbers,
        meta: &Meta,
    ) -> Result<Inode> {
        let mut directory = Directory::default();
        directory.add(b".", number, kind::DIRECTORY);
        directory.add(b"..", parent, kind::DIRECTORY);
        let mut subdirectories = 0;
        for (name, child) in children {
            let is = match &self.tree.node(child.id).kind {
                Kind::Directory { .. } => kind::DIRECTORY,
                Kind::File { .. } => kind::REGULAR,
                Kind::Symlink(_) => kind::SYMLINK,
                Kind::Fifo => kind::FIFO,
                Kind::Character(..) => kind::CHARACTER,
                Kind::Block(..) => kind::BLOCK,
            };
            subdirectories += usize::from(is == kind::DIRECTORY);
            directory.add(name, numbers.of[child.id], is);
        }
        let bytes = directory.finish();
        self.identity.update(&bytes);
        let mut inode = Inode::new(inode::DIRECTORY, meta.clone());
        inode.size = bytes.len() as u64;
        inode.links = match subdirectories {
            MANY.. => 1,
            count => count as u16 + 2,
        };
        self.blocks(&mut inode, &bytes)?;
        Ok(inode)
    }

    fn symlink(&mut self, target: &[u8], meta: &Meta) -> Result<Inode> {
        let mut inode = Inode::new(inode::SYMLINK, meta.clone());
        inode.size = target.len() as u64;
        if target.len() < inode.map.len() {
            inode.map[..target.len()].copy_from_slice(target);
            return Ok(inode);
        }
        let mut block = target.to_owned();
        block.resize(BLOCK as usize, 0);
        self.blocks(&mut inode, &block)?;
        Ok(inode)
    }

    /// Writes what belongs to the filesystem as a whole.
    fn system(mut self, size: Option<u64>, label: &str) -> Result<Finished> {
        self.identity.update(&self.table);
        let uuid = uuid(&self.identity.finalize());
        let geometry = self.geometry(size)?;
        let descriptor_blocks =
            (geometry.groups as usize * DESCRIPTOR).div_ceil(BLOCK as usize) as u32;
        let (map, journal_size) = self.journal(&geometry, &uuid)?;
        let inode = resize::write(&mut self.disk, &geometry, descriptor_blocks)?;
        self.store(RESIZE_INODE, &inode);
        let mut groups = self.place(&geometry)?;
        if self.disk.next() > geometry.blocks {
            return Err(self.disk.too_small(self.disk.next()));
        }
        let free_blocks = self.write_bitmaps(&geometry, &mut groups)?;
        self.write_table(&geometry, &groups)?;
        let superblock = Superblock {
            geometry,
            free_blocks,
            free_inodes: groups.iter().map(|group| group.free_inodes).sum(),
            uuid,
            label: label.to_owned(),
            made: self.made(),
            journal: (map, journal_size),
        };
        self.write_copies(&superblock, &groups, descriptor_blocks)?;
        self.disk.set_blocks(geometry.blocks)?;
        self.disk.sync()?;
        Ok(Finished {
            size: u64::from(geometry.blocks) * BLOCK,
            used: u64::from(geometry.blocks - free_blocks) * BLOCK,
            uuid,
        })
    }

    /// The size that was asked for, or a quarter and 128 MiB more than what is there.
    fn geometry(&self, size: Option<u64>) -> Result<Geometry> {
        let inodes = (self.table.len() / INODE_SIZE) as u32;
        let used = self.disk.next();
        if let Some(size) = size {
            let blocks = (size / BLOCK).min(u32::MAX.into()) as u32;
            let geometry = Geometry::new(blocks, inodes).filter(|found| found.blocks > used);
            return geometry.ok_or_else(|| self.disk.too_small(used.max(inodes)));
        }
        let mut blocks = (used + used / 4 + 32768).next_multiple_of(256);
        loop {
            match Geometry::new(blocks, inodes) {
                Some(geometry) => return Ok(geometry),
                None => blocks += GROUP,
            }
        }
    }

    fn journal(&mut self, geometry: &Geometry, uuid: &[u8; 16]) -> Result<([u8; 60], u64)> {
        let blocks = geometry.journal();
        let extents = self.disk.blocks(blocks)?;
        let head = journal::superblock(blocks, uuid);
        self.disk.write_at(extents[0].physical, 0, &head)?;
        let meta = Meta {
            mode: 0o600,
            ..Meta::default()
        };
        let mut inode = Inode::new(inode::REGULAR, meta);
        inode.size = u64::from(blocks) * BLOCK;
        self.contents(&mut inode, &extents)?;
        self.store(JOURNAL_INODE, &inode);
        Ok((inode.map, inode.size))
    }

    /// Places for bitmaps and inode tables.
    fn place(&mut self, geometry: &Geometry) -> Result<Vec<Descriptor>> {
        let mut groups = vec![Descriptor::default(); geometry.groups as usize];
        for group in &mut groups {
            group.block_bitmap = self.disk.together(1)?;
        }
        for group in &mut groups {
            group.inode_bitmap = self.disk.together(1)?;
        }
        for group in &mut groups {
            group.inode_table = self.disk.together(geometry.table())?;
        }
        for number in &self.directories {
            groups[((number - 1) / geometry.inodes_per_group) as usize].directories += 1;
        }
        Ok(groups)
    }

    /// Writes bitmaps and counts what is free; nothing is given out any more. Returns the free blocks.
    fn write_bitmaps(&self, geometry: &Geometry, groups: &mut [Descriptor]) -> Result<u32> {
        let mut used = Bits::new(geometry.groups);
        used.set(0, self.disk.next(), true);
        for (first, count) in self.disk.freed() {
            used.set(*first, *count, false);
        }
        let inodes = (self.table.len() / INODE_SIZE) as u32;
        let mut free_blocks = 0;
        for (group, descriptor) in (0..).zip(groups) {
            let (first, blocks) = (group * GROUP, geometry.blocks_in(group));
            if has_copy(group) {
                used.set(first, DESCRIPTOR_BLOCKS + 1, true);
            }
            // Bits that stand for nothing are set.
            used.set(first + blocks, GROUP - blocks, true);
            descriptor.free_blocks = used.count_clear(group);
            free_blocks += descriptor.free_blocks;
            self.disk
                .write_at(descriptor.block_bitmap, 0, used.group(group))?;
            let per_group = geometry.inodes_per_group;
            let taken = inodes.saturating_sub(group * per_group).min(per_group);
            let mut bitmap = Bits::new(1);
            bitmap.set(0, taken, true);
            bitmap.set(per_group, GROUP - per_group, true);
            descriptor.free_inodes = per_group - taken;
            self.disk
                .write_at(descriptor.inode_bitmap, 0, bitmap.group(0))?;
        }
        Ok(free_blocks)
    }

    fn write_table(&self, geometry: &Geometry, groups: &[Descriptor]) -> Result<()> {
        let per_group = geometry.inodes_per_group as usize * INODE_SIZE;
        for (inodes, group) in self.table.chunks(per_group).zip(groups) {
            self.disk.write_at(group.inode_table, 0, inodes)?;
        }
        Ok(())
    }

    fn write_copies(
        &self,
        superblock: &Superblock,
        groups: &[Descriptor],
        descriptor_blocks: u32,
    ) -> Result<()> {
        let descriptors: Vec<u8> = groups.iter().flat_map(Descriptor::encode).collect();
        for group in (0..superblock.geometry.groups).filter(|group| has_copy(*group)) {
            let block = group * GROUP;
            let within = if group == 0 { OFFSET } else { 0 };
            let bytes = superblock.encode(group, descriptor_blocks);
            self.disk.write_at(block, within, &bytes)?;
            self.disk.write_at(block + 1, 0, &descriptors)?;
        }
        Ok(())
    }

    /// The same files give the same filesystem, so its time is theirs; but never one that is to come.
    fn made(&self) -> u32 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs() as i64);
        self.newest.clamp(0, now).min(u32::MAX.into()) as u32
    }
}

fn device(format: u16, major: u32, minor: u32, meta: &Meta) -> Inode {
    let mut inode = Inode::new(format, meta.clone());
    inode.map = inode::device(major, minor);
    inode
}

/// A UUID of version 8: its bits are ours to choose.
fn uuid(hash: &blake3::Hash) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash.as_bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Bitmaps of groups, one block each.
struct Bits(Vec<u8>);

impl Bits {
    fn new(groups: u32) -> Self {
        Bits(vec![0; groups as usize * BLOCK as usize])
    }

    fn set(&mut self, first: u32, count: u32, value: bool) {
        for bit in first..first + count {
            let (byte, mask) = (bit as usize / 8, 1 << (bit % 8));
            match value {
                true => self.0[byte] |= mask,
                false => self.0[byte] &= !mask,
            }
        }
    }

    fn group(&self, group: u32) -> &[u8] {
        &self.0[group as usize * BLOCK as usize..][..BLOCK as usize]
    }

    fn count_clear(&self, group: u32) -> u32 {
        self.group(group)
            .iter()
            .map(|byte| byte.count_zeros())
            .sum()
    }
}
