//! A running UML kernel.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use nix::sys::memfd::{memfd_create, MFdFlags};

use super::arguments::descriptor;
use super::cow;
use super::plan::{open_path, Need, Plan};
use crate::containment::attributes::Writable;
use crate::containment::{self, Confinement, Reach, Rule};
use crate::cpu;
use crate::flock::{self, Use};
use crate::image::ImageKind;
use crate::limits;
use crate::process::{self, Process, Spawn};
use crate::ring::Ring;
use crate::spec::{Containment, Writes};
use crate::{Error, Facts, Link, Machine, MachineEnd, Result};

/// The machine; dropping it kills the kernel's process.
#[derive(Debug)]
pub(super) struct UmlMachine {
    process: Process,
    link: Option<Link>,
    console: Option<File>,
    facts: Facts,
}

impl UmlMachine {
    /// Carries out `plan`.
    ///
    /// # Errors
    /// Something that the plan names is gone or in use, or the process cannot be started.
    pub(super) fn start(plan: Plan) -> Result<Self> {
        let backing = limits::choose_backing(plan.memory)?;
        let memory = backing.private_directory()?;
        let directory = memory.path.clone();
        let at_end = process::at_end(move || {
            // Guest root may have made files in it.
            let _ = directory.map(std::fs::remove_dir_all);
        })
        .map_err(Error::system("start the watch over the machine"))?;
        let (link, theirs) = UnixStream::pair().map_err(Error::system("make the link"))?;
        let mut given = Descriptors::default();
        given.open(&plan)?;
        given.add(descriptor::MEMORY, memory.descriptor);
        given.add(descriptor::LINK, theirs.into());
        let ring = given.open_ring(&plan)?;
        let cpu = given.take_cpu(&plan);
        let rules = given.rules(&plan)?;
        let writable = given.writable(&plan)?;
        let confinement = Confinement::new(&rules, plan.containment)?;
        let (console, output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(Error::system("make the console"))?;
        let process = Spawn {
            program: plan.kernel.path.clone().into(),
            env: plan.environment(),
            args: plan.args,
            descriptors: given.list,
            console: output,
            cpu,
            confinement,
            at_end,
        }
        .start()
        .map_err(Error::file("start kernel", &plan.kernel.path))?;
        let facts = Facts {
            backend: "uml",
            kernel: plan.kernel.path.display().to_string(),
            release: plan.kernel.release.clone(),
            containment: supervise(&process, writable, plan.containment)?,
            memory_backing: backing.path.display().to_string(),
            pinned_to: cpu,
        };
        Ok(UmlMachine {
            process,
            link: Some(Link {
                stream: link,
                document: plan.document,
                capacity: (!plan.kernel.is_ours()).then_some(SERIAL_LINE),
                ring,
            }),
            console: Some(console.into()),
            facts,
        })
    }
}

/// Serves the confined process; the state of its confinement, for people.
fn supervise(process: &Process, writable: Vec<Writable>, mode: Containment) -> Result<String> {
    match process.confinement() {
        Some(confinement) => confinement.supervise(dup(process.ended())?, writable, mode),
        None => Ok(containment::none(mode)),
    }
}

/// What a serial line of a stock UML kernel takes. Its terminal holds 4095 bytes; with less than 128
/// left it is throttled, and the driver never takes it up again (line_throttle in
/// arch/um/drivers/line.c; our kernel's patch 0011 mends it).
const SERIAL_LINE: usize = 3 << 10;

/// The descriptors that the kernel inherits.
#[derive(Default)]
struct Descriptors {
    list: Vec<(RawFd, OwnedFd)>,
}

impl Descriptors {
    fn add(&mut self, number: RawFd, descriptor: OwnedFd) {
        self.list.push((number, descriptor));
    }

    /// Opens what the plan names, and makes what goes with it.
    fn open(&mut self, plan: &Plan) -> Result<()> {
        self.open_image(plan)?;
        self.open_changes(plan)?;
        self.open_shares(plan)?;
        self.add(descriptor::INITRAMFS, memfd(&plan.initramfs)?);
        Ok(())
    }

