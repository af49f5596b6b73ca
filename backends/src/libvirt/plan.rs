//! From a specification to everything that is needed to have libvirt start the machine, as data.
//!
//! Making a plan changes nothing on the host, but that libvirt's daemon may start itself.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use apppot_contract::Channel;

use super::connection::Connection;
use super::domain::{self, Described, Parts};
use super::place::{self, Place};
use super::{Libvirt, NAME};
use crate::descriptors::Given;
use crate::network::Passt;
use crate::qemu::firmware::Start;
use crate::qemu::guest::{drivers, live, Boot};
use crate::qemu::kvm::Accelerator;
use crate::qemu::overlay::QCOW2;
use crate::qemu::virtiofs::Virtiofsd;
use crate::spec::{Containment, MachineSpec, Writes};
use crate::{capabilities, limits, Error, Hypervisor, Rendered, Result};

/// What libvirt is asked for.
#[derive(Debug)]
pub(super) struct Plan {
    /// The machine.
    pub(super) spec: MachineSpec,
    /// The daemon.
    daemon: Daemon,
    /// What starts the guest.
    pub(super) start: Start,
    /// What executes it.
    pub(super) accelerator: Accelerator,
    /// The kernel command line.
    line: OsString,
    /// The domain's UUID.
    pub(super) uuid: String,
    /// The directory of what goes when it runs.
    pub(super) place: PathBuf,
    /// The files that it needs.
    pub(super) given: Given,
    /// The contract's document for fw_cfg, where firmware starts the guest.
    pub(super) contract: Option<String>,
    /// The contract's document, when it goes by the link.
    pub(super) document: Option<String>,
    /// The helper that has the network's sockets.
    pub(super) passt: Option<Passt>,
    /// What serves directories to the guest, when QEMU does not do that itself.
    pub(super) virtiofs: Option<Virtiofsd>,
}

/// A daemon, as far as the plan goes.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    /// Its URI, as libvirt says it.
    pub(super) uri: String,
    /// Its version.
    pub(super) version: String,
    /// The group of its QEMU, where it is the system's.
    pub(super) group: Option<u32>,
}

impl Daemon {
    fn of(connection: &Connection) -> Self {
        Daemon {
            uri: connection.uri.clone(),
            version: connection.version.clone(),
            group: connection.group,
        }
    }
}

impl Plan {
    /// Makes the plan.
    ///
    /// # Errors
    /// The specification asks for something that the backend, the kernel, the daemon or the host does not have.
    pub(super) fn make(backend: &Libvirt, spec: &MachineSpec) -> Result<(Self, Arc<Connection>)> {
        capabilities::check(backend.name(), &backend.capabilities(), spec)?;
        limits::check_memory(spec.memory)?;
        if spec.containment == Containment::Required {
            let reason = String::from("libvirt's daemon starts it, which has policies of its own");
            return Err(Error::Containment { reason });
        }
        if let Writes::Overlay(path) = &spec.writes {
            QCOW2.examine(path, &spec.image.path)?;
        }
        let start = Start::find(spec, &drivers(spec))?;
        let virtiofs = match live(spec) {
            Channel::Virtiofs => Some(Virtiofsd::for_shares(backend.name(), &spec.shares)?),
            _ => None,
        };
        let place = Place::choose()?;
        let connection = backend.connection(spec)?;
        let accelerator = connection.accelerator()?;
        let daemon = Daemon::of(&connection);
        let mut plan = Self::with(spec, start, accelerator, daemon, place, place::uuid()?)?;
        plan.virtiofs = virtiofs;
        Ok((plan, connection))
    }

    /// The plan for what has been found.
    pub(super) fn with(
        spec: &MachineSpec,
        start: Start,
        accelerator: Accelerator,
        daemon: Daemon,
        place: PathBuf,
        uuid: String,
    ) -> Result<Self> {
        let can = Libvirt::default().capabilities();
        let Boot {
            modules,
            line,
            contract,
        } = Boot::of(spec, &start, &can)?;
        let given = Given::new(spec, modules);
        if let Some(kernel) = start.kernel() {
            kernel.check_memory(spec.memory, given.initramfs_len())?;
        }
        Ok(Plan {
            spec: spec.clone(),
            daemon,
            start,
            accelerator,
            line: domain::joined(&line.words),
            uuid,
            place,
            given,
            contract,
            document: line.document,
            passt: Passt::plan(spec.network)?,
            virtiofs: None,
        })
    }

    /// The domain, whose network goes by this port.
    ///
    /// # Errors
    /// A path cannot be made absolute.
    pub(super) fn describe(&self, port: u16) -> Result<Described> {
        let user = nix::unistd::geteuid();
        let known = nix::unistd::User::from_uid(user).ok().flatten();
        let label = self.daemon.group.map(|group| format!("+{user}:+{group}"));
        let parts = Parts {
            spec: &self.spec,
            start: &self.start,
            accelerator: &self.accelerator,
            line: &self.line,
            uuid: &self.uuid,
            caller: &known.map_or_else(|| user.to_string(), |known| known.name),
            place: &self.place,
            label: label.as_deref(),
            port,
        };
        domain::describe(&parts).map_err(Error::system("describe the machine"))
    }

    /// The plan for people.
    ///
    /// # Errors
    /// As [`Plan::describe`].
    pub(super) fn render(&self) -> Result<Rendered> {
        Ok(Rendered {
            backend: NAME,
            argv: Vec::new(),
            domain: Some(self.describe(SOME_PORT)?.xml),
            helpers: self.helpers(),
            descriptors: Vec::new(),
            environment: vec![(String::from("LIBVIRT_DEFAULT_URI"), self.daemon.uri.clone())],
            containment: None,
            document: self.document.clone().or(self.contract.clone()),
        })
    }

    /// What runs beside QEMU, for people.
    fn helpers(&self) -> Vec<Vec<String>> {
        let serving = self.virtiofs.iter().flat_map(|program| {
            let shown = |share| program.shown(share);
            self.spec.shares.iter().map(shown)
        });
        self.passt.iter().map(Passt::shown).chain(serving).collect()
    }

    /// The daemon, for people.
    pub(super) fn daemon(&self) -> String {
        format!("libvirt {} at {}", self.daemon.version, self.daemon.uri)
    }
}

/// The network's port where nothing is started: the kernel chooses it then.
const SOME_PORT: u16 = 1;

#[cfg(test)]
mod tests;
