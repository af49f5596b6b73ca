//! The hypervisors that AppPot runs appliances on.
//!
//! [`Hypervisor`] makes a [`Machine`] from a [`MachineSpec`]; [`Capabilities`] say beforehand what
//! each can do. Nothing else starts a hypervisor. A further backend is one more folder and one more
//! line in [`all`].

mod ask;
mod cache;
pub mod capabilities;
pub mod containment;
mod cpu;
mod descriptors;
mod error;
pub mod flock;
mod guest;
pub mod image;
pub mod initramfs;
mod kernel_line;
mod kernels;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod limits;
mod machine;
pub mod modules;
mod network;
mod overlay;
mod partition;
pub mod process;
pub mod qemu;
mod ring;
pub mod spec;
pub mod stamp;
pub mod uml;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

pub use capabilities::Capabilities;
pub use error::{Error, Result};
pub use network::user_network;
pub use ring::Ring;
pub use spec::MachineSpec;

/// A way to run machines.
pub trait Hypervisor {
    /// The name that `--backend` takes.
    fn name(&self) -> &'static str;

    /// What it can do, as data; without side effects.
    fn capabilities(&self) -> Capabilities;

    /// Whether hardware virtualisation would execute its guests here, whatever else may be in the way.
    fn has_hardware(&self) -> bool {
        false
    }

    /// Whether it can run here, now, for this user, and if not, what is in the way and its remedy.
    ///
    /// `kernel` is the one that the user has chosen.
    ///
    /// # Errors
    /// The reason why no machine can run.
    fn probe(&self, kernel: Option<&Path>) -> Result<Usable>;

    /// Reaches who starts its machines, where that is not this process: it may have to be waited for, so this is done
    /// before the launcher takes signals.
    ///
    /// # Errors
    /// It cannot be reached, or does not answer.
    fn reach(&self, _spec: &MachineSpec) -> Result<()> {
        Ok(())
    }

    /// Exactly what [`Hypervisor::launch`] would start, for people and tests.
    ///
    /// # Errors
    /// The specification cannot be met on this host.
    fn render(&self, spec: &MachineSpec) -> Result<Rendered>;

    /// Starts a machine.
    ///
    /// # Errors
    /// The specification cannot be met on this host, or the hypervisor did not start.
    fn launch(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>>;
}

/// One running instance of an appliance. Dropping it kills it.
pub trait Machine {
    /// The stream to the agent, once.
    fn link(&mut self) -> Option<Link>;

    /// Kernel and boot messages, once; never the command's output. Untrusted bytes.
    fn console(&mut self) -> Option<File>;

    /// Waits until the machine has ended or `until` has come, whichever is first.
    ///
    /// # Errors
    /// The machine cannot be waited for.
    fn wait(&mut self, until: Option<Instant>) -> Result<Option<MachineEnd>>;

    /// A descriptor that becomes readable when the machine has ended.
    fn ended(&self) -> std::os::fd::BorrowedFd<'_>;

    /// A descriptor that becomes readable when somebody else asks the machine to shut down, as by its power
    /// button; `None` where nobody can.
    fn shutdown_requests(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }

    /// Ends the machine at once. Harmless when it has ended already.
    ///
    /// # Errors
    /// The machine cannot be ended.
    fn kill(&mut self) -> Result<()>;

    /// Facts about the machine for the report, such as the kernel's release.
    fn facts(&self) -> &Facts;
}

/// The host's end of the link (`apppot_contract::link`).
#[derive(Debug)]
pub struct Link {
    /// Frames both ways.
    pub stream: UnixStream,
    /// The contract's document, to be sent after the agent's hello, when it did not go by the
    /// command line.
    pub document: Option<String>,
    /// Bytes that may be on their way to the agent at once, when the link stalls on more.
    pub capacity: Option<usize>,
    /// The ring for standard input, when the contract names one.
    pub ring: Option<Ring>,
    /// The ring for the job's files, when the contract names one.
    pub files_ring: Option<Ring>,
}

/// How a machine ended, as the host saw it. How the job ended is in the agent's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEnd {
    /// The guest powered off.
    PoweredOff,
    /// The guest's kernel gave up.
    Panicked,
    /// The guest's processor was reset: its kernel gave up, or rebooted.
    Reset,
    /// The machine stopped without having ended, and was ended.
    Stopped,
    /// The hypervisor failed with this exit status.
    Failed(i32),
    /// This signal ended the hypervisor.
    Killed(i32),
    /// The guest powered off, or its processor was reset: what manages the hypervisor does not say which.
    ShutDown,
    /// Somebody else ended the machine, by whatever manages the hypervisor.
    Destroyed,
    /// The hypervisor ended, and what manages it does not say how.
    Died,
    /// What manages the hypervisor was lost, and the machine was ended.
    Disconnected,
    /// The machine ended while what manages the hypervisor could not be heard.
    Unheard,
}

/// What a probe found.
#[derive(Debug, Clone)]
pub struct Usable {
    /// One line for people, such as the kernel's path and release.
    pub summary: String,
}

/// What a backend would start.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rendered {
    /// The backend's name.
    pub backend: &'static str,
    /// The hypervisor's arguments, the program first; lossy for bytes that are not UTF-8.
    pub argv: Vec<String>,
    /// The machine as libvirt is told of it, where that starts the hypervisor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Programs that run beside the hypervisor, each with its arguments.
    pub helpers: Vec<Vec<String>>,
    /// What stands behind the descriptors that the arguments name.
    pub descriptors: Vec<(i32, String)>,
    /// Variables of the hypervisor's environment.
    pub environment: Vec<(String, String)>,
    /// Containment: what the hypervisor's process may reach, one line a path; `None` when it is off.
    pub containment: Option<Vec<String>>,
    /// The contract's document, when it does not go by the command line.
    pub document: Option<String>,
}

/// What was started, for the report and for `-v`.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Facts {
    /// The backend's name.
    pub backend: &'static str,
    /// Path of the guest's kernel.
    pub kernel: String,
    /// Release of the guest's kernel.
    pub release: String,
    /// What executes the guest's instructions, where there is a choice.
    pub accelerator: Option<String>,
    /// `landlock` with its ABI version, or why there is none.
    pub containment: String,
    /// Where the guest's memory is kept.
    pub memory_backing: String,
    /// The host CPU that the machine is bound to.
    pub pinned_to: Option<usize>,
}

/// Every backend of this build, in the order of preference.
#[must_use]
pub fn all() -> Vec<Box<dyn Hypervisor>> {
    vec![
        Box::new(uml::Uml),
        Box::new(qemu::Qemu),
        #[cfg(feature = "libvirt")]
        Box::new(libvirt::Libvirt::default()),
    ]
}

/// Names of the backends that this build was made without.
#[must_use]
pub fn left_out() -> &'static [&'static str] {
    match cfg!(feature = "libvirt") {
        true => &[],
        false => &["libvirt"],
    }
}
