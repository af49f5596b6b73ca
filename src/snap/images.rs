//! Appliances as trees, and copies of images.

use std::fs::File;
use std::io::{self, IsTerminal, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_backends::flock::{self, Use};
use apppot_backends::image::{Image, ImageKind};
use apppot_backends::stamp::Stamp;
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{self, Blocks, Directory, Ext4, Listing, Overlay, Tree};
use nix::errno::Errno;
use nix::unistd::{lseek, Whence};

use super::Examined;
use crate::cli::General;
use crate::failure::hinted;

/// Whether the file is an appliance.
pub(super) fn is_image(path: &Path) -> bool {
    Image::open(path).is_ok()
}

/// An appliance as a tree, with the files that it is read from.
pub(crate) struct Appliance {
    pub(crate) tree: Box<dyn Tree>,
    sources: Vec<Source>,
}

/// An image or overlay: locked against the machines that would write into it.
struct Source {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let failed = || format!("cannot open '{}'", path.display());
        let file = File::open(path).with_context(failed)?;
        flock::take(&file, path, Use::Reading)?;
        Ok(Source {
            path: path.to_owned(),
            stamp: Stamp::of(&file).with_context(failed)?,
            file,
        })
    }
}

impl Appliance {
    /// Opens an appliance, with the overlay file above it.
    pub(crate) fn open(path: &Path, overlay: Option<&Path>) -> Result<Self> {
        let image = Image::open(path)?;
        if image.kind == ImageKind::Directory {
            if overlay.is_some() {
                return Err(hinted(
                    format!("'{}' is a directory", path.display()),
                    "overlay files are for images",
                ));
            }
            return Ok(Appliance {
                tree: Box::new(Directory::open(&image.path, false)?),
                sources: Vec::new(),
            });
        }
        if !is_quick(&image) {
            return Err(hinted(
                format!(
                    "it holds {}, which is read in a guest only",
                    image.filesystem.unwrap_or("no filesystem")
                ),
                "use apppot-snap in the appliance: apppot run --image IMAGE --root -- apppot-snap base",
            ));
        }
        let paths = std::iter::once(path).chain(overlay);
        let sources: Vec<Source> = paths.map(Source::open).collect::<Result<_>>()?;
        let blocks: Box<dyn Blocks> = match overlay {
            Some(overlay) => Box::new(Overlay::open(overlay, &image.path)?),
            None => Box::new(File::open(&image.path)?),
        };
        Ok(Appliance {
            tree: Box::new(Ext4::open(blocks, image.start)?),
            sources,
        })
    }

    /// Records it.
    pub(super) fn record(&self, path: &Path, rules: &Rules, general: &General) -> Result<Listing> {
        let shows = io::stderr().is_terminal() && !general.quiet && !general.json;
        let progress = |done: usize, of: usize| {
            if shows && done % 4096 == 0 {
                eprint!("\r{}: {done} of {of} files", path.display());
            }
        };
        let listing = tree::record(self.tree.as_ref(), rules, &progress);
        if shows {
            eprint!("\r\x1b[K");
        }
        // What was written meanwhile explains an error, too.
        self.unchanged()?;
        Ok(listing?)
    }

    /// Fails when what it was read from has changed since it was opened.
    pub(super) fn unchanged(&self) -> Result<()> {
        for source in &self.sources {
            source.stamp.check(&source.file, &source.path)?;
        }
        Ok(())
    }
}

/// Whether the image can be read without a guest.
pub(super) fn is_quick(image: &Image) -> bool {
    image.filesystem == Some("ext4")
}

/// Copies an image: at once where the filesystem shares blocks, else without its holes.
pub(super) fn copy(image: &Image, to: &File) -> Result<()> {
    let failed = || format!("cannot copy '{}'", image.path.display());
    let source = Source::open(&image.path)?;
    image.check(&source.file)?;
    let again = source.file.try_clone().with_context(failed)?;
    copy_blocks(again, to).with_context(failed)?;
    Ok(source.stamp.check(&source.file, &source.path)?)
}

