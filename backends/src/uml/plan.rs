//! From a specification to everything that is needed to start a UML kernel, as data.
//!
//! Making a plan changes nothing on the host. [`super::machine`] carries it out.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use apppot_contract::{cmdline, Channel, Mount, Root, Stdin, Writes as GuestWrites};

use super::arguments::{self, descriptor, device};
use super::kernel::{self, Has, Kernel};
use super::{cow, Uml};
use crate::capabilities;
use crate::containment::Reach;
use crate::image::{Image, ImageKind};
use crate::initramfs::Pieces;
use crate::limits;
use crate::process::descriptor_path;
use crate::spec::{Changes, Containment, MachineSpec, Seccomp, Share, Writes};
use crate::{Error, Hypervisor, Rendered, Result};

/// What a UML kernel is started with.
#[derive(Debug)]
pub(super) struct Plan {
    /// The kernel.
    pub(super) kernel: Kernel,
    /// Its command line, a word each.
    pub(super) args: Vec<OsString>,
    /// The image.
    pub(super) image: Image,
    /// What becomes of writes.
    pub(super) writes: Writes,
    /// Changes archives, in the order of their descriptors.
    pub(super) changes: Vec<Changes>,
    /// Shared directories, in the order of their descriptors.
    pub(super) shares: Vec<Share>,
    /// The initramfs.
    pub(super) initramfs: Pieces,
    /// Guest memory, bytes.
    pub(super) memory: u64,
    /// Whether standard input goes through a ring.
    pub(super) ring: bool,
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
        arguments::check_extra(&spec.extra)?;
        limits::check_memory(spec.memory)?;
        limits::check_open_files(descriptor::OWN + spec.changes.len() + spec.shares.len())?;
        if let Writes::Overlay(path) = &spec.writes {
            cow::examine(path, &spec.image.path)?;
        }
        let kernel = Kernel::find(spec.kernel.as_deref())?;
        let modules = modules(&kernel, spec)?;
        let ring = spec.contract.stdin == Stdin::Link && spec.contract.terminal.is_none();
        let mut words = kernel_words(&kernel, spec)?;
        if ring {
            words.push(arguments::ring());
        }
        words.extend((0..spec.changes.len()).map(arguments::changes));
        let mut words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        words.extend(spec.extra.iter().cloned());
        let room = arguments::COMMAND_LINE_SIZE
            .saturating_sub(arguments::length(&words))
            .saturating_sub(KERNELS_OWN_WORDS);
        let contract = complete(spec, ring);
        let encoded = cmdline::encode(&contract, room, backend.capabilities().carrier)?;
        words.extend(encoded.words.into_iter().map(OsString::from));
        Ok(Plan {
            args: words,
            image: spec.image.clone(),
            writes: spec.writes.clone(),
            changes: spec.changes.clone(),
            shares: spec.shares.clone(),
            initramfs: crate::initramfs::build(spec.agent.clone(), modules),
            memory: spec.memory,
            ring,
            bind: spec.cpus == 1,
            document: encoded.document,
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
            descriptors: self.descriptors(),
            environment: self.environment(),
            containment: confined.then(|| self.needs().iter().map(Need::to_string).collect()),
            document: self.document.clone(),
        }
    }

    /// The kernel's environment: where it makes the file for its memory.
    #[allow(clippy::unused_self)] // The plan is the one place to ask.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        vec![(String::from("TMPDIR"), descriptor_path(descriptor::MEMORY))]
    }

    /// What stands behind the descriptors' numbers.
    fn descriptors(&self) -> Vec<(i32, String)> {
        let shown = |path: &Path| path.display().to_string();
        let mut list = vec![
            (descriptor::LINK, String::from("link (socketpair)")),
            (
                descriptor::INITRAMFS,
                format!(
                    "initramfs ({} bytes in memory)",
                    self.initramfs
                        .iter()
                        .map(|piece| piece.len())
                        .sum::<usize>()
                ),
            ),
            (descriptor::ROOT, shown(&self.image.path)),
        ];
        if let Writes::Overlay(path) = &self.writes {
            list.push((descriptor::OVERLAY, shown(path)));
        }
        if self.ring {
            list.push((
                descriptor::RING,
                String::from("standard input (ring in memory)"),
            ));
        }
        list.push((
            descriptor::MEMORY,
            String::from("private directory for guest memory"),
        ));
        for (number, changes) in (descriptor::CHANGES..).zip(&self.changes) {
            list.push((number, shown(&changes.path)));
        }
        for (number, share) in (descriptor::SHARES..).zip(&self.shares) {
            list.push((number, shown(&share.host)));
        }
        list
    }

    /// What the kernel's process may reach, apart from memfds, which Landlock does not govern, and the
    /// directory for guest memory, which has no name.
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
        // The kernel tries at boot what its terminals can do.
        for device in ["/dev/null", "/dev/ptmx", "/dev/pts"] {
            named(Path::new(device), Reach::Write);
        }
        let mut given = |number, path: &Path, writes| needs.push(Need::given(number, path, writes));
        let writes_image = self.writes == Writes::Image;
        given(descriptor::ROOT, &self.image.path, writes_image);
        if let Writes::Overlay(path) = &self.writes {
            given(descriptor::OVERLAY, path, true);
        }
        for (number, changes) in (descriptor::CHANGES..).zip(&self.changes) {
            given(number, &changes.path, false);
        }
        for (number, share) in (descriptor::SHARES..).zip(&self.shares) {
            given(number, &share.host, !share.read_only);
        }
        needs
    }
}

