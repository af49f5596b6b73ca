//! What a backend can do, and whether that is enough for a machine.

use apppot_contract::cmdline::Carrier;
use apppot_contract::Channel;

use crate::image::ImageKind;
use crate::spec::{MachineSpec, Writes};
use crate::{Error, Result};

/// What a backend can do; plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Bytes of kernel command line, all words together.
    pub command_line: usize,
    /// The carrier for what does not fit there.
    pub carrier: Option<Carrier>,
    /// How host directories are shared live.
    pub channels: &'static [Channel],
    /// Kinds of images that it boots.
    pub images: &'static [ImageKind],
    /// Kinds of images for which it has copy-on-write files.
    pub overlay_files: &'static [ImageKind],
    /// Kinds of images that it can write into.
    pub writable: &'static [ImageKind],
    /// The most changes archives.
    pub changes: usize,
    /// The most vCPUs.
    pub cpus: u32,
}

/// Checks `spec` against what `backend` can do, before anything is started.
///
/// # Errors
/// What is missing.
pub fn check(backend: &'static str, can: &Capabilities, spec: &MachineSpec) -> Result<()> {
    let missing = |what: String| Err(Error::Incapable { backend, what });
    let kind = spec.image.kind;
    if !can.images.contains(&kind) {
        return missing(format!("boot {kind} images"));
    }
    if matches!(spec.writes, Writes::Overlay(_)) && !can.overlay_files.contains(&kind) {
        return missing(format!("keep the writes to {kind} in an overlay file"));
    }
    if spec.writes == Writes::Image && !can.writable.contains(&kind) {
        return missing(format!("write into {kind}"));
    }
    if !spec.shares.is_empty() && can.channels.is_empty() {
        return missing(String::from("share host directories"));
    }
    if spec.changes.len() > can.changes {
        let (asked, most) = (spec.changes.len(), can.changes);
        return missing(format!("merge {asked} changes archives ({most} at most)"));
    }
    if spec.cpus > can.cpus {
        return missing(format!("have {} vCPUs ({} at most)", spec.cpus, can.cpus));
    }
    Ok(())
}
