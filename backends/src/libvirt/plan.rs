//! From a specification to everything that is needed to have libvirt start the machine, as data.
//!
//! Making a plan changes nothing on the host, but that libvirt's daemon may start itself.

use std::ffi::OsString;
use std::path::PathBuf;

use super::connection::Connection;
use super::domain::{self, Described, Parts};
use super::place::{self, Place};
use super::{Libvirt, NAME};
use crate::descriptors::Given;
use crate::qemu::firmware::Start;
use crate::qemu::guest::{drivers, Boot};
use crate::qemu::kvm::Accelerator;
use crate::qemu::overlay::QCOW2;
use crate::spec::{Containment, MachineSpec, Writes};
use crate::{capabilities, limits, Error, Hypervisor, Rendered, Result};

/// What libvirt is asked for.
#[derive(Debug)]
pub(super) struct Plan {
    /// The machine.
    pub(super) spec: MachineSpec,
    /// The daemon, as libvirt says its URI.
    pub(super) uri: String,
    /// The daemon's version.
    version: String,
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
}

impl Plan {
    /// Makes the plan.
    ///
    /// # Errors
    /// The specification asks for something that the backend, the kernel, the daemon or the host does not have.
    pub(super) fn make(backend: &Libvirt, spec: &MachineSpec) -> Result<Self> {
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
        // Not kept: there must be one thread only when the machine is started.
        let connection = Connection::open(spec.connect.as_deref())?;
        let accelerator = connection.accelerator()?;
        let Connection { uri, version, .. } = connection;
        let place = Place::choose()?;
        Self::with(
            spec,
            start,
            accelerator,
            (uri, version),
            place,
            place::uuid()?,
        )
    }

    /// The plan for what has been found.
    pub(super) fn with(
        spec: &MachineSpec,
        start: Start,
        accelerator: Accelerator,
        (uri, version): (String, String),
        place: PathBuf,
        uuid: String,
    ) -> Result<Self> {
        let can = Libvirt.capabilities();
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
            uri,
            version,
            start,
            accelerator,
            line: domain::joined(&line.words),
            uuid,
            place,
            given,
            contract,
            document: line.document,
        })
    }

    /// The domain.
    ///
    /// # Errors
    /// A path cannot be made absolute.
    pub(super) fn describe(&self) -> Result<Described> {
        let user = nix::unistd::geteuid();
        let known = nix::unistd::User::from_uid(user).ok().flatten();
        let parts = Parts {
            spec: &self.spec,
            start: &self.start,
            accelerator: &self.accelerator,
            line: &self.line,
            uuid: &self.uuid,
            caller: &known.map_or_else(|| user.to_string(), |known| known.name),
            place: &self.place,
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
            domain: Some(self.describe()?.xml),
            helpers: Vec::new(),
            descriptors: Vec::new(),
            environment: vec![(String::from("LIBVIRT_DEFAULT_URI"), self.uri.clone())],
            containment: None,
            document: self.document.clone().or(self.contract.clone()),
        })
    }

    /// The daemon, for people.
    pub(super) fn daemon(&self) -> String {
        format!("libvirt {} at {}", self.version, self.uri)
    }
}

#[cfg(test)]
mod tests;
