//! User-Mode Linux: a Linux kernel that is an ordinary process (`Documentation/virt/uml`).
//!
//! No privilege, no daemon, no device: what batch nodes allow. Nothing of a machine has a name in
//! the host's filesystem: the initramfs and the ring are memfds, the link is a socketpair, the
//! console a pipe, guest memory an unnamed file, and the kernel gets all of them, and the image, as
//! descriptors (`/proc/self/fd/N`). So nothing can be left behind, and no path can be misread.

mod arguments;
mod cow;
pub mod kernel;
mod machine;
mod memory;
mod plan;

use std::path::Path;

use apppot_contract::cmdline::Carrier;
use apppot_contract::Channel;

use crate::image::ImageKind;
use crate::spec::MachineSpec;
use crate::{Capabilities, Hypervisor, Machine, Rendered, Result, Usable};

/// The backend.
#[derive(Debug, Clone, Copy)]
pub struct Uml;

impl Hypervisor for Uml {
    fn name(&self) -> &'static str {
        "uml"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            command_line: arguments::COMMAND_LINE_SIZE,
            carrier: Some(Carrier::Link),
            channels: &[Channel::Hostfs, Channel::Link, Channel::Disk],
            images: &[
                ImageKind::Partition,
                ImageKind::Disk,
                ImageKind::ReadOnly,
                ImageKind::Directory,
            ],
            overlay_files: &[ImageKind::Partition, ImageKind::Disk],
            writable: &[ImageKind::Partition, ImageKind::Disk, ImageKind::Directory],
            changes: arguments::MAX_CHANGES,
            shares: crate::descriptors::MAX_SHARES,
            disks: crate::descriptors::MAX_DISKS,
            firmware: false,
            user_network: true,
            seccomp: true,
            // CONFIG_NR_CPUS of UML is at most 64.
            cpus: 64,
            managed: false,
        }
    }

    fn probe(&self, kernel: Option<&Path>) -> Result<Usable> {
        let kernel = kernel::Kernel::find(kernel)?;
        crate::limits::choose_backing(crate::limits::LEAST_MEMORY)?;
        Ok(Usable {
            summary: format!("{} ({})", kernel.path.display(), kernel.release),
        })
    }

    fn render(&self, spec: &MachineSpec) -> Result<Rendered> {
        Ok(plan::Plan::make(self, spec)?.render(self.name()))
    }

    fn launch(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>> {
        let plan = plan::Plan::make(self, spec)?;
        Ok(Box::new(machine::UmlMachine::start(plan)?))
    }
}
