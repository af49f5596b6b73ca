//! From a specification to everything that is needed to start QEMU, as data.
//!
//! Making a plan changes nothing on the host. [`super::machine`] carries it out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use apppot_contract::{Channel, Contract, Mount, Root, Stdin, Writes as GuestWrites};

use super::arguments::{self, descriptor, device, Bus};
use super::kernel::Kernel;
use super::kvm::{self, Accelerator};
use super::overlay::QCOW2;
use super::program::Program;
use super::Qemu;
use crate::capabilities;
use crate::containment::Reach;
use crate::descriptors::{self, number, Given, Need};
use crate::image::ImageKind;
use crate::kernel_line::KernelLine;
use crate::limits;
use crate::modules;
use crate::spec::{Containment, MachineSpec, Writes};
use crate::{Hypervisor, Rendered, Result};

/// What QEMU is started with.
#[derive(Debug)]
pub(super) struct Plan {
    /// QEMU.
    pub(super) program: Program,
    /// What executes the guest.
    pub(super) accelerator: Accelerator,
    /// The guest's kernel.
    pub(super) kernel: Kernel,
    /// QEMU's arguments.
    pub(super) args: Vec<OsString>,
    /// The files that it is given.
    pub(super) given: Given,
    /// Whether standard input goes through a ring.
    pub(super) ring: bool,
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
        let kernel = Kernel::find(spec.kernel.as_deref(), &drivers(spec))?;
        Self::with(backend, spec, program, kernel, kvm::accelerator())
    }

    /// The plan for what has been found on the host.
    fn with(
        backend: &Qemu,
        spec: &MachineSpec,
        program: Program,
        kernel: Kernel,
        accelerator: Accelerator,
    ) -> Result<Self> {
        let can = backend.capabilities();
        let modules = modules::read(&kernel.modules(&drivers(spec))?)?;
        let contract = complete(spec);
        let line = KernelLine::make(kernel_words(), spec, &contract, &can, 1)?;
        Ok(Plan {
            args: args(spec, &kernel, &accelerator, &line.words),
            program,
            accelerator,
            kernel,
            given: Given::new(spec, modules),
            ring: has_ring(spec),
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
            helpers: Vec::new(),
            descriptors: self.descriptors(),
            environment: Vec::new(),
            containment: confined.then(|| self.needs().iter().map(Need::to_string).collect()),
            document: self.document.clone(),
        }
    }

    /// What stands behind the descriptors' numbers.
    fn descriptors(&self) -> Vec<(i32, String)> {
        let mut own = vec![(descriptor::MONITOR, "monitor (socketpair)")];
        if self.ring {
            own.push((descriptor::RING, "standard input (ring in memory)"));
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
        named(&self.kernel.path, Reach::Read);
        named(Path::new("/dev/urandom"), Reach::Read);
        named(Path::new("/proc/self"), Reach::Read);
        named(Path::new("/dev/null"), Reach::Write);
        if self.accelerator.is_kvm() {
            named(Path::new("/dev/kvm"), Reach::Write);
        }
        needs.extend(self.given.needs());
        needs
    }
}

/// The drivers that every machine needs, as modules are called: the bus, the link, shares.
pub const ALWAYS: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "virtio-rng",
];

/// The drivers that this machine needs.
fn drivers(spec: &MachineSpec) -> Vec<&'static str> {
    let mut drivers = ALWAYS.to_vec();
    if first_archive(spec) + spec.changes.len() > 0 || has_ring(spec) {
        drivers.push("virtio_blk");
    }
    drivers.extend(spec.image.filesystem);
    if spec.writes == Writes::Memory {
        drivers.push("overlay");
    }
    drivers
}

/// Whether standard input goes through a ring: a port passes it on 4 KiB at a time.
fn has_ring(spec: &MachineSpec) -> bool {
    spec.contract.stdin == Stdin::Link && spec.contract.terminal.is_none()
}

