//! What the tests share: trees on disk, made by ordinary tools, and the way from a tree to another.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use apppot_snapshot::archive::{self, Archive};
use apppot_snapshot::base::{Base, Source};
use apppot_snapshot::merge::{merge, Options, Summary};
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{record, Directory, Listing, Tree};
use apppot_snapshot::{Entry, Result};

/// Says why a test does not run; where everything has to run, that is a failure.
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot run: {reason}");
    eprintln!("skipped: {reason}");
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a shell script in a directory.
pub(crate) fn sh(directory: &Path, script: &str) {
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(directory)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
}

/// A temporary directory in memory where there is one: a disk would be what the test measures.
pub(crate) fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// A directory that is readable for everyone, as a root filesystem is.
pub(crate) fn fresh(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

pub(crate) fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.unwrap().success());
}

pub(crate) fn listing(tree: &dyn Tree, rules: &Rules) -> Listing {
    record(tree, rules, &|_, _| {}).unwrap()
}

pub(crate) fn entries(listing: &Listing) -> Vec<Entry> {
    let found = listing.found.iter();
    found.map(|found| found.entry.clone()).collect()
}

/// Everything in a directory.
pub(crate) fn state(root: &Path) -> Vec<Entry> {
    let tree = Directory::open(root, false).unwrap();
    entries(&listing(&tree, &Rules::everything()))
}

pub(crate) fn base(root: &Path) -> Base {
    let tree = Directory::open(root, false).unwrap();
    Base::new(entries(&listing(&tree, &Rules::default())), Source::Image)
}

/// Writes what changed in `root` since `base` to `archive`.
pub(crate) fn changes(base: &Base, root: &Path, archive: &Path) -> archive::Written {
    let tree = Directory::open(root, false).unwrap();
    changes_of(base, &tree, archive)
}

pub(crate) fn changes_of(base: &Base, tree: &dyn Tree, archive: &Path) -> archive::Written {
    let rules = Rules::default();
    let listing = listing(tree, &rules);
    let out = File::create(archive).unwrap();
    archive::write(out, base, tree, &listing, &rules).unwrap()
}

pub(crate) fn merge_file(archive: &Path, root: &Path) -> Result<Summary> {
    let archive = Archive::open(File::open(archive).unwrap())?;
    merge(archive, root, &Options::default())
}

/// Compares two trees, entry by entry, so that a failure names the first that differs.
pub(crate) fn assert_same(left: &[Entry], right: &[Entry]) {
    for (left, right) in left.iter().zip(right) {
        assert_eq!(left, right);
    }
    assert_eq!(left.len(), right.len());
}
