//! The domain's XML (<https://libvirt.org/formatdomain.html>), one function a part. Pure.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use apppot_contract::Channel;

use super::place::{name, seen_by_others};
use super::xml::{document, empty, is_carried, nested, text, Xml};
use crate::image::ImageKind;
use crate::network::{mac, GUEST_MAC};
use crate::qemu::firmware::{Start, ITEM};
use crate::qemu::guest::{device, live, share_tag};
use crate::qemu::kvm::Accelerator;
use crate::spec::{MachineSpec, Network, Writes};

/// The namespace of what AppPot says of a domain.
const NAMESPACE: &str = "https://github.com/apppot/apppot/libvirt/1";

/// What a domain is made of, beside its specification.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    /// The machine.
    pub(super) spec: &'a MachineSpec,
    /// What starts it.
    pub(super) start: &'a Start,
    /// What executes the guest.
    pub(super) accelerator: &'a Accelerator,
    /// The kernel command line.
    pub(super) line: &'a OsStr,
    /// The domain's UUID.
    pub(super) uuid: &'a str,
    /// Who has started it, by name.
    pub(super) caller: &'a str,
    /// Whom QEMU is to run as, where it is not the caller by itself: `+UID:+GID`.
    pub(super) label: Option<&'a str>,
    /// The port on this host's loopback that carries the network.
    pub(super) port: u16,
    /// The directory of what goes when it runs.
    pub(super) place: &'a Path,
}

/// The XML, and the names that it has for paths which XML cannot carry.
pub(super) struct Described {
    /// The document.
    pub(super) xml: String,
    /// Names in the place, and what they stand for.
    pub(super) links: Vec<(String, PathBuf)>,
}

/// Describes the domain.
///
/// # Errors
/// A path cannot be made absolute.
pub(super) fn describe(parts: &Parts) -> io::Result<Described> {
    let mut files = Files::new(parts.place);
    let spec = parts.spec;
    let paths = Paths {
        start: parts
            .start
            .path()
            .map(|path| files.name(path))
            .transpose()?,
        image: files.name(&spec.image.path)?,
        overlay: match &spec.writes {
            Writes::Overlay(path) => Some(files.name(path)?),
            Writes::Memory if parts.start.kernel().is_none() => Some(files.own(name::VANISHING)),
            Writes::Memory | Writes::Image => None,
        },
        changes: names(&mut files, spec.changes.iter().map(|changes| &changes.path))?,
        shares: names(&mut files, spec.shares.iter().map(|share| &share.host))?,
    };
    let kind = match parts.accelerator.is_kvm() {
        true => "kvm",
        false => "qemu",
    };
    let xml = document(|xml| {
        nested(xml, "domain", &[("type", kind)], |xml| {
            text(xml, "name", &[], &spec.contract.id)?;
            text(xml, "uuid", &[], parts.uuid)?;
            metadata(xml, parts)?;
            resources(xml, spec)?;
            boot(xml, parts, &files, &paths)?;
            machine(xml, parts.accelerator)?;
            nested(xml, "devices", &[], |xml| {
                devices(xml, parts, &files, &paths)
            })?;
            parts.label.map_or(Ok(()), |label| security(xml, label))
        })
    })?;
    Ok(Described {
        xml,
        links: files.links,
    })
}

/// Names of files as XML can carry them.
struct Files<'a> {
    place: &'a Path,
    links: Vec<(String, PathBuf)>,
}

/// The names of the files of others than the place's.
struct Paths {
    start: Option<String>,
    image: String,
    overlay: Option<String>,
    changes: Vec<String>,
    shares: Vec<String>,
}

impl<'a> Files<'a> {
    fn new(place: &'a Path) -> Self {
        Files {
            place,
            links: Vec::new(),
        }
    }

    /// The absolute path itself, or a link's when it is not UTF-8 or has control characters.
    fn name(&mut self, path: &Path) -> io::Result<String> {
        let path = seen_by_others(std::path::absolute(path)?);
        match path.to_str() {
            Some(text) if is_carried(text) => Ok(text.to_owned()),
            _ => {
                let link = format!("path{}", self.links.len());
                let name = self.own(&link);
                self.links.push((link, path));
                Ok(name)
            }
        }
    }

