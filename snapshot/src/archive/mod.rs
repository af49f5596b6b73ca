//! The changes archive: a tar in a zstd frame, then a frame that zstd skips, with the checksum.
//!
//! - The tar's first member is the manifest ([`manifest`]): all that merging needs to know, so the
//!   headers of the other members only repeat it, for `tar --zstd`.
//! - Then a member for each new file and directory, in the tree's order.
//! - The last frame fills the file to whole sectors of 512 bytes, so that it can be a guest's block
//!   device, and ends in the BLAKE3 of all bytes before the hash. It is examined before anything is
//!   unpacked.

mod chunks;
mod manifest;
mod reader;
mod writer;

pub(crate) use manifest::MAX_CHANGES;
pub use manifest::{Header, Manifest};
pub use reader::{claimed_id, open_file, Archive, Members};
pub use writer::{forge, write, Written};

/// `apppot-changes` and the version of the format.
const MAGIC: &[u8] = b"apppot-changes 1\n";
/// The first word of a frame that zstd skips (RFC 8878, 3.1.2).
const SKIPPED: u32 = 0x184d_2a5a;
/// What stands before the hash.
const TRAILER_MAGIC: &[u8; 16] = b"apppot-checksum1";
/// First word, length, magic, hash.
const TRAILER: usize = 4 + 4 + 16 + crate::entry::HASH_LEN;
const SECTOR: u64 = 512;
