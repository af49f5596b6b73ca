//! Snapshots of AppPot appliances (paper, section 6.2): record a base, find what a user changed
//! relative to it, write it as an archive, and merge it into another copy of the base.
//!
//! ```text
//! Tree (live Directory, raw Ext4 image, either through an Overlay) ── record ──► entries with hashes
//! entries ──► Base (a file)          Base + entries ── diff::compare ──► changes
//! changes + Tree ── archive::write ──► archive ── Archive::open, merge ──► another tree
//! ```
//!
//! Invariants: the same state gives the same archive, wherever it is read from; an archive is
//! examined whole before the first file is touched; a merge never leaves its root. Memory grows with
//! the number of files (some 200 bytes each), never with their sizes.

pub mod archive;
pub mod base;
mod codec;
pub mod content;
pub mod diff;
pub mod entry;
mod error;
pub mod merge;
pub mod output;
pub mod rules;
pub mod show;
pub mod tar;
pub mod transfer;
pub mod tree;
mod way;
mod xattrs;

pub use entry::Entry;
pub use error::{Error, Result};
pub use tar::{hex, uuid};
pub use xattrs::is_recorded;

/// The name of a recorded base where nobody gives another.
pub const DEFAULT_BASE: &str = "apppot.base";
/// The name of a changes archive where nobody gives another: the one that is written is the one that
/// is looked for.
pub const DEFAULT_CHANGES: &str = "apppot.changes";
