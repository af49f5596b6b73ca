//! A domain that runs.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{getpgid, getsid, Pid};
use virt::domain::Domain as Handle;
use virt_sys as sys;

use super::connection::Connection;
use super::events::{self, Watch};
use super::place::{connected, name, Place};
use super::plan::Plan;
use crate::descriptors::Descriptors;
use crate::process::{self, kill_group, wait_readable, AtEnd};
use crate::qemu::firmware::Start;
use crate::qemu::overlay::QCOW2;
use crate::ring::Ring;
use crate::spec::Writes;
use crate::{Error, Facts, Link, Machine, MachineEnd, Result};

/// Seconds after which a daemon that does not answer is asked again, and how often.
const KEEP_ALIVE: (i32, u32) = (3, 3);

/// The machine; dropping it ends it.
#[derive(Debug)]
pub(super) struct Domain {
    handle: Handle,
    watch: Arc<Watch>,
    /// QEMU's process group, where the daemon cannot end it any more.
    group: Option<Pid>,
    link: Option<Link>,
    console: Option<File>,
    facts: Facts,
    /// The files' locks.
    _files: Descriptors,
    /// Ends it when this process is killed, should the daemon not.
    _at_end: AtEnd,
    _connection: Connection,
}

impl Domain {
    /// Carries out `plan`.
    ///
    /// # Errors
    /// Something that the plan names is gone or in use, or libvirt does not start it.
    pub(super) fn start(plan: Plan) -> Result<Self> {
        let left = plan.place.clone();
        let at_end = process::at_end(move || {
            // There only when the launcher was killed meanwhile.
            let _ = std::fs::remove_dir_all(left);
        })
        .map_err(Error::system("start the watch over the machine"))?;
        let files = Descriptors::open(&plan.given, &QCOW2)?;
        let place = Place::make(&plan.place)?;
        let described = plan.describe()?;
        for (name, target) in &described.links {
            place.link(name, target)?;
        }
        plan.fill(&place)?;
        let spec = &plan.spec;
        let ring = open_ring(&place, spec.has_ring(), name::RING)?;
        let files_ring = open_ring(&place, spec.has_files_ring(), name::FILES_RING)?;
        let link = place.listen(name::LINK)?;
        let console = match spec.serial_terminal {
            true => None,
            false => Some(place.listen(name::CONSOLE)?),
        };
        events::start_loop()?;
        let connection = Connection::open(spec.connect.as_deref())?;
        // Where the daemon cannot do that, its silence goes unnoticed.
        let (interval, count) = KEEP_ALIVE;
        let _ = connection.connect.set_keep_alive(interval, count);
        let watch = Watch::new(&plan.uuid)?;
        events::listen(&connection.connect, &watch)?;
        let flags = sys::VIR_DOMAIN_START_AUTODESTROY;
        let handle = Handle::create_xml(&connection.connect, &described.xml, flags)
            .map_err(|error| refused(&spec.contract.id, error.message()))?;
        // From here on what is dropped ends the domain.
        let mut domain = Domain {
            handle,
            watch,
            group: None,
            link: None,
            console: None,
            facts: plan.facts(),
            _files: files,
            _at_end: at_end,
            _connection: connection,
        };
        let stream = connected(&link)?;
        domain.group = group_of(&stream);
        let watched = domain._at_end.watch(domain.group.map(Pid::as_raw));
        watched.map_err(Error::system("watch over the machine"))?;
        domain.console = console
            .map(|listener| connected(&listener).map(|stream| File::from(OwnedFd::from(stream))))
            .transpose()?;
        plan.check_again()?;
        drop(place);
        domain.link = Some(Link {
            stream,
            document: plan.document,
            capacity: None,
            ring,
            files_ring,
        });
        Ok(domain)
    }
}

impl Plan {
    /// Makes the files of the machine's own.
    fn fill(&self, place: &Place) -> Result<()> {
        match &self.start {
            Start::Kernel(_) => place.put(name::INITRAMFS, self.given.initramfs())?,
            Start::Bios => {}
            Start::Uefi(ovmf) => place.put(name::VARIABLES, &[ovmf.variables()?])?,
        }
        if let Some(text) = &self.contract {
            place.put(name::CONTRACT, &[text])?;
        }
        if self.start.kernel().is_none() && self.spec.writes == Writes::Memory {
            let file = place.file(name::VANISHING)?;
            QCOW2.lay(&file, &self.spec.image.path)?;
        }
        Ok(())
    }

