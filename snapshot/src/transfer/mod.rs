//! A directory as a stream: what a job needs on its way to the guest, what it made on its way back
//! (`docs/contract.md`, "The job's files").
//!
//! ```text
//! list ──► Listing ── select, pack ──► stream ── unpack ──► another directory
//!             └── changes (since an earlier Listing) ──► results
//! ```
//!
//! A stream is a tar. Whoever unpacks one trusts nothing in it: it cannot leave its directory, follow
//! a symbolic link, or make anything grow but the files that it announces. Memory grows with the
//! number of names in a listing (some 150 bytes each), not with a stream.

mod levels;
mod listing;
mod new;
mod pack;
mod patterns;
mod reader;
mod rest;
mod unpack;

pub use listing::{list, Changes, Item, Listing, Skipped, Stamp};
pub use pack::{pack, Cargo, Told};
pub use patterns::Patterns;
pub use reader::{Member, Reader};
pub use unpack::{unpack, Limits, Notice, Options, Trouble, Unpacked};

/// The first bytes of a stream of the job's files, and of a device that holds one.
pub const FILES: &[u8] = b"apppot-files";
/// The first bytes of a stream of results, and of a device that is to take one.
pub const RESULTS: &[u8] = b"apppot-results";

#[cfg(test)]
mod tests;
