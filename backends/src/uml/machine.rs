//! A running UML kernel.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::arguments::descriptor;
use super::cow::COW;
use super::plan::Plan;
use crate::containment::attributes::Writable;
use crate::containment::{self, Confinement, Reach, Rule};
use crate::cpu;
use crate::descriptors::{duplicate, number, Descriptors};
use crate::limits;
use crate::machine::{Helpers, ProcessMachine};
use crate::network::{self, Passt};
use crate::process::{self, Process, Spawn};
use crate::spec::Containment;
use crate::{Error, Facts, Link, MachineEnd, Result};

/// The machine.
pub(super) type UmlMachine = ProcessMachine<UmlHelpers>;

/// What ends after the kernel.
#[derive(Debug)]
pub(super) struct UmlHelpers {
    _network: Option<network::Running>,
}

impl UmlMachine {
    /// Carries out `plan`.
    ///
    /// # Errors
    /// Something that the plan names is gone or in use, or the process cannot be started.
    pub(super) fn start(mut plan: Plan) -> Result<Self> {
        let network = plan.passt.as_ref().map(Passt::start).transpose()?;
        let (mut network, interface) = network.unzip();
        let backing = limits::choose_backing(plan.memory.size)?;
        let memory = plan.memory.make(&backing)?;
        let directory = memory.directory;
        let at_end = process::at_end(move || {
            // Guest root may have made files in it.
            let _ = directory.map(std::fs::remove_dir_all);
        })
        .map_err(Error::system("start the watch over the machine"))?;
        let (mut given, link) = open(&plan)?;
        let cpu = take_cpu(&mut given, &plan);
        let (rules, writable) = reach(&mut given, &plan, memory.descriptor)?;
        given
            .list
            .extend(interface.map(|socket| (number::NETWORK, socket)));
        let (console, output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(Error::system("make the console"))?;
        let process = Spawn {
            program: plan.kernel.path.clone().into(),
            env: plan.memory.environment(),
            args: std::mem::take(&mut plan.args),
            descriptors: given.list,
            console: output,
            cpu,
            fixed_addresses: true,
            confinement: Confinement::new(&rules, plan.containment)?,
            at_end,
        }
        .start()
        .map_err(Error::file("start kernel", &plan.kernel.path))?;
        let facts = Facts {
            containment: supervise(&process, writable, plan.containment)?,
            memory_backing: backing.path.display().to_string(),
            pinned_to: cpu,
            ..facts(&plan)
        };
        // It has come up while the kernel was started.
        network.as_mut().map_or(Ok(()), network::Running::ready)?;
        Ok(UmlMachine {
            process,
            helpers: UmlHelpers { _network: network },
            link: Some(Link {
                document: plan.document,
                ..link
            }),
            console: Some(console.into()),
            facts,
        })
    }
}

/// What is known before the machine runs.
fn facts(plan: &Plan) -> Facts {
    Facts {
        backend: "uml",
        kernel: plan.kernel.path.display().to_string(),
        release: plan.kernel.release.clone(),
        ..Facts::default()
    }
}

/// Opens what the kernel is given, and our end of the link.
fn open(plan: &Plan) -> Result<(Descriptors, Link)> {
    let (stream, theirs) = UnixStream::pair().map_err(Error::system("make the link"))?;
    let mut given = Descriptors::open(&plan.given, &COW)?;
    given.add(number::LINK, theirs);
    let link = Link {
        stream,
        document: None,
        capacity: (!plan.kernel.is_ours()).then_some(SERIAL_LINE),
        ring: given.open_ring(plan.ring, descriptor::RING)?,
        files_ring: given.open_ring(plan.files_ring, descriptor::FILES_RING)?,
    };
    Ok((given, link))
}

/// What the process may reach, with the guest's memory, and the files whose attributes it may change.
fn reach(
    given: &mut Descriptors,
    plan: &Plan,
    memory: OwnedFd,
) -> Result<(Vec<Rule>, Vec<Writable>)> {
    let needs = plan.needs();
    let mut rules = given.rules(&needs)?;
    if plan.memory.is_made_by_kernel() {
        rules.push(Rule {
            file: duplicate(memory.as_fd())?,
            reach: Reach::Write,
        });
    }
    given.add(descriptor::MEMORY, memory);
    let writable = given.writable(&needs)?;
    Ok((rules, writable))
}

/// Serves the confined process; the state of its confinement, for people.
fn supervise(process: &Process, writable: Vec<Writable>, mode: Containment) -> Result<String> {
    match process.confinement() {
        Some(confinement) => confinement.supervise(duplicate(process.ended())?, writable, mode),
        None => Ok(containment::none(mode)),
    }
}

/// What a serial line of a stock UML kernel takes. Its terminal holds 4095 bytes; with less than 128
/// left it is throttled, and the driver never takes it up again (line_throttle in
/// arch/um/drivers/line.c; our kernel's patch 0011 mends it).
const SERIAL_LINE: usize = 3 << 10;

/// A host CPU for a machine that is bound to one, if one is free.
fn take_cpu(given: &mut Descriptors, plan: &Plan) -> Option<usize> {
    let slot = plan.bind.then(cpu::take).flatten()?;
    given.add(descriptor::CPU_SLOT, slot.holder);
    Some(slot.cpu)
}

impl Helpers for UmlHelpers {
    /// A guest's panic is an abort of the kernel's process.
    fn meaning(&mut self, status: ExitStatus) -> MachineEnd {
        match (status.code(), status.signal()) {
            (Some(0), _) => MachineEnd::PoweredOff,
            (_, Some(libc::SIGABRT)) => MachineEnd::Panicked,
            (Some(code), _) => MachineEnd::Failed(code),
            (None, signal) => MachineEnd::Killed(signal.unwrap_or(0)),
        }
    }
}
