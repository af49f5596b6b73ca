//! A domain that runs.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Receiver;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;
use virt_sys as sys;

use super::connection::Connection;
use super::events::{self, Listening, News, Watch};
use super::minder::{self, Minder};
use super::network::Network;
use super::patience::{is_asked_to_end, within};
use super::place::{connected, name, Place};
use super::plan::Plan;
use crate::descriptors::Descriptors;
use crate::network::Running;
use crate::process::{self, kill_process, pidfd_open, wait_readable, AtEnd};
use crate::qemu::firmware::Start;
use crate::qemu::overlay::QCOW2;
use crate::qemu::virtiofs::Serving;
use crate::ring::Ring;
use crate::spec::Writes;
use crate::{Error, Facts, Link, Machine, MachineEnd, Result};

/// How long a daemon may take to start a machine; libvirt itself waits for QEMU as long as that.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take to end one: libvirt gives QEMU 15 s before it kills it.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// The machine; dropping it ends it.
#[derive(Debug)]
pub(super) struct Domain {
    handle: Arc<Handle>,
    watch: Arc<Watch>,
    /// QEMU, by its pidfd: where the daemon does not end it.
    process: Option<Arc<OwnedFd>>,
    link: Option<Link>,
    console: Option<File>,
    facts: Facts,
    /// Ends it when this process is killed, should the daemon not.
    at_end: AtEnd,
    /// The files' locks.
    _files: Descriptors,
    /// These end after it.
    helpers: Helpers,
    /// What it ends with.
    _connection: Arc<Connection>,
}

/// What is beside QEMU.
#[derive(Debug, Default)]
struct Helpers {
    _network: Option<Running>,
    _serving: Vec<Serving>,
}

impl Domain {
    /// Carries out `plan`. The machine ends with `connection`.
    ///
    /// # Errors
    /// Something that the plan names is gone or in use, or libvirt does not start it.
    pub(super) fn start(plan: Plan, connection: Arc<Connection>) -> Result<Self> {
        let left = plan.place.clone();
        let at_end = process::at_end(move || {
            // There only when the launcher was killed meanwhile.
            let _ = std::fs::remove_dir_all(left);
        })
        .map_err(Error::system("start the watch over the machine"))?;
        let files = Descriptors::open(&plan.given, &QCOW2)?;
        let place = Place::make(&plan.place)?;
        let mut ours = Ours::make(&plan, &place)?;
        let network = ours.network.as_ref();
        let described = plan.describe(network.map_or(Ok(0), Network::port)?)?;
        for (name, target) in &described.links {
            place.link(name, target)?;
        }
        // From here on there are threads.
        events::start_loop()?;
        let (watch, news) = Watch::new(&plan.uuid)?;
        let listening = minder::listen(&connection.uri, &watch)?;
        let id = &plan.spec.contract.id;
        // From here on what is dropped ends the domain.
        let mut domain = Domain {
            handle: Arc::new(create(&connection, id, described.xml)?),
            watch,
            process: None,
            link: None,
            console: None,
            facts: plan.facts(),
            at_end,
            _files: files,
            helpers: std::mem::take(&mut ours.helpers),
            _connection: Arc::clone(&connection),
        };
        let stream = domain.attach(&mut ours, (listening, news), connection)?;
        plan.check_again()?;
        drop(place);
        domain.link = Some(Link {
            stream,
            document: plan.document,
            capacity: None,
            ring: ours.ring,
            files_ring: ours.files_ring,
        });
        Ok(domain)
    }

    /// Takes what QEMU has connected to, and minds it from now on; the link.
    fn attach(
        &mut self,
        ours: &mut Ours,
        (listening, news): (Listening, Receiver<News>),
        connection: Arc<Connection>,
    ) -> Result<UnixStream> {
        let stream = connected(&ours.link)?;
        let process = Arc::new(process_of(&stream)?);
        self.process = Some(Arc::clone(&process));
        let watched = self.at_end.watch_process(process.as_fd());
        watched.map_err(Error::system("watch over the machine"))?;
        Minder {
            listening,
            news,
            watch: Arc::clone(&self.watch),
            domain: Arc::clone(&self.handle),
            process,
            connection,
        }
        .start()?;
        self.console = ours.console()?;
        self.helpers._network = ours.network.take().map(Network::connect).transpose()?;
        Ok(stream)
    }
}

