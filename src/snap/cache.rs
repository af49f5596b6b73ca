//! Fingerprints of base images, remembered: making one reads every inode, which for a large image is
//! longer than a boot.
//!
//! A file's name in `$XDG_CACHE_HOME/apppot/fingerprints` is everything that changes when the image
//! does; its content is the fingerprint. What cannot be read or written is no error.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use apppot_backends::stamp::Stamp;
use apppot_snapshot::entry::Hash;
use apppot_snapshot::hex;
use nix::unistd::geteuid;

use crate::trust;

/// So many are remembered at most: every state of an image has one.
const MOST: usize = 500;

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
    if let Some(known) = place.as_deref().and_then(recall) {
        return Ok(known);
    }
    let made = hex(&make()?);
    if let Some(place) = place {
        remember(&place, &made);
    }
    Ok(made)
}

/// What is remembered at `place`, if nobody but the caller can have written it.
fn recall(place: &Path) -> Option<String> {
    let uid = geteuid().as_raw();
    if !trust::is_directory_of(place.parent()?, uid) || !trust::is_file_of(place, uid) {
        return None;
    }
    let known = fs::read_to_string(place).ok()?;
    // A half-written one has another length.
    (known.len() == 64).then_some(known)
}

fn remember(place: &Path, fingerprint: &str) {
    let Some(directory) = place.parent() else {
        return;
    };
    let mut builder = DirBuilder::new();
    let _ = builder.recursive(true).mode(0o700).create(directory);
    if trust::is_directory_of(directory, geteuid().as_raw()) {
        forget_some(directory);
        // One that is there is not believed.
        let _ = fs::remove_file(place);
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(place);
        let _ = file.and_then(|mut file| file.write_all(fingerprint.as_bytes()));
    }
}

/// Removes the older half when there are too many.
fn forget_some(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut known: Vec<_> = entries
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    if known.len() < MOST {
        return;
    }
    known.sort();
    for (_, path) in &known[..known.len() / 2] {
        let _ = fs::remove_file(path);
    }
}

fn place(image: &Stamp) -> Option<PathBuf> {
    // A change within a tick of the clock would not show.
    let settled = image.age() > Duration::from_secs(2);
    let directory = crate::caller::cache_directory().filter(|_| settled)?;
    let name = format!("{}-{image}", env!("CARGO_PKG_VERSION"));
    Some(directory.join("fingerprints").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_others_can_have_written_is_not_recalled() {
        let room = tempfile::tempdir().unwrap();
        let directory = room.path().join("fingerprints");
        let place = directory.join("x");
        let fingerprint = "0".repeat(64);
        assert!(recall(&place).is_none());
        remember(&place, &fingerprint);
        assert_eq!(recall(&place), Some(fingerprint.clone()));
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        set(&place, 0o666).unwrap();
        assert!(recall(&place).is_none());
        set(&place, 0o600).unwrap();
        set(&directory, 0o770).unwrap();
        assert!(recall(&place).is_none());
        remember(&directory.join("y"), &fingerprint);
        assert!(!directory.join("y").exists());
        set(&directory, 0o700).unwrap();
        fs::write(&place, "half").unwrap();
        assert!(recall(&place).is_none());
    }

    #[test]
    fn so_many_are_remembered_at_most() {
        let room = tempfile::tempdir().unwrap();
        for number in 0..MOST + 10 {
            remember(&room.path().join(number.to_string()), "x");
        }
        let count = fs::read_dir(room.path()).unwrap().count();
        assert!((MOST / 2..MOST).contains(&count), "{count}");
        assert!(room.path().join((MOST + 9).to_string()).exists());
    }
}