/// Number of the disk with the first changes archive.
fn first_archive(spec: &MachineSpec) -> usize {
    usize::from(spec.image.kind != ImageKind::Directory)
}

/// The kernel command line but for the user's words and the contract.
fn kernel_words() -> Vec<String> {
    [
        "console=ttyS0",
        // Only what goes wrong is printed: that is what the user sees when a guest dies.
        "quiet",
        // A panic ends the machine at once.
        "panic=-1",
        "reboot=k",
        // Else the boot looks for devices that are not there, and tests what others have tested.
        "8250.nr_uarts=1",
        "i8042.noaux",
        "cryptomgr.notests",
    ]
    .map(String::from)
    .into()
}

/// QEMU's arguments.
fn args(
    spec: &MachineSpec,
    kernel: &Kernel,
    accelerator: &Accelerator,
    line: &[OsString],
) -> Vec<OsString> {
    let mut args = arguments::nothing_else();
    args.extend(arguments::sandbox());
    args.extend(arguments::machine(accelerator));
    args.extend(arguments::cpu(accelerator));
    args.extend(arguments::cpus(spec.cpus));
    args.extend(arguments::memory(spec.memory));
    args.push(arguments::no_reboot());
    args.extend(arguments::boot(&kernel.path, line.join(" ".as_ref())));
    args.extend(arguments::console());
    args.extend(arguments::monitor());
    let mut bus = Bus::default();
    args.extend(bus.link());
    args.extend(bus.random());
    let overlay = matches!(spec.writes, Writes::Overlay(_));
    let writable = spec.writes == Writes::Image;
    args.extend(match spec.image.kind {
        ImageKind::Directory => bus.share(device::ROOT_TAG, number::ROOT, !writable),
        _ => bus.root(writable, overlay),
    });
    for index in 0..spec.changes.len() {
        args.extend(bus.changes(index));
    }
    if has_ring(spec) {
        args.extend(bus.ring());
    }
    for (index, share) in spec.shares.iter().enumerate() {
        let number = number::SHARES + index as i32;
        args.extend(bus.share(&arguments::share_tag(index), number, share.read_only));
    }
    args
}

/// The contract with the guest's half of what this backend provides.
fn complete(spec: &MachineSpec) -> Contract {
    let mut contract = spec.contract.clone();
    contract.link = Some(PathBuf::from(device::LINK));
    contract.root = Some(root(spec));
    let archives = spec.changes.iter().enumerate();
    contract.changes = archives
        .map(|(index, changes)| apppot_contract::Changes {
            source: arguments::disk(first_archive(spec) + index).into(),
            any_base: changes.any_base,
        })
        .collect();
    if has_ring(spec) {
        let number = first_archive(spec) + spec.changes.len();
        contract.stdin = Stdin::Ring(arguments::disk(number).into());
    }
    let shares = spec.shares.iter().enumerate();
    contract.mounts = shares
        .map(|(index, share)| Mount {
            channel: Channel::NineP,
            source: arguments::share_tag(index).into(),
            target: share.guest.clone(),
            read_only: share.read_only,
        })
        .collect();
    contract
}

fn root(spec: &MachineSpec) -> Root {
    let writes = match spec.writes {
        Writes::Memory => GuestWrites::Memory,
        Writes::Overlay(_) | Writes::Image => GuestWrites::Device,
    };
    match spec.image.filesystem {
        None => Root {
            filesystem: Channel::NineP.word().to_owned(),
            source: device::ROOT_TAG.into(),
            writes,
        },
        Some(filesystem) => {
            let partition = spec.image.partition.map(|number| number.to_string());
            let device = format!("{}{}", arguments::disk(0), partition.unwrap_or_default());
            Root {
                filesystem: filesystem.to_owned(),
                source: device.into(),
                writes,
            }
        }
    }
}

#[cfg(test)]
mod tests;