/// Lengthens the copy of a partition image by what its filesystem lacks for archives; the guest then lets the
/// filesystem grow. Nothing is written: the new part is a hole.
pub(super) fn lengthen(image: &Image, copy: &File, archives: &[Examined]) -> io::Result<()> {
    if image.kind != ImageKind::Partition || !is_quick(image) {
        return Ok(());
    }
    let mut superblock = [0; 1024];
    copy.read_exact_at(&mut superblock, 1024)?;
    let stored = |archive: &Examined| archive.stored;
    let stored = archives.iter().map(stored).fold(0, u64::saturating_add);
    let records: usize = archives.iter().map(|archive| archive.records).sum();
    match lacking(&superblock, stored, records as u64) {
        0 => Ok(()),
        lacking => copy.set_len(copy.metadata()?.len().saturating_add(lacking)),
    }
}

/// Bytes that an ext4 filesystem lacks to take so many bytes in so many files: whole MiB.
fn lacking(superblock: &[u8; 1024], bytes: u64, files: u64) -> u64 {
    const UNIT: u64 = 1 << 20;
    let number = |at: usize| {
        let bytes = [0, 1, 2, 3].map(|index| superblock[at + index]);
        u64::from(u32::from_le_bytes(bytes))
    };
    // Positions as of struct ext4_super_block: the high halves count with the feature 64bit.
    let high = |at| match number(0x60) & 0x80 {
        0 => 0,
        _ => number(at) << 32,
    };
    let block = 1024 << number(0x18).min(6);
    let (all, free) = (number(0x4) + high(0x150), number(0xc) + high(0x158));
    let (inodes, free_inodes) = (number(0x0), number(0x10));
    // Each file may have a part of a block to itself, and directories have blocks.
    let needed = bytes.saturating_add(files.saturating_mul(2 * block));
    let room = needed.saturating_sub(free.saturating_mul(block));
    let per_inode = all.saturating_mul(block) / inodes.max(1);
    let tables = files.saturating_sub(free_inodes).saturating_mul(per_inode);
    match room.max(tables) {
        0 => 0,
        // The new part has tables of its own, and may not end in the middle of a group.
        more => (more.saturating_add(more / 8) / UNIT + 65).saturating_mul(UNIT),
    }
}

/// Copies the bytes of an image, or lets both files share them.
pub(crate) fn copy_blocks(mut source: File, target: &File) -> io::Result<()> {
    // SAFETY: the request takes a descriptor; both are open.
    if unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) } == 0 {
        return Ok(());
    }
    let len = source.seek(SeekFrom::End(0))?;
    target.set_len(len)?;
    let mut block = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < len {
        offset = match lseek(&source, offset as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            // Nothing but a hole follows.
            Err(Errno::ENXIO) => return Ok(()),
            Err(_) => offset,
        };
        let part = (len - offset).min(block.len() as u64) as usize;
        source.read_exact_at(&mut block[..part], offset)?;
        target.write_all_at(&block[..part], offset)?;
        offset += part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_lacks_what_is_not_free_in_it() {
        // 100 blocks of 4 KiB are free, and ten inodes of 1000, of 10,000 blocks.
        let mut superblock = [0; 1024];
        for (at, number) in [
            (0x0, 1000u32),
            (0x4, 10_000),
            (0xc, 100),
            (0x10, 10),
            (0x18, 2),
        ] {
            superblock[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let lacking = |bytes, files| lacking(&superblock, bytes, files);
        assert_eq!(lacking(0, 0), 0);
        assert_eq!(lacking(300_000, 10), 0);
        assert!(lacking(10 << 20, 10) > 10 << 20);
        assert!(lacking(10 << 20, 10) < 90 << 20);
        assert!(lacking(0, 1010) > 40 << 20);
        assert!(lacking(u64::MAX, u64::MAX) > 1 << 60);
        superblock[0x60] = 0x80;
        superblock[0x158] = 1;
        assert_eq!(super::lacking(&superblock, 1 << 40, 10), 0);
    }
}
