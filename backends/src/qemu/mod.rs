//! QEMU: a whole PC, by hardware virtualisation (KVM) where the host has it, else in software (TCG).
//!
//! What [`crate::uml`] keeps holds here as well: nothing of a machine has a name in the host's
//! filesystem. The link and the monitor are socket pairs, the console is a pipe, the initramfs a
//! memfd, and QEMU gets all of them, and the image and the shared directories, as descriptors.
//!
//! The guest's kernel is started directly, with the agent in its initramfs; the image's own kernel
//! and boot loader are not used. Directories are shared by 9P.

mod arguments;
pub(crate) mod firmware;
pub(crate) mod guest;
pub mod kernel;
pub mod kvm;
mod machine;
mod monitor;
pub(crate) mod overlay;
pub(crate) mod plan;
pub mod program;
pub(crate) mod virtiofs;

pub use guest::ALWAYS;

use std::path::Path;

use crate::spec::MachineSpec;
use crate::{Capabilities, Hypervisor, Machine, Rendered, Result, Usable};

/// The backend.
#[derive(Debug, Clone, Copy)]
pub struct Qemu;

impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn capabilities(&self) -> Capabilities {
        guest::CAPABILITIES
    }

    fn has_hardware(&self) -> bool {
        kvm::accelerator().is_kvm()
    }

    fn probe(&self, kernel: Option<&Path>) -> Result<Usable> {
        let program = program::Program::find()?;
        let kernel = kernel::Kernel::find(kernel, &guest::ALWAYS)?;
        let accelerator = kvm::accelerator();
        Ok(Usable {
            summary: format!(
                "QEMU {}, {accelerator}, {} ({})",
                program.version,
                kernel.path.display(),
                kernel.release
            ),
        })
    }

    fn render(&self, spec: &MachineSpec) -> Result<Rendered> {
        Ok(plan::Plan::make(self, spec)?.render(self.name()))
    }

    fn launch(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>> {
        let plan = plan::Plan::make(self, spec)?;
        Ok(Box::new(machine::QemuMachine::start(plan)?))
    }
}
