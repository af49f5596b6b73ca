//! What a domain looks like, for a host that is made up.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use apppot_contract::{Stdin, Workload};

use super::*;
use crate::image::ImageKind;
use crate::qemu::firmware::Ovmf;
use crate::qemu::kernel::tests::{bzimage, kernel};
use crate::qemu::kernel::Kernel;
use crate::qemu::plan::tests::{spec, BUILT_IN};
use crate::spec::Firmware;

fn start(built_in: &str) -> Start {
    let (_directory, path) = kernel(&bzimage(), built_in, "");
    let mut kernel = Kernel::inspect(&path).unwrap();
    kernel.path = PathBuf::from("/boot/vmlinuz");
    Start::Kernel(kernel)
}

fn plan(spec: &MachineSpec, start: Start, accelerator: Accelerator) -> Plan {
    let daemon = Daemon {
        uri: String::from("qemu:///session"),
        version: String::from("9.0.0"),
        group: None,
    };
    let place = PathBuf::from("/tmp/.apppot-0");
    let uuid = String::from("8c1d02b5-3a52-4a3e-9d1a-5b7e1a2f3c4d");
    Plan::with(spec, start, accelerator, daemon, place, uuid).unwrap()
}

fn software() -> Accelerator {
    Accelerator::Tcg {
        reason: String::from("there is no KVM"),
    }
}

/// The domain's XML, which libvirt's own schemas allow, with what is of this test's host made up.
fn shown(plan: &Plan) -> String {
    let xml = plan.describe(SOME_PORT).unwrap().xml;
    validate(&xml);
    let caller = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap();
    let caller = caller.map(|caller| format!(">{}</apppot:started-by", caller.name));
    xml.replace(&caller.unwrap_or_default(), ">ada</apppot:started-by")
}

