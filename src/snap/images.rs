//! Appliances as trees, and copies of images.

use std::fs::File;
use std::io::{self, IsTerminal, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_backends::image::{Image, ImageKind};
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{self, Blocks, Cow, Directory, Ext4, Listing, Tree};
use nix::errno::Errno;
use nix::unistd::{lseek, Whence};

use crate::cli::General;
use crate::failure::hinted;

/// Whether the file is an appliance.
pub(super) fn is_image(path: &Path) -> bool {
    Image::open(path).is_ok()
}

/// Records an appliance.
pub(super) fn record(
    path: &Path,
    overlay: Option<&Path>,
    rules: &Rules,
    general: &General,
) -> Result<(Box<dyn Tree>, Listing)> {
    let shown = || format!("cannot read appliance '{}'", path.display());
    let tree = open(path, overlay).with_context(shown)?;
    let shows = io::stderr().is_terminal() && !general.quiet && !general.json;
    let progress = |done: usize, of: usize| {
        if shows && done % 4096 == 0 {
            eprint!("\r{}: {done} of {of} files", path.display());
        }
    };
    let listing = tree::record(tree.as_ref(), rules, &progress).with_context(shown);
    if shows {
        eprint!("\r\x1b[K");
    }
    Ok((tree, listing?))
}

/// The appliance as a tree.
pub(super) fn open(path: &Path, overlay: Option<&Path>) -> Result<Box<dyn Tree>> {
    let image = Image::open(path)?;
    if image.kind == ImageKind::Directory {
        return Ok(Box::new(Directory::open(&image.path, false)?));
    }
    if image.filesystem != Some("ext4") {
        return Err(hinted(
            format!(
                "it holds {}, which is read in a guest only",
                image.filesystem.unwrap_or("no filesystem")
            ),
            "use apppot-snap in the appliance: apppot run --image IMAGE --root -- apppot-snap base",
        ));
    }
    let blocks: Box<dyn Blocks> = match overlay {
        Some(overlay) => Box::new(Cow::open(overlay, Some(&image.path))?),
        None => Box::new(File::open(&image.path)?),
    };
    Ok(Box::new(Ext4::open(blocks, image.start)?))
}

/// Whether the image can be read without a guest.
pub(super) fn is_quick(image: &Image) -> bool {
    image.filesystem == Some("ext4")
}

/// A file on its way to its name, gone when that is not reached.
pub(super) struct Unfinished {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Unfinished {
    pub(super) fn beside(path: &Path) -> Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".apppot-new-{}", std::process::id()));
        let new = PathBuf::from(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&new);
        let file = file.with_context(|| format!("cannot write '{}'", path.display()))?;
        Ok(Unfinished {
            file,
            path: new,
            kept: false,
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn keep(mut self, path: &Path) -> Result<()> {
        std::fs::rename(&self.path, path)
            .with_context(|| format!("cannot write '{}'", path.display()))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Copies an image: at once where the filesystem shares blocks, else without its holes.
pub(super) fn copy(from: &Path, to: &Path) -> Result<Unfinished> {
    let new = Unfinished::beside(to)?;
    let source = File::open(from).with_context(|| format!("cannot open '{}'", from.display()))?;
    copy_blocks(source, new.file())
        .with_context(|| format!("cannot copy '{}' to '{}'", from.display(), to.display()))?;
    Ok(new)
}

fn copy_blocks(mut source: File, target: &File) -> io::Result<()> {
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
