//! QEMU's command line, as data: one function a switch.

use std::ffi::OsString;
use std::path::Path;

use super::kvm::Accelerator;
use crate::descriptors::number;
use crate::network;
use crate::process::descriptor_path;

/// Descriptors that only QEMU has.
pub(super) mod descriptor {
    use crate::descriptors::number::{self, OWN};
    use std::os::fd::RawFd;

    /// The monitor's socket.
    pub(in super::super) const MONITOR: RawFd = OWN;
    /// The ring.
    pub(in super::super) const RING: RawFd = OWN + 1;
    /// The ring for the job's files.
    pub(in super::super) const FILES_RING: RawFd = OWN + 2;
    /// The firmware's variables.
    pub(in super::super) const VARIABLES: RawFd = OWN + 3;
    /// The contract for fw_cfg: where there is firmware there is no initramfs of ours.
    pub(in super::super) const CONTRACT: RawFd = number::INITRAMFS;
}

/// A switch and its value.
type Switch = [OsString; 2];

pub(super) fn switch(name: &str, value: impl Into<OsString>) -> Switch {
    [name.into(), value.into()]
}

/// Nothing that is not asked for: no devices, no files of configuration, no display.
pub(super) fn nothing_else() -> Vec<OsString> {
    let words = ["-nodefaults", "-no-user-config", "-display", "none"];
    words.map(OsString::from).into()
}

/// `-sandbox`: QEMU itself starts nothing and gains no rights (seccomp).
pub(super) fn sandbox() -> Switch {
    switch(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    )
}

/// `-machine`: a PC of today without the parts that only cost time at boot.
pub(super) fn machine(accelerator: &Accelerator) -> Switch {
    let name = if accelerator.is_kvm() { "kvm" } else { "tcg" };
    switch(
        "-machine",
        format!(
            "q35,accel={name},usb=off,smbus=off,sata=off,vmport=off,hpet=off,dump-guest-core=off"
        ),
    )
}

/// `-cpu`: the host's processor, or all that the translator knows but for fast string instructions: kernel
/// and C library copy by bytes where a processor has them, and the translator really goes byte by byte.
pub(super) fn cpu(accelerator: &Accelerator) -> Switch {
    let name = match accelerator.is_kvm() {
        true => "host",
        false => "max,erms=off,fsrm=off",
    };
    switch("-cpu", name)
}

/// `-smp`: vCPUs.
pub(super) fn cpus(number: u32) -> Switch {
    switch("-smp", number.to_string())
}

/// `-m`: guest memory.
pub(super) fn memory(bytes: u64) -> Switch {
    switch("-m", format!("{}M", bytes >> 20))
}

/// `-object`, `-machine`: guest memory that other processes are given, too.
pub(super) fn shared_memory(bytes: u64) -> Vec<OsString> {
    let size = bytes >> 20;
    [
        switch(
            "-object",
            format!("memory-backend-memfd,id=memory,size={size}M,share=on"),
        ),
        switch("-machine", "memory-backend=memory"),
    ]
    .concat()
}

/// `-no-reboot`: a reboot, which is also how a panic ends, ends the machine.
pub(super) fn no_reboot() -> OsString {
    OsString::from("-no-reboot")
}

/// `-kernel`, `-initrd`, `-append`: what is booted.
pub(super) fn boot(kernel: &Path, line: OsString) -> Vec<OsString> {
    let initramfs = descriptor_path(number::INITRAMFS);
    [
        switch("-kernel", kernel),
        switch("-initrd", initramfs),
        switch("-append", line),
    ]
    .concat()
}

/// The serial line, where the kernel's messages go: to QEMU's own standard error.
pub(super) fn console() -> Vec<OsString> {
    [
        switch("-chardev", "file,id=console,path=/proc/self/fd/2"),
        switch("-device", "isa-serial,chardev=console"),
    ]
    .concat()
}

/// The monitor (`docs/interop/qmp-spec.rst`).
pub(super) fn monitor() -> Vec<OsString> {
    let fd = descriptor::MONITOR;
    [
        switch("-chardev", format!("socket,id=monitor,fd={fd}")),
        switch("-mon", "chardev=monitor,mode=control"),
    ]
    .concat()
}

/// Places on the PCI bus, eight functions a slot, so that there are enough of them. The first slots
/// and the last one are the machine's own.
#[derive(Debug, Default)]
pub(super) struct Bus {
    taken: usize,
}

impl Bus {
    /// `-device` with the next place.
    fn device(&mut self, properties: &str) -> Switch {
        let (slot, function) = (self.taken / 8 + 3, self.taken % 8);
        self.taken += 1;
        let first = if function == 0 {
            ",multifunction=on"
        } else {
            ""
        };
        switch(
            "-device",
            format!("{properties},addr={slot:#x}.{function}{first}"),
        )
    }

