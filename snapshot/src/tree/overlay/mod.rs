//! The view through a copy-on-write file: what a guest has written comes from it, all else from the
//! image below. Two formats, those that `apppot run --overlay` makes: User-Mode Linux's and QEMU's.

mod cow;
mod qcow2;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Blocks;
use crate::{Error, Result};

/// Larger images than this (256 GiB) are not read: the tables of what was written are kept in memory.
const MAX_IMAGE: u64 = 256 << 30;

/// An image as seen through a copy-on-write file.
pub struct Overlay {
    overlay: Box<dyn Blocks>,
    image: Box<dyn Blocks>,
    map: Box<dyn Map>,
    /// Of the image, bytes; what the guest sees may be rounded up.
    image_len: u64,
}

/// A format's tables: where bytes of the disk are.
trait Map: Send + Sync {
    /// Where the bytes from `offset` on are, and how many of them (at least one).
    ///
    /// # Errors
    /// The disk ends before, or the tables are damaged there.
    fn find(&self, offset: u64) -> io::Result<(Place, u64)>;
}

/// Where bytes of the disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the image, at the same offset.
    Image,
    /// In the copy-on-write file, at this offset.
    Overlay(u64),
    /// They are zeros.
    Zeros,
}

/// What a header says about the image below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Below {
    /// Bytes.
    size: u64,
    /// When it was changed last, seconds; as many bits as headers have.
    mtime: u32,
}

impl Overlay {
    /// Opens the copy-on-write file at `path`, which is above the image at `image`.
    ///
    /// # Errors
    /// A file cannot be read, is no copy-on-write file of a known kind, or was made for another image
    /// or another state of it.
    pub fn open(path: &Path, image: &Path) -> Result<Self> {
        let overlay = File::open(path).map_err(Error::file("open overlay file", path))?;
        let len = overlay.metadata();
        let len = len
            .map_err(Error::file("examine overlay file", path))?
            .len();
        let base = File::open(image).map_err(Error::file("open image", image))?;
        let metadata = base
            .metadata()
            .map_err(Error::file("examine image", image))?;
        let now = Below {
            size: metadata.len(),
            mtime: metadata.mtime() as u32,
        };
        Self::assemble((Box::new(overlay), len), Box::new(base), |below| {
            below == now
        })
    }

    /// An image of `len` bytes through a copy-on-write file; of either, the number are the bytes.
    ///
    /// # Errors
    /// It is no copy-on-write file of a known kind, or for an image of another size.
    pub fn above(overlay: (Box<dyn Blocks>, u64), image: (Box<dyn Blocks>, u64)) -> Result<Self> {
        Self::assemble(overlay, image.0, |below| below.size == image.1)
    }

    fn assemble(
        (overlay, len): (Box<dyn Blocks>, u64),
        image: Box<dyn Blocks>,
        is_below: impl Fn(Below) -> bool,
    ) -> Result<Self> {
        let mut magic = [0; 4];
        overlay
            .read_at(&mut magic, 0)
            .map_err(|_| Error::Overlay("it has no header"))?;
        let (map, below): (Box<dyn Map>, Below) = match &magic {
            cow::MAGIC => cow::read(overlay.as_ref(), &is_below)?,
            qcow2::MAGIC => qcow2::read(overlay.as_ref(), len, &is_below)?,
            _ => {
                return Err(Error::Overlay(
                    "it is no copy-on-write file of User-Mode Linux or QEMU",
                ))
            }
        };
        Ok(Overlay {
            overlay,
            image,
            map,
            image_len: below.size,
        })
    }
}

/// Fails for an image that is not the one below, or too large.
fn check(below: Below, is_below: &dyn Fn(Below) -> bool) -> Result<()> {
    if !is_below(below) {
        return Err(Error::Overlay(
            "the image below is another one, or has changed since",
        ));
    }
    match below.size > MAX_IMAGE {
        true => Err(Error::Overlay("its image is too large")),
        false => Ok(()),
    }
}

impl Blocks for Overlay {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let far = || io::Error::from(io::ErrorKind::UnexpectedEof);
            let at = offset.checked_add(done as u64).ok_or_else(far)?;
            let (place, len) = self.map.find(at)?;
            let left = (buffer.len() - done) as u64;
            // What follows an image of odd size, up to a whole sector, are zeros.
            let (place, len) = match place {
                Place::Image if at >= self.image_len => (Place::Zeros, len),
                Place::Image => (place, len.min(self.image_len - at)),
                _ => (place, len),
            };
            let part = &mut buffer[done..done + len.min(left) as usize];
            match place {
                Place::Image => self.image.read_at(part, at)?,
                Place::Overlay(at) => self.overlay.read_at(part, at)?,
                Place::Zeros => part.fill(0),
            }
            done += part.len();
        }
        Ok(())
    }
}
