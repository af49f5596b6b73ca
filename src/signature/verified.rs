//! Signatures that have been verified, remembered: hashing a large image takes seconds, a boot does
//! not ([ADR 10](../../docs/adr/0010-signatures.md)).
//!
//! What is remembered is "this key signed this state of this file with this signature", as the name
//! of an empty file; so a key that is withdrawn is not asked for any more, and any write to the
//! file makes another name. Whoever can make such a file can make the launcher believe anything, so
//! a site's demand believes root's alone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use apppot_backends::stamp::Stamp;

use super::Key;
use crate::trust;

/// Where root's are.
const SITE: &str = "/var/cache/apppot/verified";

/// The memories that are believed, and the one that is added to.
#[derive(Debug)]
pub(crate) struct Verified {
    believed: Vec<(PathBuf, u32)>,
    own: Option<PathBuf>,
}

impl Verified {
    /// For a demand of the site's: only root has a say.
    pub(super) fn of_site() -> Self {
        let is_root = nix::unistd::geteuid().is_root();
        Verified {
            believed: vec![(PathBuf::from(SITE), 0)],
            own: is_root.then(|| PathBuf::from(SITE)),
        }
    }

    /// For a demand of the caller's own.
    pub(super) fn of_caller() -> Self {
        let mut verified = Self::of_site();
        let cache = crate::caller::cache_directory().map(|cache| cache.join("verified"));
        if let Some(place) = cache {
            let uid = nix::unistd::geteuid().as_raw();
            verified.believed.push((place.clone(), uid));
            verified.own.get_or_insert(place);
        }
        verified
    }

    /// Believes nothing, so the file is read; what is found is remembered all the same.
    pub(super) fn afresh() -> Self {
        Verified {
            believed: Vec::new(),
            ..Self::of_caller()
        }
    }

    #[cfg(test)]
    pub(super) fn only(believed: Vec<(PathBuf, u32)>, own: Option<PathBuf>) -> Self {
        Verified { believed, own }
    }

    /// Whether this was verified before.
    pub(super) fn has(&self, stamp: &Stamp, file: &File, key: &Key, signature: &str) -> bool {
        let Some(name) = name(stamp, file, key, signature) else {
            return false;
        };
        self.believed.iter().any(|(place, uid)| {
            trust::is_directory_of(place, *uid) && trust::is_file_of(&place.join(&name), *uid)
        })
    }

    /// Remembers it, where that can be.
    pub(super) fn remember(&self, stamp: &Stamp, file: &File, key: &Key, signature: &str) {
        // A change within a tick of the clock would not show.
        let settled = stamp.age() > Duration::from_secs(2);
        let Some(place) = self.own.as_ref().filter(|_| settled) else {
            return;
        };
        let Some(name) = name(stamp, file, key, signature) else {
            return;
        };
        let made = DirBuilder::new().recursive(true).mode(0o755).create(place);
        let _ = made.and_then(|()| {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o644);
            options.open(place.join(name)).map(drop)
        });
    }
}

/// The name of what is remembered; none for files whose stamps cannot be relied on.
fn name(stamp: &Stamp, file: &File, key: &Key, signature: &str) -> Option<String> {
    let filesystem = trust::filesystem(file)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("apppot-verified 1\n{filesystem:x} {stamp}\n{key}\n").as_bytes());
    hasher.update(signature.as_bytes());
    Some(hasher.finalize().to_hex().to_string())
}
