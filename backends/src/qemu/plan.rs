//! From a specification to everything that is needed to start QEMU, as data.
//!
//! Making a plan changes nothing on the host. [`super::machine`] carries it out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use apppot_contract::Channel;

use super::arguments::{self, descriptor, Bus};
use super::firmware::{self, Start};
use super::guest::{self, device, drivers, live, Boot};
use super::kvm::{self, Accelerator};
use super::overlay::QCOW2;
use super::program::Program;
use super::virtiofs::Virtiofsd;
use super::Qemu;
use crate::capabilities;
use crate::containment::Reach;
use crate::descriptors::{self, number, Given, Need};
use crate::image::ImageKind;
use crate::limits;
use crate::network::Passt;
use crate::spec::{Containment, MachineSpec, Network, Share, Writes};
use crate::{Hypervisor, Rendered, Result};

/// What QEMU is started with.
#[derive(Debug)]
pub(super) struct Plan {
    /// QEMU.
    pub(super) program: Program,
    /// What executes the guest.
    pub(super) accelerator: Accelerator,
    /// What starts the guest.
    pub(super) start: Start,
    /// The contract's document for fw_cfg, where firmware starts the guest.
    pub(super) contract: Option<String>,
    /// The image below a copy-on-write file without a name, where firmware starts a guest whose writes are
    /// to vanish: what mounts the root may be the image's own.
    pub(super) vanishing: Option<PathBuf>,
    /// QEMU's arguments.
    pub(super) args: Vec<OsString>,
    /// The files that it is given.
    pub(super) given: Given,
    /// The helper that has the network's sockets.
    pub(super) passt: Option<Passt>,
    /// What serves directories to the guest, and which, when QEMU does not do that itself.
    pub(super) virtiofs: Option<(Virtiofsd, Vec<Share>)>,
    /// Whether standard input goes through a ring.
    pub(super) ring: bool,
    /// Whether the job's files come through a ring.
    pub(super) files_ring: bool,
    /// The contract's document, when it goes by the link.
    pub(super) document: Option<String>,
    /// Whether the process is confined.
    pub(super) containment: Containment,
}

impl Plan {
    /// Makes the plan.
    ///
    /// # Errors
    /// The specification asks for something that the backend, the kernel or the host does not have.
    pub(super) fn make(backend: &Qemu, spec: &MachineSpec) -> Result<Self> {
        capabilities::check(backend.name(), &backend.capabilities(), spec)?;
        limits::check_memory(spec.memory)?;
        descriptors::check_limit(spec)?;
        if let Writes::Overlay(path) = &spec.writes {
            QCOW2.examine(path, &spec.image.path)?;
        }
        let program = Program::find()?;
        let start = Start::find(spec, &drivers(spec))?;
        let virtiofs = match live(spec) {
            Channel::Virtiofs => Some(Virtiofsd::for_shares(backend.name(), &spec.shares)?),
            _ => None,
        };
        Self::with(backend, spec, program, start, kvm::accelerator(), virtiofs)
    }

    /// The plan for what has been found on the host.
    fn with(
        backend: &Qemu,
        spec: &MachineSpec,
        program: Program,
        start: Start,
        accelerator: Accelerator,
        virtiofs: Option<Virtiofsd>,
    ) -> Result<Self> {
        let can = backend.capabilities();
        let Boot {
            modules,
            line,
            contract,
        } = Boot::of(spec, &start, &can)?;
        let passt = Passt::plan(spec.network)?;
        let mut given = Given::new(spec, modules);
        match start.kernel() {
            Some(kernel) => kernel.check_memory(spec.memory, given.initramfs_len())?,
            None => drop(given.take_initramfs()),
        }
        let vanishes = start.kernel().is_none() && spec.writes == Writes::Memory;
        Ok(Plan {
            args: args(spec, &start, &accelerator, &line.words),
            program,
            accelerator,
            start,
            contract,
            vanishing: vanishes.then(|| spec.image.path.clone()),
            virtiofs: virtiofs.map(|program| (program, given.take_shares())),
            given,
            passt,
            ring: spec.has_ring(),
            files_ring: spec.has_files_ring(),
            document: line.document,
            containment: spec.containment,
        })
    }

    /// The plan for people.
    pub(super) fn render(&self, backend: &'static str) -> Rendered {
        let confined = self.containment != Containment::Off;
        Rendered {
            backend,
            argv: crate::process::shown(self.program.path.as_os_str(), &self.args),
            domain: None,
            helpers: self.helpers(),
            descriptors: self.descriptors(),
            environment: Vec::new(),
            containment: confined.then(|| self.needs().iter().map(Need::to_string).collect()),
            document: self.document.clone().or(self.contract.clone()),
        }
    }