/// Has libvirt start the domain, which ends with the connection.
fn create(connection: &Arc<Connection>, id: &str, xml: String) -> Result<Handle> {
    let creating = Arc::clone(connection);
    let create = move || {
        let flags = sys::VIR_DOMAIN_START_AUTODESTROY;
        Handle::create_xml(creating.handle(), &xml, flags)
    };
    match within(START_PATIENCE, || !is_asked_to_end(), create)? {
        Some(Ok(handle)) => Ok(handle),
        Some(Err(error)) => Err(refused(id, error.message())),
        None if is_asked_to_end() => Err(refused(id, "a signal asked for the end meanwhile")),
        None => Err(refused(id, "its daemon does not answer")),
    }
}

/// Our ends of what QEMU reaches by names in the place, and what is beside it.
struct Ours {
    link: UnixListener,
    console: Option<UnixListener>,
    ring: Option<Ring>,
    files_ring: Option<Ring>,
    network: Option<Network>,
    helpers: Helpers,
}

impl Ours {
    /// Fills the place. Must be called while this process has one thread.
    fn make(plan: &Plan, place: &Place) -> Result<Self> {
        plan.fill(place)?;
        let spec = &plan.spec;
        let serving = plan.serve_shares(place)?;
        Ok(Ours {
            ring: open_ring(place, spec.has_ring(), name::RING)?,
            files_ring: open_ring(place, spec.has_files_ring(), name::FILES_RING)?,
            link: place.listen(name::LINK)?,
            console: match spec.serial_terminal {
                true => None,
                false => Some(place.listen(name::CONSOLE)?),
            },
            network: plan.passt.as_ref().map(Network::start).transpose()?,
            helpers: Helpers {
                _network: None,
                _serving: serving,
            },
        })
    }

    /// The machine's console, once the machine runs.
    fn console(&self) -> Result<Option<File>> {
        let connect = |listener| connected(listener).map(|it| File::from(OwnedFd::from(it)));
        self.console.as_ref().map(connect).transpose()
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
        for (index, disk) in self.spec.disks.iter().enumerate() {
            if let Some(file) = &disk.file {
                place.name(&name::disk(index), file)?;
            }
        }
        Ok(())
    }

    /// Starts what serves directories, each at a socket in the place.
    fn serve_shares(&self, place: &Place) -> Result<Vec<Serving>> {
        let Some(program) = &self.virtiofs else {
            return Ok(Vec::new());
        };
        let mut serving = Vec::new();
        for (index, share) in self.spec.shares.iter().enumerate() {
            let listener = place.listen(&name::share(index))?;
            let words = File::options().write(true).open("/dev/null");
            let words = words.map_err(Error::file("open", "/dev/null"))?;
            let at_end = process::at_end(|| {});
            let at_end = at_end.map_err(Error::system("start the watch over virtiofsd"))?;
            let mode = self.spec.containment;
            serving.push(program.serve_at(listener, share, words.into(), mode, at_end)?);
        }
        Ok(serving)
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

/// The process that has connected, which is QEMU's, by its pidfd.
fn process_of(stream: &UnixStream) -> Result<OwnedFd> {
    let failed = "watch over the machine";
    let peer = getsockopt(stream, PeerCredentials).map_err(Error::system(failed))?;
    let process = pidfd_open(peer.pid() as u32).map_err(Error::system(failed))?;
    // As long as it holds its end, the number has not become somebody else's.
    let mut ends = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut ends, PollTimeout::ZERO).map_err(Error::system(failed))?;
    match ends[0].revents() {
        Some(events) if events.is_empty() => Ok(process),
        _ => Err(Error::system(failed)(std::io::Error::from(
            std::io::ErrorKind::ConnectionReset,
        ))),
    }
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
        let gone = std::io::Error::from(std::io::ErrorKind::NotConnected);
        let process = self.process.as_ref().ok_or(gone);
        let process = process.map_err(Error::system("end the machine: libvirt is gone"))?;
        kill_process(process.as_fd());
        Ok(())
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
        match ended.map_err(Error::system("wait for the machine"))? {
            true => Ok(self.watch.end()),
            false => Ok(None),
        }
    }

    fn ended(&self) -> BorrowedFd<'_> {
        self.watch.ended()
    }

    fn shutdown_requests(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.shutdown_requests())
    }

    fn kill(&mut self) -> Result<()> {
        if self.watch.end().is_some() {
            return Ok(());
        }
        let handle = Arc::clone(&self.handle);
        let destroyed = within(END_PATIENCE, || true, move || handle.destroy());
        match destroyed {
            Ok(Some(Ok(()))) => {}
            // It ends by itself meanwhile.
            Ok(Some(Err(error))) if error.code() == ErrorNumber::NoDomain => {}
            // The daemon is gone, or does not answer, or there is no thread to ask it.
            Ok(Some(Err(_)) | None) | Err(_) => self.kill_process()?,
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
        self.watch.tell(News::Over);
    }
}
