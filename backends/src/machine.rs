//! A machine that is a process of this host.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::process::ExitStatus;
use std::time::Instant;

use crate::process::Process;
use crate::{Error, Facts, Link, Machine, MachineEnd, Result};

/// The machine; dropping it kills its process.
#[derive(Debug)]
pub(crate) struct ProcessMachine<H> {
    /// The hypervisor.
    pub(crate) process: Process,
    /// What lasts as long as the process, and says how it ended.
    pub(crate) helpers: H,
    /// The stream to the agent.
    pub(crate) link: Option<Link>,
    /// Kernel and boot messages.
    pub(crate) console: Option<File>,
    /// What was started.
    pub(crate) facts: Facts,
}

/// What a hypervisor has beside its process. It ends after that.
pub(crate) trait Helpers {
    /// What an exit status of the hypervisor means.
    fn meaning(&mut self, status: ExitStatus) -> MachineEnd;
}

impl<H: Helpers> Machine for ProcessMachine<H> {
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
        Ok(status.map(|status| self.helpers.meaning(status)))
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