    /// The path of what is in the place.
    fn own(&self, name: &str) -> String {
        self.place.join(name).to_string_lossy().into_owned()
    }
}

fn names<'a>(
    files: &mut Files,
    paths: impl Iterator<Item = &'a PathBuf>,
) -> io::Result<Vec<String>> {
    paths.map(|path| files.name(path)).collect()
}

/// What the domain is for people who look at it.
fn metadata(xml: &mut Xml, parts: &Parts) -> io::Result<()> {
    let shown = |path: &Path| -> String {
        let text = path.to_string_lossy();
        let shown = text
            .chars()
            .map(|c| match is_carried(c.encode_utf8(&mut [0; 4])) {
                true => c,
                false => char::REPLACEMENT_CHARACTER,
            });
        shown.collect()
    };
    let contract = &parts.spec.contract;
    nested(xml, "metadata", &[], |xml| {
        nested(xml, "apppot:job", &[("xmlns:apppot", NAMESPACE)], |xml| {
            text(xml, "apppot:id", &[], &contract.id)?;
            text(xml, "apppot:image", &[], &shown(&parts.spec.image.path))?;
            text(xml, "apppot:directory", &[], &shown(&contract.jobdir))?;
            text(xml, "apppot:started-by", &[], parts.caller)
        })
    })
}

fn resources(xml: &mut Xml, spec: &MachineSpec) -> io::Result<()> {
    let kib = (spec.memory >> 10).to_string();
    text(xml, "memory", &[("unit", "KiB")], &kib)?;
    if live(spec) == Channel::Virtiofs {
        // Who serves directories is given the guest's memory, too.
        nested(xml, "memoryBacking", &[], |xml| {
            empty(xml, "source", &[("type", "memfd")])?;
            empty(xml, "access", &[("mode", "shared")])
        })?;
    }
    text(xml, "vcpu", &[], &spec.cpus.to_string())
}

/// QEMU runs as the caller also where the daemon is the system's, and no file changes hands for it.
fn security(xml: &mut Xml, label: &str) -> io::Result<()> {
    let how = [("type", "static"), ("model", "dac"), ("relabel", "no")];
    nested(xml, "seclabel", &how, |xml| text(xml, "label", &[], label))
}

fn boot(xml: &mut Xml, parts: &Parts, files: &Files, paths: &Paths) -> io::Result<()> {
    let by_kernel = parts.start.kernel().is_some();
    let start = paths.start.as_deref().unwrap_or_default();
    nested(xml, "os", &[], |xml| {
        text(
            xml,
            "type",
            &[("arch", "x86_64"), ("machine", "q35")],
            "hvm",
        )?;
        match parts.start {
            Start::Kernel(_) => {
                text(xml, "kernel", &[], start)?;
                text(xml, "initrd", &[], &files.own(name::INITRAMFS))?;
                text(xml, "cmdline", &[], &parts.line.to_string_lossy())
            }
            Start::Bios => Ok(()),
            Start::Uefi(_) => {
                let loader = [("readonly", "yes"), ("type", "pflash")];
                text(xml, "loader", &loader, start)?;
                text(xml, "nvram", &[], &files.own(name::VARIABLES))
            }
        }
    })?;
    if by_kernel {
        return Ok(());
    }
    nested(xml, "sysinfo", &[("type", "fwcfg")], |xml| {
        let contract = files.own(name::CONTRACT);
        empty(xml, "entry", &[("name", ITEM), ("file", &contract)])
    })
}

/// A PC of today without the parts that only cost time at boot; whatever ends its guest ends it.
fn machine(xml: &mut Xml, accelerator: &Accelerator) -> io::Result<()> {
    nested(xml, "features", &[], |xml| {
        empty(xml, "acpi", &[])?;
        empty(xml, "apic", &[])?;
        empty(xml, "vmport", &[("state", "off")])
    })?;
    match accelerator.is_kvm() {
        true => empty(xml, "cpu", &[("mode", "host-passthrough")])?,
        // See `qemu::arguments::cpu`.
        false => nested(xml, "cpu", &[("mode", "maximum")], |xml| {
            for feature in ["erms", "fsrm"] {
                empty(xml, "feature", &[("policy", "disable"), ("name", feature)])?;
            }
            Ok(())
        })?,
    }
    nested(xml, "clock", &[("offset", "utc")], |xml| {
        empty(xml, "timer", &[("name", "hpet"), ("present", "no")])
    })?;
    for event in ["on_poweroff", "on_reboot", "on_crash"] {
        text(xml, event, &[], "destroy")?;
    }
    Ok(())
}

