//! What a plan says, for a host that is made up.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use apppot_contract::{Contract, Stdin, User, Workload};

use super::super::kernel::tests::{bzimage, kernel};
use super::super::kernel::Kernel;
use super::*;
use crate::image::Image;
use crate::spec::{Changes, Seccomp, Share};
use crate::stamp::Stamp;
use crate::Error;

pub(crate) const BUILT_IN: &str = "kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/char/virtio_console.ko\n\
    kernel/net/9p/9pnet_virtio.ko\nkernel/fs/9p/9p.ko\nkernel/drivers/char/hw_random/virtio-rng.ko\n\
    kernel/drivers/block/virtio_blk.ko\nkernel/fs/ext4/ext4.ko\n";

pub(crate) fn spec() -> MachineSpec {
    MachineSpec {
        image: Image {
            path: PathBuf::from("/images/debian, small.img"),
            kind: ImageKind::Disk,
            filesystem: Some("ext4"),
            partition: Some(1),
            start: 1 << 20,
            boots_itself: false,
            stamp: None,
        },
        writes: Writes::Image,
        kernel: None,
        firmware: crate::spec::Firmware::None,
        agent: Cow::Borrowed(b"agent"),
        memory: 512 << 20,
        network: crate::spec::Network::None,
        cpus: 2,
        changes: vec![Changes {
            path: PathBuf::from("/changes"),
            any_base: false,
            stamp: Stamp::from(&std::fs::metadata("/").unwrap()),
        }],
        disks: Vec::new(),
        live: None,
        serial_terminal: false,
        connect: None,
        shares: vec![
            Share {
                host: PathBuf::from("/home/ada/a,b"),
                guest: PathBuf::from("/home/ada/a,b"),
                read_only: false,
            },
            Share {
                host: PathBuf::from("/data"),
                guest: PathBuf::from("/data"),
                read_only: true,
            },
        ],
        contract: Contract {
            id: String::from("job1"),
            jobdir: PathBuf::from("/home/ada/a,b"),
            user: Some(User {
                name: String::from("ada"),
                uid: 1000,
                group: String::from("ada"),
                gid: 1000,
                groups: vec![],
                account: None,
            }),
            workload: Workload::Command(vec!["echo".into(), "a b".into()]),
            stdin: Stdin::Link,
            grace: Duration::from_secs(4),
            ..Contract::default()
        },
        containment: Containment::Off,
        seccomp: Seccomp::Auto,
        trim_resident: false,
        extra: vec!["loglevel=7".into()],
    }
}

fn plan(spec: &MachineSpec, built_in: &str, accelerator: Accelerator) -> Result<Plan> {
    let (_directory, path) = kernel(&bzimage(), built_in, "");
    let mut kernel = Kernel::inspect(&path)?;
    kernel.path = PathBuf::from("/boot/vmlinuz");
    let program = Program {
        path: PathBuf::from("/usr/bin/qemu-system-x86_64"),
        version: String::from("7.2.0"),
    };
    Plan::with(
        &Qemu,
        spec,
        program,
        Start::Kernel(kernel),
        accelerator,
        None,
    )
}

fn shown(plan: &Plan) -> String {
    let rendered = plan.render("qemu");
    let descriptors = rendered.descriptors.iter();
    let descriptors = descriptors.map(|(number, what)| format!("{number}: {what}"));
    descriptors
        .chain(rendered.argv.iter().cloned())
        .collect::<Vec<_>>()
        .join("\n")
}

fn software() -> Accelerator {
    Accelerator::Tcg {
        reason: String::from("there is no KVM"),
    }
}

#[test]
fn firmware_takes_the_place_of_kernel_and_initramfs() {
    let spec = MachineSpec {
        firmware: crate::spec::Firmware::Bios,
        writes: Writes::Memory,
        extra: Vec::new(),
        ..spec()
    };
    let program = Program {
        path: PathBuf::from("/usr/bin/qemu-system-x86_64"),
        version: String::from("7.2.0"),
    };
    let plan = Plan::with(&Qemu, &spec, program, Start::Bios, software(), None).unwrap();
    let text = shown(&plan);
    for part in [
        "name=opt/org.apppot/contract,file=/proc/self/fd/",
        "drive=overlay,bootindex=0",
        "driver=qcow2,node-name=overlay",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    for part in ["-kernel", "-initrd", "-append", "initramfs"] {
        assert!(!text.contains(part), "{part} in {text}");
    }
    let document = plan.contract.unwrap();
    assert!(!document.contains("apppot.root"), "{document}");
    assert!(document.contains("apppot.link=/dev/vport0p1"), "{document}");
}

#[test]
fn a_machine_that_writes_into_its_image() {
    insta::assert_snapshot!(shown(&plan(&spec(), BUILT_IN, software()).unwrap()));
}

#[test]
fn a_machine_in_a_directory_with_kvm() {
    let mut spec = spec();
    spec.image = Image {
        path: PathBuf::from("/"),
        kind: ImageKind::Directory,
        filesystem: None,
        partition: None,
        start: 0,
        boots_itself: false,
        stamp: None,
    };
    spec.writes = Writes::Memory;
    spec.changes.clear();
    let built_in = format!("{BUILT_IN}kernel/fs/overlayfs/overlay.ko\n");
    let plan = plan(&spec, &built_in, Accelerator::Kvm).unwrap();
    insta::assert_snapshot!(shown(&plan));
}

#[test]
fn overlay_files_are_qcow2() {
    let mut spec = spec();
    spec.writes = Writes::Overlay(PathBuf::from("/overlay"));
    let shown = shown(&plan(&spec, BUILT_IN, software()).unwrap());
    assert!(shown.contains("\n103: /overlay\n"), "{shown}");
    assert!(shown.contains("driver=qcow2,node-name=overlay"), "{shown}");
    assert!(shown.contains("drive=overlay"), "{shown}");
}

#[test]
fn a_kernel_without_the_overlay_filesystem_is_refused() {
    let mut spec = spec();
    spec.writes = Writes::Memory;
    let error = plan(&spec, BUILT_IN, software()).unwrap_err();
    assert!(matches!(error, Error::KernelLacks { .. }), "{error}");
    assert!(error.to_string().contains("'overlay'"), "{error}");
}

#[test]
fn what_is_too_long_goes_by_the_link() {
    let mut spec = spec();
    spec.contract.workload = Workload::Command(vec!["x".repeat(3000).into()]);
    let plan = plan(&spec, BUILT_IN, software()).unwrap();
    assert!(plan.document.is_some());
    let line = plan.args.iter().any(|arg| {
        let arg = arg.to_string_lossy();
        arg.contains("apppot.contract=link") && arg.len() < guest::CAPABILITIES.command_line
    });
    assert!(line);
}
