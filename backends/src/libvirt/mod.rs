//! libvirt: machines of QEMU's that a daemon starts and shows, for sites that manage machines with it.
//!
//! A guest's machine is the same as with [`crate::qemu`], whose kernel, modules, drivers and names are used
//! here, too. What differs: libvirt's daemon starts QEMU, so it cannot be given descriptors and cannot be
//! confined here. Files go by their names. What is this machine's alone (initramfs, sockets, rings) lies in a
//! private directory, which is gone once the machine has been started ([`place`]).
//!
//! Domains are transient, and are destroyed by the daemon when the launcher's connection ends; when the
//! daemon is gone, the launcher ends QEMU itself ([`machine`]).

pub mod connection;
mod domain;
mod events;
mod machine;
mod place;
mod plan;
mod xml;

use std::path::Path;

use apppot_contract::cmdline::Carrier;
use apppot_contract::Channel;

use crate::descriptors::{MAX_CHANGES, MAX_SHARES};
use crate::image::ImageKind;
use crate::qemu::{self, kernel::Kernel};
use crate::spec::MachineSpec;
use crate::{Capabilities, Hypervisor, Machine, Rendered, Result, Usable};

/// The backend.
#[derive(Debug, Clone, Copy)]
pub struct Libvirt;

/// Its name.
const NAME: &str = "libvirt";

impl Hypervisor for Libvirt {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            command_line: qemu::guest::COMMAND_LINE_SIZE,
            carrier: Some(Carrier::Link),
            channels: &[Channel::NineP, Channel::Link],
            images: &[
                ImageKind::Partition,
                ImageKind::Disk,
                ImageKind::ReadOnly,
                ImageKind::Directory,
            ],
            overlay_files: &[ImageKind::Partition, ImageKind::Disk],
            writable: &[ImageKind::Partition, ImageKind::Disk, ImageKind::Directory],
            changes: MAX_CHANGES,
            shares: MAX_SHARES,
            disks: 0,
            firmware: true,
            user_network: false,
            cpus: 255,
            managed: true,
            seccomp: false,
        }
    }

    fn probe(&self, kernel: Option<&Path>) -> Result<Usable> {
        let connection = connection::Connection::open(None)?;
        let kernel = Kernel::find(kernel, &qemu::ALWAYS)?;
        let accelerator = connection.accelerator()?;
        Ok(Usable {
            summary: format!(
                "{connection}, {accelerator}, {} ({})",
                kernel.path.display(),
                kernel.release
            ),
        })
    }

    fn render(&self, spec: &MachineSpec) -> Result<Rendered> {
        plan::Plan::make(self, spec)?.render()
    }

    fn launch(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>> {
        let plan = plan::Plan::make(self, spec)?;
        Ok(Box::new(machine::Domain::start(plan)?))
    }
}
