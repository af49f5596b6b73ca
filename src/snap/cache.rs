//! Fingerprints of base images, remembered: making one reads every inode, which for a large image is
//! longer than a boot.
//!
//! A file's name in `$XDG_CACHE_HOME/apppot/fingerprints` is everything that changes when the image
//! does; its content is the fingerprint. What cannot be read or written is no error.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use apppot_snapshot::entry::Hash;
use apppot_snapshot::hex;

/// The remembered fingerprint of the image at `path`, or the one that `make` gives.
pub(super) fn fingerprint<E>(
    path: &Path,
    make: impl FnOnce() -> Result<Hash, E>,
) -> Result<String, E> {
    let place = std::fs::metadata(path).ok().and_then(|image| place(&image));
    if let Some(known) = place
        .as_ref()
        .and_then(|place| std::fs::read_to_string(place).ok())
    {
        if known.len() == 64 {
            return Ok(known);
        }
    }
    let made = hex(&make()?);
    if let Some(place) = place {
        remember(&place, &made);
    }
    Ok(made)
}

fn remember(place: &Path, fingerprint: &str) {
    let Some(directory) = place.parent() else {
        return;
    };
    // A half-written file has another length and is not believed.
    let _ = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(place, fingerprint));
}

/// No write leaves the time of the last change of the inode as it was.
fn place(image: &Metadata) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let (version, size) = (env!("CARGO_PKG_VERSION"), image.size());
    let (device, inode) = (image.dev(), image.ino());
    let (seconds, nanoseconds) = (image.ctime(), image.ctime_nsec());
    let name = format!("{version}-{device:x}-{inode:x}-{size:x}-{seconds}.{nanoseconds:09}");
    Some(cache.join("apppot/fingerprints").join(name))
}
