//! Fingerprints of base images, remembered: making one reads every inode, which for a large image is
//! longer than a boot.
//!
//! A file's name in `$XDG_CACHE_HOME/apppot/fingerprints` is everything that changes when the image
//! does; its content is the fingerprint. What cannot be read or written is no error.

use std::path::{Path, PathBuf};
use std::time::Duration;

use apppot_backends::stamp::Stamp;
use apppot_snapshot::entry::Hash;
use apppot_snapshot::hex;

use crate::trust;

/// The remembered fingerprint of the image at `path`, or the one that `make` gives.
pub(super) fn fingerprint<E>(
    path: &Path,
    make: impl FnOnce() -> Result<Hash, E>,
) -> Result<String, E> {
    let image = match trust::has_true_stamp(path) {
        true => std::fs::metadata(path).ok(),
        false => None,
    };
    let place = image.and_then(|image| place(&Stamp::from(&image)));
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

fn place(image: &Stamp) -> Option<PathBuf> {
    // A change within a tick of the clock would not show.
    let settled = image.age() > Duration::from_secs(2);
    let directory = crate::caller::cache_directory().filter(|_| settled)?;
    let name = format!("{}-{image}", env!("CARGO_PKG_VERSION"));
    Some(directory.join("fingerprints").join(name))
}