fn devices(xml: &mut Xml, parts: &Parts, files: &Files, paths: &Paths) -> io::Result<()> {
    let spec = parts.spec;
    empty(xml, "controller", &[("type", "usb"), ("model", "none")])?;
    empty(xml, "memballoon", &[("model", "none")])?;
    console(xml, spec.serial_terminal, files)?;
    let mut bus = Bus::default();
    bus.link(xml, &files.own(name::LINK))?;
    bus.random(xml)?;
    let mut disks = Disks::default();
    let writable = spec.writes == Writes::Image;
    match (spec.image.kind, &paths.overlay) {
        (ImageKind::Directory, _) => {
            bus.share(xml, device::ROOT_TAG, &paths.image, !writable)?;
        }
        (_, None) => disks.raw(xml, &mut bus, &paths.image, !writable)?,
        (_, Some(overlay)) => disks.overlay(xml, &mut bus, overlay, &paths.image)?,
    }
    for path in &paths.changes {
        disks.raw(xml, &mut bus, path, true)?;
    }
    if spec.has_ring() {
        disks.raw(xml, &mut bus, &files.own(name::RING), true)?;
    }
    if spec.has_files_ring() {
        disks.raw(xml, &mut bus, &files.own(name::FILES_RING), true)?;
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        disks.raw(
            xml,
            &mut bus,
            &files.own(&name::disk(index)),
            !disk.writable,
        )?;
    }
    if spec.network != Network::None {
        bus.network(xml, parts.port)?;
    }
    for (index, (path, share)) in paths.shares.iter().zip(&spec.shares).enumerate() {
        let tag = share_tag(index);
        match live(spec) {
            Channel::Virtiofs => bus.served_share(xml, &tag, &files.own(&name::share(index)))?,
            _ => bus.share(xml, &tag, path, share.read_only)?,
        }
    }
    Ok(())
}

/// The serial line, where the kernel's messages go: to the launcher, or to whoever calls `virsh console`.
fn console(xml: &mut Xml, is_terminal: bool, files: &Files) -> io::Result<()> {
    let kind = match is_terminal {
        true => "pty",
        false => "unix",
    };
    nested(xml, "serial", &[("type", kind)], |xml| {
        if !is_terminal {
            let path = files.own(name::CONSOLE);
            empty(xml, "source", &[("mode", "connect"), ("path", &path)])?;
        }
        empty(xml, "target", &[("type", "isa-serial"), ("port", "0")])
    })
}

/// Places on the PCI bus, eight functions a slot. Without them every device gets a bridge of its own.
#[derive(Debug, Default)]
struct Bus {
    taken: usize,
}

impl Bus {
    /// The next place.
    fn address(&mut self, xml: &mut Xml) -> io::Result<()> {
        // The first slots and the last one are the machine's own.
        let (slot, function) = (self.taken / 8 + 3, self.taken % 8);
        self.taken += 1;
        let (slot, function) = (format!("{slot:#04x}"), format!("{function:#x}"));
        let mut attributes = vec![
            ("type", "pci"),
            ("domain", "0x0000"),
            ("bus", "0x00"),
            ("slot", &slot),
            ("function", &function),
        ];
        if function == "0x0" {
            attributes.push(("multifunction", "on"));
        }
        empty(xml, "address", &attributes)
    }

    /// The link's port, which connects to the launcher.
    fn link(&mut self, xml: &mut Xml, socket: &str) -> io::Result<()> {
        let ports = [("type", "virtio-serial"), ("index", "0"), ("ports", "2")];
        nested(xml, "controller", &ports, |xml| self.address(xml))?;
        nested(xml, "channel", &[("type", "unix")], |xml| {
            empty(xml, "source", &[("mode", "connect"), ("path", socket)])?;
            empty(
                xml,
                "target",
                &[("type", "virtio"), ("name", "org.apppot.link")],
            )?;
            let port = [
                ("type", "virtio-serial"),
                ("controller", "0"),
                ("bus", "0"),
                ("port", "1"),
            ];
            empty(xml, "address", &port)
        })
    }

