//! Appliance images, made without root, loop devices or a tree on disk: directories, tar archives and
//! layers of container images are merged in memory, file contents go straight to their blocks, and
//! what leads to them is written last.
//!
//! ```text
//! tar archive, any compression ─┐
//! layers with whiteouts ────────┼─► Filesystem: tree in memory, contents in the file ── finish ──► ext4
//! directory, other image ───────┘
//! ```
//!
//! Invariants: nothing is written but the file that the caller gives; the same source gives the same
//! image; an archive that breaks a rule or exceeds a limit is an error that names the member; memory
//! grows with the number of files, within [`Limits`], never with their sizes.

pub mod decompress;
mod error;
pub mod export;
mod ext4;
mod facts;
mod filesystem;
pub mod layout;
pub mod oci;
mod pipe;
pub mod tar;
mod tree;

pub use error::{Error, Result};
pub use facts::Facts;
pub use filesystem::{Archive, Filesystem, Limits, Options, Summary};
