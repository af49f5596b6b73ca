//! From a specification to everything that is needed to start a UML kernel, as data.
//!
//! Making a plan changes nothing on the host. [`super::machine`] carries it out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use apppot_contract::Channel;

use super::arguments::{self, descriptor, device};
use super::kernel::{self, Has, Kernel};
use super::memory::Memory;
use super::{cow, Uml};
use crate::capabilities;
use crate::containment::Reach;
use crate::descriptors::{self, number, Given, Need};
use crate::guest::Names;
use crate::image::ImageKind;
use crate::kernel_line::KernelLine;
use crate::limits;
use crate::modules;
use crate::network::Passt;
use crate::process::descriptor_path;
use crate::spec::{Containment, MachineSpec, Seccomp, Writes};
use crate::{Error, Hypervisor, Rendered, Result};

/// What a UML kernel is started with.
#[derive(Debug)]
pub(super) struct Plan {
    /// The kernel.
    pub(super) kernel: Kernel,
    /// Its command line, a word each.
    pub(super) args: Vec<OsString>,
    /// The files that it is given.
    pub(super) given: Given,
    /// Guest memory.
    pub(super) memory: Memory,
    /// The helper that has the network's sockets.
    pub(super) passt: Option<Passt>,
    /// Whether standard input goes through a ring.
    pub(super) ring: bool,
    /// Whether the job's files come through a ring.
    pub(super) files_ring: bool,
    /// Whether the machine is bound to one host CPU.
    pub(super) bind: bool,
    /// The contract's document, when it goes by the link.
    pub(super) document: Option<String>,
    /// Whether the process is confined.
    pub(super) containment: Containment,
    /// Files that the kernel is linked with.
    pub(super) libraries: Vec<PathBuf>,
}

impl Plan {
    /// Makes the plan.
    ///
    /// # Errors
    /// The specification asks for something that the backend, the kernel or the host does not have.
    pub(super) fn make(backend: &Uml, spec: &MachineSpec) -> Result<Self> {
        capabilities::check(backend.name(), &backend.capabilities(), spec)?;
        limits::check_memory(spec.memory)?;
        descriptors::check_limit(spec)?;
        if let Writes::Overlay(path) = &spec.writes {
            cow::COW.examine(path, &spec.image.path)?;
        }
        let kernel = Kernel::find(spec.kernel.as_deref())?;
        let mut given = Given::new(spec, needed_modules(&kernel, spec)?);
        let memory = Memory::new(&kernel, spec.memory, &mut given);
        let passt = Passt::plan(spec.network)?;
        if passt.is_some() && kernel.has("UML_NET_VECTOR") != Has::BuiltIn {
            return Err(lacks(&kernel, "network interface (UML_NET_VECTOR)"));
        }
        let (ring, files_ring) = (spec.has_ring(), spec.has_files_ring());
        let mut words = memory.words();
        words.extend(kernel_words(&kernel, spec)?);
        words.extend(disk_words(spec, ring, files_ring));
        words.extend(passt.as_ref().map(|_| arguments::network()));
        let contract = names(spec).complete(spec);
        let can = backend.capabilities();
        let line = KernelLine::make(words, spec, &contract, &can, KERNELS_OWN_WORDS)?;
        Ok(Plan {
            args: line.words,
            given,
            memory,
            passt,
            ring,
            files_ring,
            bind: spec.cpus == 1,
            document: line.document,
            containment: spec.containment,
            libraries: kernel.libraries()?,
            kernel,
        })
    }

    /// The plan for people.
    pub(super) fn render(&self, backend: &'static str) -> Rendered {
        let confined = self.containment != Containment::Off;
        Rendered {
            backend,
            argv: crate::process::shown(self.kernel.path.as_os_str(), &self.args),
            domain: None,
            helpers: self.passt.iter().map(Passt::shown).collect(),
            descriptors: self.descriptors(),
            environment: self.memory.environment(),
            containment: confined.then(|| self.needs().iter().map(Need::to_string).collect()),
            document: self.document.clone(),
        }
    }

    /// What stands behind the descriptors' numbers.
    fn descriptors(&self) -> Vec<(i32, String)> {
        let mut own = vec![(descriptor::MEMORY, self.memory.shown())];
        if self.ring {
            own.push((descriptor::RING, "standard input (ring in memory)"));
        }
        if self.files_ring {
            own.push((descriptor::FILES_RING, "the job's files (ring in memory)"));
        }
        if self.passt.is_some() {
            own.push((number::NETWORK, "network (socketpair)"));
        }
        self.given.describe(own)
    }

