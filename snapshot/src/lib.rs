//! Snapshots of AppPot appliances (paper, section 6.2): record a base, find what a user changed
//! relative to it, write it as an archive, and merge it into another copy of the base.
pub mod content;
pub mod entry;
mod codec;
mod error;
pub mod rules;
pub mod tree;
mod xattrs;

pub use entry::Entry;
pub use error::{Error, Result};
pub mod archive;
pub mod base;
pub mod diff;
pub mod merge;
mod tar;
pub use tar::hex;
