//! What a machine is to be.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use apppot_contract::{Channel, Contract, Stdin};

use crate::image::Image;
use crate::stamp::Stamp;

/// A machine as the launcher wants it; the backend decides how.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// The appliance.
    pub image: Image,
    /// What becomes of writes to the appliance.
    pub writes: Writes,
    /// The guest kernel, when the user has chosen one.
    pub kernel: Option<PathBuf>,
    /// What starts the guest.
    pub firmware: Firmware,
    /// The agent's executable, which becomes `/init` of the initramfs.
    pub agent: Cow<'static, [u8]>,
    /// Guest memory, bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Changes archives to merge into the appliance before the job, in order.
    pub changes: Vec<Changes>,
    /// Directories of the host, the job directory first, unless its files travel.
    pub shares: Vec<Share>,
    /// How they are shared, when the user has chosen that; else it is the backend's first live channel.
    pub live: Option<Channel>,
    /// Raw block devices beside the appliance's own.
    pub disks: Vec<Disk>,
    /// What the agent is to do. The backend adds the guest's half of what it provides: root,
    /// mounts, the link's device, the ring.
    pub contract: Contract,
    /// The way out of the guest.
    pub network: Network,
    /// Whether the guest's serial console is a terminal for those who manage the machine, instead of the
    /// launcher's to read.
    pub serial_terminal: bool,
    /// The URI of what manages machines, when the user has chosen one.
    pub connect: Option<String>,
    /// Whether the hypervisor's process is confined.
    pub containment: Containment,
    /// Whether UML may use its seccomp mode.
    pub seccomp: Seccomp,
    /// Whether the sum of the processes' resident sets is kept low: batch systems add them up.
    pub trim_resident: bool,
    /// Raw words at the end of the kernel command line.
    pub extra: Vec<OsString>,
}

impl MachineSpec {
    /// Whether standard input goes through a ring: links are slow towards a guest.
    pub(crate) fn has_ring(&self) -> bool {
        self.contract.stdin == Stdin::Link && self.contract.terminal.is_none()
    }

    /// Whether the job's files go through a ring, for the same reason.
    pub(crate) fn has_files_ring(&self) -> bool {
        let files = self.contract.files.as_ref();
        files.is_some_and(|files| files.channel == Channel::Link)
    }
}

/// What starts the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// The backend itself, with a kernel of the launcher's and the agent in its initramfs.
    None,
    /// A BIOS, which starts the image's own boot loader.
    Bios,
    /// UEFI firmware, which starts the image's own boot loader.
    Uefi,
}

/// What becomes of writes to the appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writes {
    /// They are kept in guest memory and end with the machine.
    Memory,
    /// They go into this copy-on-write file, which is made when it is missing and kept.
    Overlay(PathBuf),
    /// They go into the image.
    Image,
}

/// A changes archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Path on the host.
    pub path: PathBuf,
    /// Whether it is merged even when it was made for another base.
    pub any_base: bool,
    /// The file that was examined, and its state then.
    pub stamp: Stamp,
}

/// A raw block device, which the agent finds by what is on it.
#[derive(Debug, Clone)]
pub struct Disk {
    /// What is on it, for people.
    pub what: &'static str,
    /// The file behind it, of whole sectors; `None` when nothing will be started.
    pub file: Option<Arc<File>>,
    /// Whether the guest writes to it.
    pub writable: bool,
}

/// A directory of the host that the guest sees live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Path on the host.
    pub host: PathBuf,
    /// Absolute path in the guest.
    pub guest: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// The way out of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum Network {
    /// There is none: the guest has only its own loopback.
    None,
    /// The guest's connections are made by the invoking user's own sockets; nothing reaches the
    /// guest from outside.
    User {
        /// Whether the guest reaches what listens on the host's loopback, at the router's address.
        host_loopback: bool,
    },
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let user = |host_loopback| Network::User { host_loopback };
        [Network::None, user(false), user(true)]
            .into_iter()
            .find(|network| network.to_string() == text)
            .ok_or_else(|| format!("'{text}' is not one of none, user or user,host-loopback"))
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Network::None => "none",
            Network::User {
                host_loopback: false,
            } => "user",
            Network::User {
                host_loopback: true,
            } => "user,host-loopback",
        })
    }
}

/// Whether the hypervisor's process is confined to the files that the machine needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Containment {
    /// No machine without it.
    Required,
    /// Where the host's kernel can.
    Auto,
    /// Never.
    Off,
}

/// Whether UML may use its seccomp mode: faster system calls; within the guest, a process can then
/// read and change all guest memory (the host stays out of reach).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// Where the guest's kernel has it.
    Auto,
    /// Never: ptrace mode, in which guest processes are kept apart.
    Off,
}
