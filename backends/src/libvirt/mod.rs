//! libvirt: machines of QEMU's that a daemon starts and shows, for sites that manage machines with it.
//!
//! A guest's machine is the same as with [`crate::qemu`], whose kernel, modules, drivers and names are used
//! here, too. What differs: libvirt's daemon starts QEMU, so it cannot be given descriptors and cannot be
//! confined here. Files go by their names. What is this machine's alone (initramfs, sockets, rings) lies in a
//! private directory, which is gone once the machine has been started ([`place`]).
//!
//! Domains are transient, and are destroyed by the daemon when the launcher's connection ends; when the
//! daemon is gone, the launcher ends QEMU itself ([`minder`]).

mod address;
mod capabilities;
pub mod connection;
mod domain;
mod events;
mod machine;
mod minder;
mod monitor;
mod network;
mod patience;
mod place;
mod plan;
mod xml;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use connection::Connection;

use crate::qemu::{self, kernel::Kernel};
use crate::spec::MachineSpec;
use crate::{Capabilities, Hypervisor, Machine, Rendered, Result, Usable};

/// The backend.
#[derive(Debug, Default)]
pub struct Libvirt {
    /// The connection that machines end with. It is made where there is no event loop yet: libvirt's library
    /// then never asks the daemon to look after whether it is alive, so that a launcher may be stopped.
    connection: OnceLock<Arc<Connection>>,
}

impl Libvirt {
    /// The connection that this machine is to end with, to the daemon that the first of them is of.
    fn connection(&self, spec: &MachineSpec) -> Result<Arc<Connection>> {
        if let Some(connection) = self.connection.get() {
            return Ok(Arc::clone(connection));
        }
        let connection = Connection::open(spec.connect.as_deref())?;
        Ok(Arc::clone(self.connection.get_or_init(|| connection)))
    }
}

/// Its name.
const NAME: &str = "libvirt";

impl Hypervisor for Libvirt {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            managed: true,
            ..qemu::guest::CAPABILITIES
        }
    }

    fn probe(&self, kernel: Option<&Path>) -> Result<Usable> {
        let connection = Connection::open(None)?;
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

    fn reach(&self, spec: &MachineSpec) -> Result<()> {
        // The second time it knows.
        self.connection(spec)?.accelerator().map(drop)
    }

    fn render(&self, spec: &MachineSpec) -> Result<Rendered> {
        plan::Plan::make(self, spec)?.0.render()
    }

    fn launch(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>> {
        let (plan, connection) = plan::Plan::make(self, spec)?;
        Ok(Box::new(machine::Domain::start(plan, connection)?))
    }
}