    /// What the kernel's process may reach, apart from memfds, which Landlock does not govern, and guest
    /// memory, which has no name.
    pub(super) fn needs(&self) -> Vec<Need> {
        let mut needs = Vec::new();
        let mut named = |path: &Path, reach| needs.push(Need::named(path, reach));
        named(&self.kernel.path, Reach::Execute);
        for library in &self.libraries {
            named(library, Reach::Execute);
        }
        let cache = Path::new("/etc/ld.so.cache");
        if !self.libraries.is_empty() && cache.exists() {
            named(cache, Reach::Read);
        }
        for device in ["/dev/random", "/dev/urandom", "/proc/cpuinfo"] {
            named(Path::new(device), Reach::Read);
        }
        named(Path::new("/dev/null"), Reach::Write);
        needs.extend(self.given.needs());
        needs
    }
}

/// What the kernel adds to its command line by itself (`root=98:0 console=tty0`), with some room.
const KERNELS_OWN_WORDS: usize = 64;

/// Block devices beside the root.
fn disk_words(spec: &MachineSpec, ring: bool, files_ring: bool) -> Vec<String> {
    let changes = spec.changes.len();
    let mut words = Vec::new();
    if ring {
        words.push(arguments::ring());
    }
    words.extend((0..changes).map(arguments::changes));
    if files_ring {
        words.push(arguments::files_ring(changes));
    }
    let disks = spec.disks.iter().enumerate();
    words.extend(disks.map(|(index, disk)| arguments::disk(changes, index, disk.writable)));
    words
}

/// The command line but for memory, disks, the user's words and the contract.
fn kernel_words(kernel: &Kernel, spec: &MachineSpec) -> Result<Vec<String>> {
    let mut words = vec![
        // Only what goes wrong is printed: that is what the user sees when a guest dies.
        String::from("quiet"),
        format!("lpj={}", kernel::loops_per_tick(kernel.ticks())),
        // A reboot would run the job again.
        String::from("noreboot"),
    ];
    words.extend(arguments::lines());
    if kernel.has("MCONSOLE") != Has::No {
        words.extend(arguments::no_management_console());
    }
    if spec.image.kind != ImageKind::Directory {
        words.push(arguments::root(
            spec.writes == Writes::Memory,
            matches!(spec.writes, Writes::Overlay(_)),
        ));
    }
    if kernel.is_ours() && spec.containment != Containment::Off {
        words.push(arguments::hostfs());
    }
    if spec.trim_resident && kernel.is_ours() {
        words.push(String::from("rss_trim=1"));
    }
    let seccomp = spec.seccomp == Seccomp::Auto && kernel.has_seccomp();
    if seccomp {
        words.push(String::from("seccomp=on"));
    }
    if spec.cpus > 1 {
        if !kernel.has_smp() {
            return Err(lacks(kernel, "more than one CPU (SMP)"));
        }
        if !seccomp {
            return Err(lacks(kernel, "more than one CPU without its seccomp mode"));
        }
        words.push(format!("ncpus={}", spec.cpus));
        // Else the boot waits for timer ticks: 99 instead of 42 ms.
        words.push(String::from("rcupdate.rcu_expedited=1"));
    }
    Ok(words)
}

fn lacks(kernel: &Kernel, what: &str) -> Error {
    Error::KernelLacks {
        release: kernel.release.clone(),
        what: what.to_owned(),
        hint: kernel::LACKS_HINT,
    }
}

/// The modules that the guest needs before it has its root, by name and content.
fn needed_modules(kernel: &Kernel, spec: &MachineSpec) -> Result<Vec<(String, Vec<u8>)>> {
    let mut filesystems = vec!["hostfs"];
    filesystems.extend(spec.image.filesystem);
    if spec.writes == Writes::Memory {
        filesystems.push("overlay");
    }
    let mut wanted = Vec::new();
    for filesystem in filesystems {
        let known = kernel::filesystem_option(filesystem);
        let (option, module) =
            known.ok_or_else(|| lacks(kernel, &format!("filesystem '{filesystem}'")))?;
        match kernel.has(option) {
            Has::BuiltIn => {}
            Has::Module => wanted.push(module),
            Has::No => return Err(lacks(kernel, &format!("filesystem '{filesystem}'"))),
        }
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let directory = kernel.modules().ok_or_else(|| {
        lacks(
            kernel,
            &format!("module directory (needed for {})", wanted.join(", ")),
        )
    })?;
    modules::read(&modules::resolve(&directory, &wanted)?)
}

/// What the guest calls what this backend provides.
fn names(spec: &MachineSpec) -> Names {
    let changes = spec.changes.len();
    let shares = (number::SHARES..).zip(&spec.shares);
    Names {
        link: device::LINK,
        image: device::ROOT.to_owned(),
        directory: (Channel::Hostfs, descriptor_path(number::ROOT)),
        changes: (0..changes).map(arguments::changes_device).collect(),
        live: Channel::Hostfs,
        shares: shares.map(|(number, _)| descriptor_path(number)).collect(),
        ring: spec.has_ring().then(|| device::RING.to_owned()),
        files_ring: spec
            .has_files_ring()
            .then(|| arguments::files_ring_device(changes)),
        network: device::NETWORK,
    }
}

#[cfg(test)]
mod tests;