    /// The link's port.
    pub(super) fn link(&mut self) -> Vec<OsString> {
        let fd = number::LINK;
        [
            self.device("virtio-serial-pci,id=ports,max_ports=2"),
            switch("-chardev", format!("socket,id=link,fd={fd}")),
            switch(
                "-device",
                "virtserialport,bus=ports.0,nr=1,chardev=link,name=org.apppot.link",
            ),
        ]
        .concat()
    }

    /// The host's random numbers.
    pub(super) fn random(&mut self) -> Switch {
        self.device("virtio-rng-pci")
    }

    /// The image as the first disk, perhaps below a copy-on-write file. The launcher has locked the
    /// files, so QEMU need not. It `starts` the machine where firmware looks for a boot loader.
    pub(super) fn root(&mut self, writable: bool, overlay: bool, starts: bool) -> Vec<OsString> {
        let place = if starts { ",bootindex=0" } else { "" };
        let named = |node: &str| format!("{node}{place}");
        let image = file("image", number::ROOT, writable);
        if !overlay {
            return [image, self.disk(&named("image"))].concat();
        }
        let file = file("overlay-file", number::OVERLAY, true);
        let overlay = switch(
            "-blockdev",
            "driver=qcow2,node-name=overlay,file=overlay-file,backing=image",
        );
        [image, file, overlay, self.disk(&named("overlay"))].concat()
    }

    /// A changes archive as a further disk, which the guest only reads.
    pub(super) fn changes(&mut self, index: usize) -> Vec<OsString> {
        let node = format!("changes{index}");
        let descriptor = number::CHANGES + index as i32;
        [file(&node, descriptor, false), self.disk(&node)].concat()
    }

    /// The ring for standard input as a disk, which the guest only reads.
    pub(super) fn ring(&mut self) -> Vec<OsString> {
        [file("stdin", descriptor::RING, false), self.disk("stdin")].concat()
    }

    /// The ring for the job's files as a disk, which the guest only reads.
    pub(super) fn files_ring(&mut self) -> Vec<OsString> {
        let ring = file("files", descriptor::FILES_RING, false);
        [ring, self.disk("files")].concat()
    }

    /// A further disk, which the agent finds by what is on it.
    pub(super) fn further_disk(&mut self, index: usize, writable: bool) -> Vec<OsString> {
        let node = format!("disk{index}");
        let descriptor = number::DISKS + index as i32;
        [file(&node, descriptor, writable), self.disk(&node)].concat()
    }

    /// A disk; the guest is told of errors (else the machine would stop and wait for somebody).
    fn disk(&mut self, node: &str) -> Switch {
        self.device(&format!(
            "virtio-blk-pci,drive={node},werror=report,rerror=report"
        ))
    }

    /// The network, whose frames are packets of a socket. Nothing is booted by it (`romfile`).
    pub(super) fn network(&mut self) -> Vec<OsString> {
        let mac = network::mac(network::GUEST_MAC);
        [
            switch(
                "-netdev",
                format!("dgram,id=net,local.type=fd,local.str={}", number::NETWORK),
            ),
            self.device(&format!("virtio-net-pci,netdev=net,mac={mac},romfile=")),
        ]
        .concat()
    }

    /// A directory by virtio-fs, which another process serves at a socket.
    pub(super) fn served_share(&mut self, tag: &str, descriptor: i32) -> Vec<OsString> {
        [
            switch("-chardev", format!("socket,id={tag},fd={descriptor}")),
            self.device(&format!("vhost-user-fs-pci,chardev={tag},tag={tag}")),
        ]
        .concat()
    }

    /// A directory by 9P. Files are the user's own: QEMU makes and changes them as itself.
    pub(super) fn share(&mut self, tag: &str, descriptor: i32, read_only: bool) -> Vec<OsString> {
        let path = descriptor_path(descriptor);
        let access = if read_only { ",readonly=on" } else { "" };
        [
            switch(
                "-fsdev",
                format!("local,id={tag},path={path},security_model=none,multidevs=remap{access}"),
            ),
            self.device(&format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")),
        ]
        .concat()
    }
}

/// `-blockdev`: a file by its descriptor.
pub(super) fn file(node: &str, descriptor: i32, writable: bool) -> Switch {
    let path = descriptor_path(descriptor);
    let read_only = if writable { "off" } else { "on" };
    switch(
        "-blockdev",
        format!("driver=file,node-name={node},filename={path},read-only={read_only},locking=off"),
    )
}
