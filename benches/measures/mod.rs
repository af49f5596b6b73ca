//! What is measured. Each measure is a module; a new one is a file and a line below.

mod crowd;
mod images;
mod inside;
mod launcher;
mod link;
mod memory;
mod phases;
mod qemu;
mod snapshots;
mod start;
mod tree;

use anyhow::Result;

use crate::lab::Lab;
use crate::sheet::Sheet;

/// Something that fills a sheet.
pub(crate) trait Measure {
    /// What is being done, for the patient.
    fn name(&self) -> &'static str;

    /// Does it.
    ///
    /// # Errors
    /// Nothing could be measured.
    fn measure(&self, lab: &Lab) -> Result<Sheet>;
}

/// Every measure, in the order of the report.
pub(crate) fn all() -> Vec<Box<dyn Measure>> {
    vec![
        Box::new(start::Start),
        Box::new(phases::Phases),
        Box::new(launcher::Launcher),
        Box::new(memory::Memory),
        Box::new(crowd::Crowd),
        Box::new(inside::Inside),
        Box::new(link::Link),
        Box::new(qemu::Start),
        Box::new(qemu::Link),
        Box::new(snapshots::Snapshots),
        Box::new(images::Images),
    ]
}
