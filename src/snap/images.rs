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
