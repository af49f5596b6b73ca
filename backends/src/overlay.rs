//! Copy-on-write files above an image: made when they are missing, and examined before a hypervisor
//! uses them, which would make a mess of one that belongs to another image.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A hypervisor's format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    /// An empty file; or why there can be none, in words.
    pub(crate) empty: fn(&Below) -> std::result::Result<Empty, String>,
    /// How many bytes of the start `read` wants.
    pub(crate) header: usize,
    /// What a file says about the image below it; or what is wrong with it, in words.
    pub(crate) read: fn(&[u8]) -> std::result::Result<Below, String>,
}

/// What an empty file begins with, and how long it is (sparse).
pub(crate) type Empty = (Vec<u8>, u64);

/// What a header says about the image below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Below {
    /// Its path.
    pub(crate) path: PathBuf,
    /// When it was changed last, seconds, as far as they fit.
    pub(crate) mtime: u32,
    /// Its size, bytes.
    pub(crate) size: u64,
}

impl Below {
    fn of(path: &Path, metadata: &Metadata) -> Self {
        Below {
            path: path.to_owned(),
            mtime: metadata.mtime() as u32,
            size: metadata.len(),
        }
    }
}

impl Format {
    /// Opens the copy-on-write file at `path` for the image at `image`, making it when it is missing.
    ///
    /// # Errors
    /// It cannot be opened or made, is no such file, belongs to another image, or the image has
    /// changed since.
    pub(crate) fn open(&self, path: &Path, image: &Path) -> Result<File> {
        let image = std::fs::canonicalize(image).map_err(Error::file("open image", image))?;
        let metadata = std::fs::metadata(&image).map_err(Error::file("open image", &image))?;
        refuse_special(path)?;
        if !path.exists() {
            self.create(path, &Below::of(&image, &metadata))?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::file("open overlay file", path))?;
        self.check(&file, path, &image, &metadata)?;
        Ok(file)
    }

    /// One without a name for the image at `image`: what is written vanishes with it.
    ///
    /// # Errors
    /// There is no room in the directory for temporary files.
    pub(crate) fn vanishing(&self, image: &Path) -> Result<File> {
        let directory = std::env::temp_dir();
        let failed = "make a file for what the guest writes in";
        let file = tempfile::tempfile_in(&directory).map_err(Error::file(failed, directory))?;
        self.lay(&file, image)?;
        Ok(file)
    }

    /// Makes `file`, a new one, an empty one for the image at `image`.
    ///
    /// # Errors
    /// There is no room.
    pub(crate) fn lay(&self, file: &File, image: &Path) -> Result<()> {
        let image = std::fs::canonicalize(image).map_err(Error::file("open image", image))?;
        let metadata = std::fs::metadata(&image).map_err(Error::file("open image", &image))?;
        let (start, len) =
            (self.empty)(&Below::of(&image, &metadata)).map_err(|reason| refuse(&image, reason))?;
        file.write_all_at(&start, 0)
            .and_then(|()| file.set_len(len))
            .map_err(Error::system("make a file for what the guest writes"))
    }

    /// Checks what [`Format::open`] would, without making or opening anything for writing.
    ///
    /// # Errors
    /// As [`Format::open`].
    pub(crate) fn examine(&self, path: &Path, image: &Path) -> Result<()> {
        refuse_special(path)?;
        if !path.exists() {
            return Ok(());
        }
        let image = std::fs::canonicalize(image).map_err(Error::file("open image", image))?;
        let metadata = std::fs::metadata(&image).map_err(Error::file("open image", &image))?;
        let file = File::open(path).map_err(Error::file("open overlay file", path))?;
        self.check(&file, path, &image, &metadata)
    }

    /// Makes an empty one under a temporary name: a half-written header is never seen.
    fn create(&self, path: &Path, below: &Below) -> Result<()> {
        let failed = |error| Error::file("make overlay file", path)(error);
        let (start, len) = (self.empty)(below).map_err(|reason| refuse(path, reason))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".apppot-overlay-")
            .tempfile_in(directory)
            .map_err(failed)?;
        file.as_file()
            .write_all_at(&start, 0)
            .and_then(|()| file.as_file().set_len(len))
            .map_err(failed)?;
        file.persist_noclobber(path)
            .map(drop)
            .map_err(|error| failed(error.error))
    }

    fn check(&self, file: &File, path: &Path, image: &Path, metadata: &Metadata) -> Result<()> {
        let mut start = vec![0; self.header];
        let len = file
            .read_at(&mut start, 0)
            .map_err(Error::file("read overlay file", path))?;
        let below = (self.read)(&start[..len]).map_err(|reason| refuse(path, reason))?;
        let same = std::fs::metadata(&below.path)
            .is_ok_and(|other| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino()));
        if !same {
            let (made_for, image) = (below.path.display(), image.display());
            let reason = format!("it was made for '{made_for}', not for '{image}'");
            return Err(refuse(path, reason));
        }
        let now = Below::of(image, metadata);
        if (below.mtime, below.size) != (now.mtime, now.size) {
            let reason = String::from("the image has changed since it was made");
            return Err(refuse(path, reason));
        }
        Ok(())
    }
}

fn refuse(path: &Path, reason: String) -> Error {
    Error::Overlay {
        path: path.to_owned(),
        reason,
    }
}

/// Opening a FIFO would wait for its other end.
fn refuse_special(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(refuse(path, String::from("it is no file"))),
        _ => Ok(()),
    }
}

/// The big-endian number of `len` bytes at `at`.
pub(crate) fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    let sum = |sum, &byte: &u8| sum << 8 | u64::from(byte);
    Some(bytes.iter().fold(0, sum))
}
