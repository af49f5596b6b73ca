//! What a plan says, for kernels that are shell scripts printing a configuration.

use std::borrow::Cow;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use apppot_contract::{Contract, Stdin, User, Workload};

use super::*;
use crate::image::Image;
use crate::spec::{Network, Share};

const OURS: &str =
    "# Linux/um 7.3.4 Kernel Configuration\nCONFIG_LOCALVERSION=\"-apppot\"\nCONFIG_HZ=100\n\
    CONFIG_SMP=y\nCONFIG_OVERLAY_FS=y\nCONFIG_HOSTFS=y\nCONFIG_EXT4_FS=y\n";
const OLD: &str =
    "# Linux/um 6.1.0 Kernel Configuration\nCONFIG_LOCALVERSION=\"\"\nCONFIG_HZ=100\n\
    CONFIG_OVERLAY_FS=m\nCONFIG_HOSTFS=y\nCONFIG_EXT4_FS=y\n";

/// A kernel and an image in a temporary directory.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("linux");
        std::fs::write(&kernel, format!("#!/bin/sh\ncat <<'E'\n{config}E\n")).unwrap();
        std::fs::set_permissions(&kernel, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(directory.path().join("image"), vec![0; 8192]).unwrap();
        Place { directory }
    }

    fn spec(&self) -> MachineSpec {
        MachineSpec {
            image: Image {
                path: self.directory.path().join("image"),
                kind: ImageKind::Disk,
                filesystem: Some("ext4"),
                partition: Some(1),
                start: 1 << 20,
                boots_itself: false,
                stamp: None,
            },
            writes: Writes::Memory,
            kernel: Some(self.directory.path().join("linux")),
            firmware: crate::spec::Firmware::None,
            agent: Cow::Borrowed(b"agent"),
            memory: 64 << 20,
            cpus: 1,
            changes: Vec::new(),
            network: Network::None,
            shares: vec![Share {
                host: PathBuf::from("/"),
                guest: PathBuf::from("/home/ada/a job"),
                read_only: false,
            }],
            disks: Vec::new(),
            live: None,
            serial_terminal: false,
            connect: None,
            contract: Contract {
                id: String::from("job1"),
                jobdir: PathBuf::from("/home/ada/a job"),
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

    /// What the plan of `spec` shows, the host's own figures taken out.
    fn shown(&self, spec: &MachineSpec) -> String {
        let rendered = Plan::make(&Uml, spec).unwrap().render("uml");
        let place = self.directory.path().display().to_string();
        let argv = rendered
            .argv
            .iter()
            .map(|word| match word.starts_with("lpj=") {
                true => String::from("lpj=N"),
                false => word.replace(&place, "PLACE"),
            });
        let files = rendered.descriptors.iter().map(|(number, what)| {
            let what = what.split(" (").next().unwrap_or_default();
            format!("{number}: {}", what.replace(&place, "PLACE"))
        });
        argv.chain(files).collect::<Vec<_>>().join("\n")
    }
}

fn refusal(spec: &MachineSpec) -> String {
    Plan::make(&Uml, spec).unwrap_err().to_string()
}

#[test]
fn a_disk_image_under_an_overlay_in_memory() {
    let place = Place::new(OURS);
    insta::assert_snapshot!(place.shown(&place.spec()));
}

#[test]
fn a_directory_written_into_without_seccomp() {
    let place = Place::new(OURS);
    let mut spec = place.spec();
    spec.image = Image {
        path: PathBuf::from("/"),
        kind: ImageKind::Directory,
        filesystem: None,
        partition: None,
        start: 0,
        boots_itself: false,
        stamp: None,
    };
    spec.writes = Writes::Image;
    spec.seccomp = Seccomp::Off;
    spec.contract.stdin = Stdin::Null;
    spec.contract.env = vec![("SECRET".into(), "x".into())];
    insta::assert_snapshot!(place.shown(&spec));
    let document = Plan::make(&Uml, &spec).unwrap().document.unwrap();
    assert!(document.contains("apppot.env=SECRET%3Dx\n"), "{document}");
}

#[test]
fn a_kernel_that_can_be_given_its_memory_gets_the_initramfs_in_it() {
    for (more, given) in [("", false), ("CONFIG_UML_MEM_FD=y\n", true)] {
        let place = Place::new(&format!("{OURS}{more}"));
        let shown = place.shown(&place.spec());
        let initramfs = shown.contains("\ninitrd=/proc/self/fd/101\n");
        let memory = shown.contains("\nmem_fd=105\ninitrdmem=");
        assert_eq!((initramfs, memory), (!given, given), "{shown}");
        let rendered = Plan::make(&Uml, &place.spec()).unwrap().render("uml");
        assert_eq!(rendered.environment[0].0 == "TMPDIR", !given);
    }
}

#[test]
fn what_the_kernel_lacks_is_said() {
    let place = Place::new(OLD);
    let mut spec = place.spec();
    assert!(refusal(&spec).contains("6.1.0 has no module directory (needed for overlay)"));
    spec.writes = Writes::Image;
    Plan::make(&Uml, &spec).unwrap();
    spec.cpus = 2;
    assert!(refusal(&spec).contains("more than one CPU"));
    spec.cpus = 1;
    spec.image.filesystem = Some("squashfs");
    assert!(refusal(&spec).contains("filesystem 'squashfs'"));
}

#[test]
fn in_a_batch_job_resident_memory_is_kept_low() {
    for (config, trimmed) in [(OURS, true), (OLD, false)] {
        let place = Place::new(config);
        let mut spec = place.spec();
        spec.writes = Writes::Image;
        spec.trim_resident = true;
        assert_eq!(place.shown(&spec).contains("\nrss_trim=1\n"), trimmed);
    }
}

#[test]
fn what_the_backend_cannot_do_is_said() {
    let place = Place::new(OURS);
    let mut spec = place.spec();
    spec.image.kind = ImageKind::ReadOnly;
    spec.writes = Writes::Image;
    assert!(refusal(&spec).contains("cannot write into a squashfs or erofs image"));
    spec.writes = Writes::Overlay(PathBuf::from("/x"));
    assert!(refusal(&spec).contains("overlay file"));
}