    /// Checks that what was examined is what lay under its name while QEMU opened it.
    fn check_again(&self) -> Result<()> {
        let open = |path| File::open(path).map_err(Error::file("open", path));
        if self.spec.image.stamp.is_some() && self.spec.writes != Writes::Image {
            self.spec.image.check(&open(&self.spec.image.path)?)?;
        }
        for changes in &self.spec.changes {
            changes.stamp.check(&open(&changes.path)?, &changes.path)?;
        }
        Ok(())
    }

    fn facts(&self) -> Facts {
        let kernel = self.start.kernel();
        Facts {
            backend: super::NAME,
            kernel: self.start.to_string(),
            release: kernel.map_or_else(String::new, |kernel| kernel.release.clone()),
            accelerator: Some(self.accelerator.to_string()),
            containment: format!("that of {}", self.daemon()),
            memory_backing: String::from("the memory of QEMU's process"),
            pinned_to: None,
        }
    }
}

fn open_ring(place: &Place, wanted: bool, name: &str) -> Result<Option<Ring>> {
    let ring = |()| Ring::over(place.file(name)?).map_err(Error::system("make a ring"));
    wanted.then_some(()).map(ring).transpose()
}

/// The process group of who has connected, which is QEMU's alone: libvirt starts it in a session of its own.
fn group_of(stream: &UnixStream) -> Option<Pid> {
    let peer = getsockopt(stream, PeerCredentials).ok()?;
    let process = Pid::from_raw(peer.pid());
    let group = getpgid(Some(process)).ok()?;
    let is_own = getsid(Some(process)).ok()? == group && group != getpgid(None).ok()?;
    (is_own && group.as_raw() > 1).then_some(group)
}

fn refused(id: &str, reason: &str) -> Error {
    Error::Libvirt {
        what: format!("start '{id}' by libvirt"),
        reason: reason.to_owned(),
        hint: reason
            .contains("already exists")
            .then_some("choose another name with --id"),
    }
}

impl Domain {
    /// Ends QEMU without the daemon.
    fn kill_process(&self) -> Result<()> {
        match self.group {
            Some(group) => {
                kill_group(group.as_raw());
                Ok(())
            }
            None => Err(Error::system("end the machine: libvirt is gone")(
                std::io::Error::from(std::io::ErrorKind::NotConnected),
            )),
        }
    }
}

impl Machine for Domain {
    fn link(&mut self) -> Option<Link> {
        self.link.take()
    }

    fn console(&mut self) -> Option<File> {
        self.console.take()
    }

    fn wait(&mut self, until: Option<Instant>) -> Result<Option<MachineEnd>> {
        let ended = wait_readable(self.watch.ended(), until);
        if !ended.map_err(Error::system("wait for the machine"))? {
            return Ok(None);
        }
        let end = self.watch.end();
        match end {
            // Nobody is left who would.
            Some(MachineEnd::Disconnected) => self.kill_process()?,
            // Its number may soon be somebody else's.
            Some(_) => {
                let forgotten = self._at_end.watch(None);
                forgotten.map_err(Error::system("watch over the machine"))?;
            }
            None => {}
        }
        Ok(end)
    }

    fn ended(&self) -> BorrowedFd<'_> {
        self.watch.ended()
    }

    fn kill(&mut self) -> Result<()> {
        match self.watch.end() {
            Some(MachineEnd::Disconnected) => return self.kill_process(),
            Some(_) => return Ok(()),
            None => {}
        }
        if let Err(error) = self.handle.destroy() {
            // It ends by itself meanwhile, or the daemon is gone.
            if error.code() != virt::error::ErrorNumber::NoDomain {
                self.kill_process()?;
            }
        }
        self.watch.set_end(MachineEnd::PoweredOff);
        Ok(())
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and the daemon destroys it with the connection.
        let _ = self.kill();
    }
}