    /// What runs beside QEMU, for people.
    fn helpers(&self) -> Vec<Vec<String>> {
        let serving = self.virtiofs.iter().flat_map(|(program, shares)| {
            let shown = |share| program.shown(share);
            shares.iter().map(shown)
        });
        let passt = self.passt.iter().map(Passt::shown);
        passt.chain(serving).collect()
    }

    /// What stands behind the descriptors' numbers.
    fn descriptors(&self) -> Vec<(i32, String)> {
        let mut own = vec![(descriptor::MONITOR, "monitor (socketpair)")];
        if self.ring {
            own.push((descriptor::RING, "standard input (ring in memory)"));
        }
        if self.files_ring {
            own.push((descriptor::FILES_RING, "the job's files (ring in memory)"));
        }
        if self.passt.is_some() {
            own.push((number::NETWORK, "network (socketpair)"));
        }
        let shares = self.virtiofs.iter().flat_map(|(_, shares)| shares);
        let served: Vec<String> = shares
            .map(|share| format!("{} (socket of virtiofsd)", share.host.display()))
            .collect();
        own.extend((number::SHARES..).zip(served.iter().map(String::as_str)));
        if self.contract.is_some() {
            own.push((descriptor::CONTRACT, "contract (in memory)"));
        }
        if self.vanishing.is_some() {
            own.push((number::OVERLAY, VANISHING));
        }
        if matches!(self.start, Start::Uefi(_)) {
            own.push((descriptor::VARIABLES, "firmware's variables (in memory)"));
        }
        self.given.describe(own)
    }

    /// What QEMU's process may reach, apart from memfds and pipes, which Landlock does not govern.
    pub(super) fn needs(&self) -> Vec<Need> {
        let mut needs: Vec<Need> = self
            .program
            .installed()
            .iter()
            .map(|path| Need::named(path, Reach::Execute))
            .collect();
        let mut named = |path: &Path, reach| needs.push(Need::named(path, reach));
        if let Some(path) = self.start.path() {
            named(path, Reach::Read);
        }
        named(Path::new("/dev/urandom"), Reach::Read);
        named(Path::new("/proc/self"), Reach::Read);
        named(Path::new("/dev/null"), Reach::Write);
        if self.accelerator.is_kvm() {
            named(Path::new("/dev/kvm"), Reach::Write);
        }
        if self.vanishing.is_some() {
            needs.push(Need::given(number::OVERLAY, Path::new(VANISHING), true));
        }
        needs.extend(self.given.needs());
        needs
    }
}

/// A file without a name, for people.
const VANISHING: &str = "(what the guest writes, in a file without a name)";

/// QEMU's arguments.
fn args(
    spec: &MachineSpec,
    start: &Start,
    accelerator: &Accelerator,
    line: &[OsString],
) -> Vec<OsString> {
    let mut args = arguments::nothing_else();
    args.extend(arguments::sandbox());
    args.extend(arguments::machine(accelerator));
    args.extend(arguments::cpu(accelerator));
    args.extend(arguments::cpus(spec.cpus));
    args.extend(arguments::memory(spec.memory));
    if live(spec) == Channel::Virtiofs {
        args.extend(arguments::shared_memory(spec.memory));
    }
    args.push(arguments::no_reboot());
    args.extend(match start {
        Start::Kernel(kernel) => arguments::boot(&kernel.path, line.join(" ".as_ref())),
        Start::Bios => firmware::contract_arguments(),
        Start::Uefi(ovmf) => [ovmf.arguments(), firmware::contract_arguments()].concat(),
    });
    args.extend(arguments::console());
    args.extend(arguments::monitor());
    let mut bus = Bus::default();
    args.extend(bus.link());
    args.extend(bus.random());
    let overlay = match spec.writes {
        Writes::Overlay(_) => true,
        Writes::Memory => start.kernel().is_none(),
        Writes::Image => false,
    };
    let writable = spec.writes == Writes::Image;
    args.extend(match spec.image.kind {
        ImageKind::Directory => bus.share(device::ROOT_TAG, number::ROOT, !writable),
        _ => bus.root(writable, overlay, start.kernel().is_none()),
    });
    for index in 0..spec.changes.len() {
        args.extend(bus.changes(index));
    }
    if spec.has_ring() {
        args.extend(bus.ring());
    }
    if spec.has_files_ring() {
        args.extend(bus.files_ring());
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        args.extend(bus.further_disk(index, disk.writable));
    }
    if spec.network != Network::None {
        args.extend(bus.network());
    }
    for (index, share) in spec.shares.iter().enumerate() {
        let number = number::SHARES + index as i32;
        let tag = guest::share_tag(index);
        args.extend(match live(spec) {
            Channel::Virtiofs => bus.served_share(&tag, number),
            _ => bus.share(&tag, number, share.read_only),
        });
    }
    args
}

#[cfg(test)]
pub(crate) mod tests;