fn validate(xml: &str) {
    let spawned = Command::new("virt-xml-validate")
        .args(["-", "domain"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        let is_ci = std::env::var_os("CI").is_some();
        assert!(!is_ci, "virt-xml-validate is not installed");
        eprintln!("skipped: virt-xml-validate is not installed (libvirt-clients)");
        return;
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(xml.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{xml}");
}

#[test]
fn a_domain_that_writes_into_its_image() {
    let plan = plan(&spec(), start(BUILT_IN), software());
    insta::assert_snapshot!(shown(&plan));
}

#[test]
fn a_domain_in_a_directory_with_kvm() {
    let mut spec = spec();
    spec.image.path = PathBuf::from("/");
    spec.image.kind = ImageKind::Directory;
    spec.image.filesystem = None;
    spec.writes = Writes::Memory;
    spec.changes.clear();
    spec.serial_terminal = true;
    let built_in = format!("{BUILT_IN}kernel/fs/overlayfs/overlay.ko\n");
    let plan = plan(&spec, start(&built_in), Accelerator::Kvm);
    insta::assert_snapshot!(shown(&plan));
}

#[test]
fn a_domain_that_a_bios_starts() {
    let spec = MachineSpec {
        firmware: Firmware::Bios,
        writes: Writes::Memory,
        extra: Vec::new(),
        ..spec()
    };
    let plan = plan(&spec, Start::Bios, software());
    insta::assert_snapshot!(shown(&plan));
    let document = plan.contract.unwrap();
    assert!(!document.contains("apppot.root"), "{document}");
    assert!(document.contains("apppot.link=/dev/vport0p1"), "{document}");
}

#[test]
fn a_domain_that_uefi_starts() {
    let spec = MachineSpec {
        firmware: Firmware::Uefi,
        extra: Vec::new(),
        ..spec()
    };
    let ovmf = Ovmf {
        code: PathBuf::from("/firmware & <code>.fd"),
        variables: PathBuf::from("/variables.fd"),
    };
    let shown = shown(&plan(&spec, Start::Uefi(ovmf), software()));
    for part in [
        "<loader readonly=\"yes\" type=\"pflash\">/firmware &amp; &lt;code&gt;.fd</loader>",
        // Its own copy.
        "<nvram>/tmp/.apppot-0/variables</nvram>",
        "<entry name=\"opt/org.apppot/contract\" file=\"/tmp/.apppot-0/contract\"/>",
        "<boot order=\"1\"/>",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(!shown.contains("<kernel>"), "{shown}");
}

#[test]
fn overlay_files_are_above_the_image() {
    let mut spec = spec();
    spec.writes = Writes::Overlay(PathBuf::from("/over & <out>"));
    let shown = shown(&plan(&spec, start(BUILT_IN), software()));
    let overlay = shown
        .find("<source file=\"/over &amp; &lt;out&gt;\"/>")
        .unwrap();
    let below = shown
        .find("<source file=\"/images/debian, small.img\"/>")
        .unwrap();
    assert!(shown.contains("type=\"qcow2\""), "{shown}");
    assert!(overlay < below, "{shown}");
}

#[test]
fn any_name_is_carried() {
    for name in [
        &b"/a<b>&\"'c]]>--"[..],
        b"/\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80",
        b"/two  spaces ",
        b"/line\nbreak",
        b"/tab\there",
        b"/bad\xff\xfebytes",
        b"/escape\x1b[0m",
    ] {
        let path = Path::new(OsStr::from_bytes(name));
        let mut spec = spec();
        spec.shares[0].host = path.to_owned();
        spec.contract.jobdir = path.to_owned();
        spec.contract.workload = Workload::Command(vec![OsStr::from_bytes(name).to_owned()]);
        let plan = plan(&spec, start(BUILT_IN), software());
        shown(&plan);
        let described = plan.describe(SOME_PORT).unwrap();
        let carried = match described.links.as_slice() {
            [] => path.to_str().unwrap().to_owned(),
            [(link, target)] => {
                assert_eq!(target, path);
                plan.place.join(link).to_str().unwrap().to_owned()
            }
            more => panic!("{more:?}"),
        };
        assert_eq!(attribute(&described.xml, "dir").as_deref(), Some(&*carried));
    }
}

/// The first `<source>`'s attribute, as another implementation reads it.
fn attribute(xml: &str, name: &str) -> Option<String> {
    use quick_xml::events::Event;
    let mut reader = quick_xml::Reader::from_str(xml);
    loop {
        match reader.read_event().unwrap() {
            Event::Eof => return None,
            Event::Empty(element) if element.name().as_ref() == b"source" => {
                let found = element.try_get_attribute(name).unwrap();
                if let Some(found) = found {
                    let value = found
                        .normalized_value(quick_xml::XmlVersion::Implicit1_0)
                        .unwrap();
                    return Some(value.into_owned());
                }
            }
            _ => {}
        }
    }
}

#[test]
fn what_is_too_long_goes_by_the_link() {
    let mut spec = spec();
    spec.contract.workload = Workload::Command(vec!["x".repeat(3000).into()]);
    spec.contract.stdin = Stdin::Null;
    let plan = plan(&spec, start(BUILT_IN), software());
    assert!(plan.document.is_some());
    assert!(shown(&plan).contains("apppot.contract=link"));
}

#[test]
fn confinement_cannot_be_required() {
    let mut spec = spec();
    spec.containment = Containment::Required;
    let error = Plan::make(&Libvirt::default(), &spec).unwrap_err();
    assert!(matches!(error, Error::Containment { .. }), "{error}");
}

#[test]
fn directories_and_disks_by_other_ways() {
    let mut spec = spec();
    spec.live = Some(Channel::Virtiofs);
    for writable in [false, true] {
        spec.disks.push(crate::spec::Disk {
            what: "a disk",
            file: None,
            writable,
        });
    }
    let virtiofs = format!("{BUILT_IN}kernel/fs/fuse/virtiofs.ko\n");
    let shown = shown(&plan(&spec, start(&virtiofs), software()));
    for part in [
        "<access mode=\"shared\"/>",
        "<source socket=\"/tmp/.apppot-0/share0\"/>",
        "<source file=\"/tmp/.apppot-0/disk0\"/>\n      <readonly/>",
        "<source file=\"/tmp/.apppot-0/disk1\"/>\n      <target",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn the_network_is_a_socket_of_ours() {
    let parts = spec();
    let mut plan = plan(&parts, start(BUILT_IN), software());
    plan.spec.network = crate::spec::Network::User {
        host_loopback: false,
    };
    let shown = shown(&plan);
    for part in ["<interface type=\"client\">", "52:54:0a:00:02:0f"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn the_system_s_qemu_is_the_caller_s() {
    let mut plan = plan(&spec(), start(BUILT_IN), software());
    assert!(!shown(&plan).contains("seclabel"));
    plan.daemon.group = Some(108);
    let label = format!("<label>+{}:+108</label>", nix::unistd::geteuid());
    assert!(shown(&plan).contains(&label));
}