/// A file or directory that the kernel's process needs.
#[derive(Debug)]
pub(super) struct Need {
    /// The number of its descriptor, when it is given one; else it is opened by its path.
    pub(super) descriptor: Option<RawFd>,
    /// Its path.
    pub(super) path: PathBuf,
    /// What for.
    pub(super) reach: Reach,
}

impl Need {
    fn named(path: &Path, reach: Reach) -> Self {
        Need {
            descriptor: None,
            path: path.to_owned(),
            reach,
        }
    }

    fn given(number: RawFd, path: &Path, writes: bool) -> Self {
        Need {
            descriptor: Some(number),
            path: path.to_owned(),
            reach: if writes { Reach::Write } else { Reach::Read },
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.reach, self.path.display())
    }
}

/// What the kernel adds to its command line by itself (`root=98:0 console=tty0`), with some room.
const KERNELS_OWN_WORDS: usize = 64;

/// Opens `path` to name it, not to read it.
pub(super) fn open_path(path: &Path) -> Result<std::os::fd::OwnedFd> {
    use nix::fcntl::{open, OFlag};
    open(
        path,
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .map_err(|errno| Error::file("open", path)(errno.into()))
}

/// The command line but for the ring, the user's words and the contract.
fn kernel_words(kernel: &Kernel, spec: &MachineSpec) -> Result<Vec<String>> {
    let mut words = vec![
        arguments::memory(spec.memory),
        arguments::initramfs(),
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
    }
}

/// The modules that the guest needs before it has its root, by name and content.
fn modules(kernel: &Kernel, spec: &MachineSpec) -> Result<Vec<(String, Vec<u8>)>> {
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
    crate::modules::resolve(&directory, &wanted)?
        .iter()
        .map(|path| {
            let content = std::fs::read(path).map_err(Error::file("read kernel module", path))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok((name.into_owned(), content))
        })
        .collect()
}

/// The contract with the guest's half of what this backend provides.
fn complete(spec: &MachineSpec, ring: bool) -> apppot_contract::Contract {
    let mut contract = spec.contract.clone();
    contract.link = Some(PathBuf::from(device::LINK));
    contract.root = Some(root(spec));
    let archives = spec.changes.iter().enumerate();
    contract.changes = archives
        .map(|(index, changes)| apppot_contract::Changes {
            source: arguments::changes_device(index).into(),
            any_base: changes.any_base,
        })
        .collect();
    contract.mounts = (descriptor::SHARES..)
        .zip(&spec.shares)
        .map(|(number, share)| Mount {
            channel: Channel::Hostfs,
            source: descriptor_path(number).into(),
            target: share.guest.clone(),
            read_only: share.read_only,
        })
        .collect();
    if ring {
        contract.stdin = Stdin::Ring(PathBuf::from(device::RING));
    }
    contract
}

fn root(spec: &MachineSpec) -> Root {
    let writes = match spec.writes {
        Writes::Memory => GuestWrites::Memory,
        Writes::Overlay(_) | Writes::Image => GuestWrites::Device,
    };
    match spec.image.filesystem {
        None => Root {
            filesystem: String::from("hostfs"),
            source: descriptor_path(descriptor::ROOT).into(),
            writes,
        },
        Some(filesystem) => {
            let partition = spec.image.partition.map(|number| number.to_string());
            let device = format!("{}{}", device::ROOT, partition.unwrap_or_default());
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
