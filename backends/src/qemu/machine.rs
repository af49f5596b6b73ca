//! A running QEMU.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::arguments::descriptor;
use super::monitor::{Monitor, Said};
use super::overlay::QCOW2;
use super::plan::Plan;
use super::virtiofs::Serving;
use crate::containment::{self, Confinement};
use crate::descriptors::{duplicate, number, Descriptors};
use crate::machine::{Helpers, ProcessMachine};
use crate::network::{self, Passt};
use crate::process::{self, Process, Spawn};
use crate::{Error, Facts, Link, MachineEnd, Result};

/// The machine.
pub(super) type QemuMachine = ProcessMachine<QemuHelpers>;

/// What QEMU has beside its process.
#[derive(Debug)]
pub(super) struct QemuHelpers {
    monitor: Monitor,
    /// These end after QEMU.
    _network: Option<network::Running>,
    _serving: Vec<Serving>,
}

impl QemuMachine {
    /// Carries out `plan`.
    ///
    /// # Errors
    /// Something that the plan names is gone or in use, or QEMU cannot be started.
    pub(super) fn start(mut plan: Plan) -> Result<Self> {
        let network = plan.passt.as_ref().map(Passt::start).transpose()?;
        let (mut network, interface) = network.unzip();
        let at_end =
            process::at_end(|| {}).map_err(Error::system("start the watch over the machine"))?;
        let (mut given, ours) = open(&plan)?;
        given
            .list
            .extend(interface.map(|socket| (number::NETWORK, socket)));
        let rules = given.rules(&plan.needs())?;
        let process = Spawn {
            program: plan.program.path.clone().into(),
            env: Vec::new(),
            args: std::mem::take(&mut plan.args),
            descriptors: given.list,
            console: ours.output,
            cpu: None,
            fixed_addresses: false,
            // Its 9P server keeps to the directories that it is given, so attributes need no supervisor.
            confinement: Confinement::of_contents(&rules, plan.containment)?,
            at_end,
        }
        .start()
        .map_err(Error::file("start", &plan.program.path))?;
        let failed = "listen to the monitor";
        let monitor = Monitor::start(ours.monitor, duplicate(process.ended())?)
            .map_err(Error::system(failed))?;
        // It has come up while QEMU was started.
        network.as_mut().map_or(Ok(()), network::Running::ready)?;
        Ok(QemuMachine {
            facts: facts(&plan, &process),
            process,
            helpers: QemuHelpers {
                monitor,
                _network: network,
                _serving: ours.serving,
            },
            link: Some(Link {
                document: plan.document,
                ..ours.link
            }),
            console: Some(ours.console.into()),
        })
    }
}

/// Our ends of what QEMU is given.
struct Ours {
    link: Link,
    monitor: UnixStream,
    /// Where the guest's and QEMU's messages are read, and where QEMU writes them.
    console: OwnedFd,
    output: OwnedFd,
    serving: Vec<Serving>,
}

/// Opens what QEMU is given.
fn open(plan: &Plan) -> Result<(Descriptors, Ours)> {
    let mut given = Descriptors::open(&plan.given, &QCOW2)?;
    plan.start.give(&mut given, plan.contract.as_deref())?;
    if let Some(image) = &plan.vanishing {
        given.add(number::OVERLAY, QCOW2.vanishing(image)?);
    }
    let link = pair(&mut given, number::LINK).map_err(Error::system("make the link"))?;
    let monitor =
        pair(&mut given, descriptor::MONITOR).map_err(Error::system("make the monitor"))?;
    let (console, output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(Error::system("make the console"))?;
    let serving = serve_shares(plan, &mut given, &output)?;
    let link = Link {
        stream: link,
        document: None,
        capacity: None,
        ring: given.open_ring(plan.ring, descriptor::RING)?,
        files_ring: given.open_ring(plan.files_ring, descriptor::FILES_RING)?,
    };
    let ours = Ours {
        link,
        monitor,
        console,
        output,
        serving,
    };
    Ok((given, ours))
}

fn facts(plan: &Plan, process: &Process) -> Facts {
    let release = plan.start.kernel().map(|kernel| kernel.release.clone());
    Facts {
        backend: "qemu",
        kernel: plan.start.to_string(),
        release: release.unwrap_or_default(),
        accelerator: Some(plan.accelerator.to_string()),
        containment: match process.confinement() {
            Some(_) => containment::landlock(),
            None => containment::none(plan.containment),
        },
        memory_backing: String::from("the memory of QEMU's process"),
        pinned_to: None,
    }
}

/// Starts what serves directories, and gives QEMU its sockets.
fn serve_shares(plan: &Plan, given: &mut Descriptors, console: &OwnedFd) -> Result<Vec<Serving>> {
    let Some((program, shares)) = &plan.virtiofs else {
        return Ok(Vec::new());
    };
    let mut serving = Vec::new();
    for (number, share) in (number::SHARES..).zip(shares) {
        let console = duplicate(console.as_fd())?;
        let (process, socket) = program.serve(share, console, plan.containment)?;
        given.add(number, socket);
        serving.push(process);
    }
    Ok(serving)
}

/// A pair of sockets: one for QEMU, and ours.
fn pair(given: &mut Descriptors, number: i32) -> std::io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    given.add(number, theirs);
    Ok(ours)
}

impl Helpers for QemuHelpers {
    fn meaning(&mut self, status: ExitStatus) -> MachineEnd {
        end(status, self.monitor.last_words())
    }
}

/// QEMU exits with 0 for a guest that powered off and for one that was reset: the monitor tells.
fn end(status: ExitStatus, said: Option<Said>) -> MachineEnd {
    match (status.code(), said) {
        (_, Some(Said::Reset)) => MachineEnd::Reset,
        (_, Some(Said::Stopped)) => MachineEnd::Stopped,
        (Some(0), _) => MachineEnd::PoweredOff,
        (Some(code), _) => MachineEnd::Failed(code),
        (None, _) => MachineEnd::Killed(status.signal().unwrap_or(0)),
    }
}