    /// Opens and locks the image, and the copy-on-write file above it.
    fn open_image(&mut self, plan: &Plan) -> Result<()> {
        let path = &plan.image.path;
        if plan.image.kind == ImageKind::Directory {
            self.add(descriptor::ROOT, open_path(path)?);
            return Ok(());
        }
        let write = plan.writes == Writes::Image;
        let file = File::options()
            .read(true)
            .write(write)
            .open(path)
            .map_err(Error::file(
                if write {
                    "write into image"
                } else {
                    "open image"
                },
                path,
            ))?;
        flock::take(&file, path, if write { Use::Writing } else { Use::Reading })?;
        if let Writes::Overlay(overlay) = &plan.writes {
            let cow = cow::open(overlay, path)?;
            flock::take(&cow, overlay, Use::Writing)?;
            self.add(descriptor::OVERLAY, cow.into());
        }
        self.add(descriptor::ROOT, file.into());
        Ok(())
    }

    /// Opens the changes archives. They are locked: what was examined is what is merged.
    fn open_changes(&mut self, plan: &Plan) -> Result<()> {
        for (number, changes) in (descriptor::CHANGES..).zip(&plan.changes) {
            let path = &changes.path;
            let file = File::open(path).map_err(Error::file("open changes archive", path))?;
            flock::take(&file, path, Use::Reading)?;
            self.add(number, file.into());
        }
        Ok(())
    }

    fn open_shares(&mut self, plan: &Plan) -> Result<()> {
        for (number, share) in (descriptor::SHARES..).zip(&plan.shares) {
            self.add(number, open_path(&share.host)?);
        }
        Ok(())
    }

    fn open_ring(&mut self, plan: &Plan) -> Result<Option<Ring>> {
        if !plan.ring {
            return Ok(None);
        }
        let failed = "make the ring for standard input";
        let ring = Ring::new().map_err(Error::system(failed))?;
        self.add(
            descriptor::RING,
            ring.memory().map_err(Error::system(failed))?,
        );
        Ok(Some(ring))
    }

    /// A host CPU for a machine that is bound to one, if one is free.
    fn take_cpu(&mut self, plan: &Plan) -> Option<usize> {
        let slot = plan.bind.then(cpu::take).flatten()?;
        self.add(descriptor::CPU_SLOT, slot.holder);
        Some(slot.cpu)
    }

    fn get(&self, number: RawFd) -> Option<&OwnedFd> {
        let mut list = self.list.iter();
        list.find_map(|(given, fd)| (*given == number).then_some(fd))
    }

    /// What the kernel's process may reach. What it is given is not looked up a second time.
    fn rules(&self, plan: &Plan) -> Result<Vec<Rule>> {
        let rule = |need: &Need| {
            let given = need.descriptor.and_then(|number| self.get(number));
            let file = match given {
                Some(given) => dup(given.as_fd())?,
                None => open_path(&need.path)?,
            };
            let reach = need.reach;
            Ok(Rule { file, reach })
        };
        let mut rules: Vec<Rule> = plan.needs().iter().map(rule).collect::<Result<_>>()?;
        if let Some(memory) = self.get(descriptor::MEMORY) {
            rules.push(Rule {
                file: dup(memory.as_fd())?,
                reach: Reach::Write,
            });
        }
        Ok(rules)
    }

    /// The directories below which attributes may be changed.
    fn writable(&self, plan: &Plan) -> Result<Vec<Writable>> {
        let needs = plan.needs();
        let numbers = needs
            .iter()
            .filter(|need| need.reach == Reach::Write)
            .filter_map(|need| need.descriptor);
        numbers
            .filter_map(|number| Some((number, self.get(number)?)))
            .map(|(number, directory)| Ok((number, dup(directory.as_fd())?)))
            .collect()
    }
}

fn memfd(pieces: &[Cow<[u8]>]) -> Result<OwnedFd> {
    let failed = "keep the initramfs in memory";
    let mut file: File = memfd_create(c"apppot-initramfs", MFdFlags::MFD_CLOEXEC)
        .map_err(Error::system(failed))?
        .into();
    for piece in pieces {
        file.write_all(piece).map_err(Error::system(failed))?;
    }
    Ok(file.into())
}

fn dup(fd: BorrowedFd) -> Result<OwnedFd> {
    fd.try_clone_to_owned()
        .map_err(Error::system("copy a descriptor"))
}

impl Machine for UmlMachine {
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
        Ok(status.map(end))
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

/// A guest's panic is an abort of the kernel's process.
fn end(status: ExitStatus) -> MachineEnd {
    match (status.code(), status.signal()) {
        (Some(0), _) => MachineEnd::PoweredOff,
        (_, Some(libc::SIGABRT)) => MachineEnd::Panicked,
        (Some(code), _) => MachineEnd::Failed(code),
        (None, signal) => MachineEnd::Killed(signal.unwrap_or(0)),
    }
}
