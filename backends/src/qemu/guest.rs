//! What is in a guest's machine, and what the guest calls it: the same for every backend whose machines are
//! QEMU's.

use std::ops::Range;

use apppot_contract::cmdline::Carrier;
use apppot_contract::Channel;

use super::firmware::{self, Start};
use crate::descriptors::{MAX_CHANGES, MAX_DISKS, MAX_SHARES};
use crate::guest::Names;
use crate::image::ImageKind;
use crate::kernel_line::KernelLine;
use crate::spec::{MachineSpec, Network, Writes};
use crate::{modules, Capabilities, Result};

/// What machines of QEMU's can be.
pub(crate) const CAPABILITIES: Capabilities = Capabilities {
    // `COMMAND_LINE_SIZE` in arch/x86/include/asm/setup.h.
    command_line: 2048,
    carrier: Some(Carrier::Link),
    channels: &[
        Channel::NineP,
        Channel::Virtiofs,
        Channel::Link,
        Channel::Disk,
    ],
    images: &[
        ImageKind::Partition,
        ImageKind::Disk,
        ImageKind::ReadOnly,
        ImageKind::Directory,
    ],
    overlay_files: &[ImageKind::Partition, ImageKind::Disk],
    writable: &[ImageKind::Partition, ImageKind::Disk, ImageKind::Directory],
    changes: MAX_CHANGES,
    shares: MAX_SHARES,
    disks: MAX_DISKS,
    firmware: true,
    user_network: true,
    seccomp: false,
    // Beyond 255 the machine needs an interrupt remapper.
    cpus: 255,
    managed: false,
};

/// The drivers that every machine needs, as modules are called: the bus, the link, shares.
pub const ALWAYS: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "virtio-rng",
];

/// How directories are shared. The root directory is always by 9P, which shows whose the files are.
pub(crate) fn live(spec: &MachineSpec) -> Channel {
    let channel = spec.live.filter(|_| !spec.shares.is_empty());
    channel.unwrap_or(Channel::NineP)
}

/// The drivers that this machine needs.
pub(crate) fn drivers(spec: &MachineSpec) -> Vec<&'static str> {
    let mut drivers = ALWAYS.to_vec();
    if !Disks::of(spec).is_empty() {
        drivers.push("virtio_blk");
    }
    if spec.network != Network::None {
        drivers.push("virtio_net");
    }
    if live(spec) == Channel::Virtiofs {
        drivers.push("virtiofs");
    }
    drivers.extend(spec.image.filesystem);
    if spec.writes == Writes::Memory {
        drivers.push("overlay");
    }
    drivers
}

/// What the guest starts with: by our kernel, or by what the image itself has.
pub(crate) struct Boot {
    /// Modules for the initramfs: names and contents.
    pub(crate) modules: Vec<(String, Vec<u8>)>,
    /// The kernel command line.
    pub(crate) line: KernelLine,
    /// The contract's document for fw_cfg, where firmware starts the guest.
    pub(crate) contract: Option<String>,
}

impl Boot {
    /// # Errors
    /// A driver is missing or cannot be read, or the contract is too long for its carrier.
    pub(crate) fn of(spec: &MachineSpec, start: &Start, can: &Capabilities) -> Result<Self> {
        let mut contract = names(spec).complete(spec);
        let Some(kernel) = start.kernel() else {
            // The image's boot loader says which root.
            contract.root = None;
            return Ok(Boot {
                modules: Vec::new(),
                line: KernelLine::default(),
                contract: Some(firmware::document(&contract)?),
            });
        };
        Ok(Boot {
            modules: modules::read(&kernel.modules(&drivers(spec))?)?,
            line: KernelLine::make(kernel_words(spec), spec, &contract, can, 1)?,
            contract: None,
        })
    }
}

/// The guest's names of the disks, in their order on the bus.
#[derive(Debug)]
pub(crate) struct Disks {
    image: Option<usize>,
    changes: Range<usize>,
    ring: Option<usize>,
    files_ring: Option<usize>,
    further: Range<usize>,
}

impl Disks {
    pub(crate) fn of(spec: &MachineSpec) -> Self {
        let mut next = 0;
        let mut take = |count: usize| {
            next += count;
            next - count..next
        };
        Disks {
            image: take(usize::from(spec.image.kind != ImageKind::Directory)).next(),
            changes: take(spec.changes.len()),
            ring: take(usize::from(spec.has_ring())).next(),
            files_ring: take(usize::from(spec.has_files_ring())).next(),
            further: take(spec.disks.len()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.further.end == 0
    }
}

/// The kernel command line but for the user's words and the contract.
fn kernel_words(spec: &MachineSpec) -> Vec<String> {
    let mut words = vec![
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
        // Else loading modules and mounting wait for timer ticks.
        "rcupdate.rcu_expedited=1",
        // Where the processor is translated and the host busy, ticks come too late for the kernel's test of
        // its timer, and it panics: "IO-APIC + timer doesn't work!".
        "no_timer_check",
    ];
    if spec.network != Network::None {
        // The interface keeps the kernel's name for it, also where an image's own init would change it.
        words.push("net.ifnames=0");
    }
    words.into_iter().map(String::from).collect()
}

/// What the guest calls what this backend provides.
fn names(spec: &MachineSpec) -> Names {
    let disks = Disks::of(spec);
    Names {
        link: device::LINK,
        image: disk(disks.image.unwrap_or_default()),
        directory: (Channel::NineP, device::ROOT_TAG.to_owned()),
        changes: disks.changes.map(disk).collect(),
        live: live(spec),
        shares: (0..spec.shares.len()).map(share_tag).collect(),
        ring: disks.ring.map(disk),
        files_ring: disks.files_ring.map(disk),
        network: device::NETWORK,
    }
}

/// What the guest calls these.
pub(crate) mod device {
    /// The link: the first port of the first virtio-serial device.
    pub(crate) const LINK: &str = "/dev/vport0p1";
    /// The network: the only interface.
    pub(crate) const NETWORK: &str = "eth0";
    /// The tag of the directory that is the root.
    pub(crate) const ROOT_TAG: &str = "root";
}

/// What the guest calls the virtio disk of that number. There are the image, unless it is a directory,
/// the changes archives, the rings and further disks, in this order: fewer than letters.
pub(crate) fn disk(index: usize) -> String {
    let letter = char::from(b'a' + index.min(25) as u8);
    format!("/dev/vd{letter}")
}

/// The tag of a shared directory.
pub(crate) fn share_tag(index: usize) -> String {
    format!("share{index}")
}
