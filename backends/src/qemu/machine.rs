//! A running QEMU.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use super::arguments::descriptor;
use super::monitor::{Monitor, Said};
use super::overlay::QCOW2;
use super::plan::Plan;
use crate::containment::{self, Confinement};
use crate::descriptors::{duplicate, number, Descriptors};
use crate::process::{self, Process, Spawn};
use crate::{Error, Facts, Link, Machine, MachineEnd, Result};

/// The machine; dropping it kills QEMU.
#[derive(Debug)]
pub(super) struct QemuMachine {
    process: Process,
    monitor: Monitor,
    link: Option<Link>,
    console: Option<File>,
    facts: Facts,
}

impl QemuMachine {
    /// Carries out `plan`.
    ///
    /// # Errors
    /// Something that the plan names is gone or in use, or QEMU cannot be started.
    pub(super) fn start(plan: Plan) -> Result<Self> {
        let at_end =
            process::at_end(|| {}).map_err(Error::system("start the watch over the machine"))?;
        let mut given = Descriptors::open(&plan.given, &QCOW2)?;
        let link = pair(&mut given, number::LINK).map_err(Error::system("make the link"))?;
        let monitor =
            pair(&mut given, descriptor::MONITOR).map_err(Error::system("make the monitor"))?;
        let ring = given.open_ring(plan.ring, descriptor::RING)?;
        let rules = given.rules(&plan.needs())?;
        // Its 9P server keeps to the directories that it is given, so attributes need no supervisor.
        let confinement = Confinement::of_contents(&rules, plan.containment)?;
        let (console, output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(Error::system("make the console"))?;
        let process = Spawn {
            program: plan.program.path.clone().into(),
            env: Vec::new(),
            args: plan.args,
            descriptors: given.list,
            console: output,
            cpu: None,
            fixed_addresses: false,
            confinement,
            at_end,
        }
        .start()
        .map_err(Error::file("start", &plan.program.path))?;
        let failed = "listen to the monitor";
        let monitor =
            Monitor::start(monitor, duplicate(process.ended())?).map_err(Error::system(failed))?;
        let facts = Facts {
            backend: "qemu",
            kernel: plan.kernel.path.display().to_string(),
            release: plan.kernel.release.clone(),
            accelerator: Some(plan.accelerator.to_string()),
            containment: match process.confinement() {
                Some(_) => containment::landlock(),
                None => containment::none(plan.containment),
            },
            memory_backing: String::from("the memory of QEMU's process"),
            pinned_to: None,
        };
        Ok(QemuMachine {
            process,
            monitor,
            link: Some(Link {
                stream: link,
                document: plan.document,
                capacity: None,
                ring,
                files_ring: None,
            }),
            console: Some(console.into()),
            facts,
        })
    }
}

/// A pair of sockets: one for QEMU, and ours.
fn pair(given: &mut Descriptors, number: i32) -> std::io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    given.add(number, theirs);
    Ok(ours)
}

impl Machine for QemuMachine {
    fn link(&mut self) -> Option<Link> {
        self.link.take()
    }

    fn console(&mut self) -> Option<File> {
        self.console.take()
    }

    fn wait(&mut self, until: Option<Instant>) -> Result<Option<MachineEnd>> {
        let status = self
            .process
            .wait(until)
            .map_err(Error::system("wait for the machine"))?;
        Ok(status.map(|status| end(status, self.monitor.last_words())))
    }

    fn ended(&self) -> BorrowedFd<'_> {
        self.process.ended()
    }

    fn kill(&mut self) -> Result<()> {
        self.process
            .kill()
            .map_err(Error::system("end the machine"))
    }

    fn facts(&self) -> &Facts {
        &self.facts
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