    /// The host's random numbers.
    fn random(&mut self, xml: &mut Xml) -> io::Result<()> {
        nested(xml, "rng", &[("model", "virtio")], |xml| {
            empty(xml, "backend", &[("model", "builtin")])?;
            self.address(xml)
        })
    }

    /// The network, whose frames go to a socket on this host's loopback. Nothing is booted by it.
    fn network(&mut self, xml: &mut Xml, port: u16) -> io::Result<()> {
        nested(xml, "interface", &[("type", "client")], |xml| {
            empty(xml, "mac", &[("address", &mac(GUEST_MAC))])?;
            let port = port.to_string();
            empty(xml, "source", &[("address", "127.0.0.1"), ("port", &port)])?;
            empty(xml, "model", &[("type", "virtio")])?;
            empty(xml, "rom", &[("enabled", "no")])?;
            self.address(xml)
        })
    }

    /// A directory by virtio-fs, which another process serves at a socket.
    fn served_share(&mut self, xml: &mut Xml, tag: &str, socket: &str) -> io::Result<()> {
        nested(xml, "filesystem", &[("type", "mount")], |xml| {
            empty(xml, "driver", &[("type", "virtiofs")])?;
            empty(xml, "source", &[("socket", socket)])?;
            empty(xml, "target", &[("dir", tag)])?;
            self.address(xml)
        })
    }

    /// A directory by 9P. Files are QEMU's user's own, who is the caller.
    fn share(&mut self, xml: &mut Xml, tag: &str, path: &str, read_only: bool) -> io::Result<()> {
        let how = [
            ("type", "mount"),
            ("accessmode", "squash"),
            ("multidevs", "remap"),
        ];
        nested(xml, "filesystem", &how, |xml| {
            empty(xml, "source", &[("dir", path)])?;
            empty(xml, "target", &[("dir", tag)])?;
            if read_only {
                empty(xml, "readonly", &[])?;
            }
            self.address(xml)
        })
    }
}

/// Disks, which the guest names by their order on the bus.
#[derive(Debug, Default)]
struct Disks {
    taken: u8,
}

impl Disks {
    /// A raw file.
    fn raw(&mut self, xml: &mut Xml, bus: &mut Bus, path: &str, read_only: bool) -> io::Result<()> {
        self.disk(xml, bus, "raw", |xml| {
            empty(xml, "source", &[("file", path)])?;
            match read_only {
                true => empty(xml, "readonly", &[]),
                false => Ok(()),
            }
        })
    }

    /// A copy-on-write file and the image below it.
    fn overlay(&mut self, xml: &mut Xml, bus: &mut Bus, path: &str, below: &str) -> io::Result<()> {
        self.disk(xml, bus, "qcow2", |xml| {
            empty(xml, "source", &[("file", path)])?;
            nested(xml, "backingStore", &[("type", "file")], |xml| {
                empty(xml, "format", &[("type", "raw")])?;
                empty(xml, "source", &[("file", below)])?;
                empty(xml, "backingStore", &[])
            })
        })
    }

    /// A disk; the guest is told of errors (else the machine would stop and wait for somebody). Where firmware
    /// looks for a boot loader, it is on the first.
    fn disk(
        &mut self,
        xml: &mut Xml,
        bus: &mut Bus,
        format: &str,
        source: impl FnOnce(&mut Xml) -> io::Result<()>,
    ) -> io::Result<()> {
        let name = format!("vd{}", char::from(b'a' + self.taken));
        self.taken += 1;
        let is_first = self.taken == 1;
        nested(
            xml,
            "disk",
            &[("type", "file"), ("device", "disk")],
            |xml| {
                let driver = [
                    ("name", "qemu"),
                    ("type", format),
                    ("error_policy", "report"),
                    ("rerror_policy", "report"),
                ];
                empty(xml, "driver", &driver)?;
                source(xml)?;
                empty(xml, "target", &[("dev", &name), ("bus", "virtio")])?;
                if is_first {
                    empty(xml, "boot", &[("order", "1")])?;
                }
                bus.address(xml)
            },
        )
    }
}

/// The words of a kernel command line as one text.
pub(super) fn joined(words: &[OsString]) -> OsString {
    words.join(OsStr::new(" "))
}
