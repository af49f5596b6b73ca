//! Changes archives, merged into the appliance's root before anything else happens to it: what the
//! boot writes there (accounts, host names) is not overwritten, and its mount points are not seen.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use apppot_contract::{Changes, Contract, Writes};
use apppot_snapshot::archive::{self, Archive};
use apppot_snapshot::merge::{is_merged, merge, remember, Options};

use crate::failure::{Failure, Step};
use crate::growth;

/// Merges the contract's archives into the tree at `root`.
pub(crate) fn merge_all(contract: &Contract, root: &Path) -> Result<(), Failure> {
    let kept = contract.root.as_ref();
    let kept = kept.filter(|root| root.writes == Writes::Device);
    let kept = kept.map(|root| Path::new(&root.source));
    for (index, changes) in contract.changes.iter().enumerate() {
        let step = match contract.changes.len() {
            1 => String::from("merging the changes archive"),
            count => format!("merging changes archive {} of {count}", index + 1),
        };
        merge_one(changes, root, kept).step(step)?;
    }
    Ok(())
}

/// `kept` is the device on which the tree outlives the machine.
fn merge_one(changes: &Changes, root: &Path, kept: Option<&Path>) -> Result<(), String> {
    let file =
        open(&changes.source).map_err(|error| format!("{}: {error}", changes.source.display()))?;
    let options = Options {
        check_base: !changes.any_base,
        ..Options::default()
    };
    let merged = || {
        if kept.is_none() {
            // A tree that vanishes with the machine need not be spared.
            return merge(Archive::stream(file)?, root, &options).map(drop);
        }
        let id = archive::claimed_id(&file)?;
        // What a job has changed since would be undone.
        if is_merged(root, &id)? {
            return Ok(());
        }
        if let Some(device) = kept {
            // What does not grow (another filesystem, one without room for its own tables) may hold
            // the changes all the same; else the merge says so before it begins.
            let _ = growth::filesystem(root, device);
        }
        merge(Archive::open(file)?, root, &options)?;
        remember(root, &id)
    };
    merged().map_err(|error: apppot_snapshot::Error| error.with_hint())
}

/// Opens an archive past the page cache, where that can be: its pages would be used once.
fn open(path: &Path) -> std::io::Result<File> {
    let direct = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path);
    direct.or_else(|_| File::open(path))
}
