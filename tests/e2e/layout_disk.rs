//! Layout disk: one file that launchers boot with their own kernel, and that boots by itself.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use apppot_contract::link::{Decoder, Frame};
use apppot_contract::{document, Contract, Outcome, Report, Workload};

use crate::support::machine::Machine;
use crate::support::metadata::Metadata;
use crate::support::tools::{copy_sparse, ext4, sha256, tool};
use crate::support::{boot_disk, sysv_disk, Backend, Job};

#[test]
fn launchers_boot_it_with_their_own_kernel() {
    let Some(job) = Job::new() else { return };
    let Some(image) = boot_disk() else { return };
    let before = sha256(image);
    let script = "cat /proc/1/comm; id -u; cat; echo made >file; exit 37";
    let run = || job.sh(script).image(image).bytes("to stdin\n");
    let uid = job.site.user.uid;
    let done = run().go().exits(37);
    done.prints(&format!("init\n{uid}\nto stdin\n"));
    assert_eq!(job.read("file"), "made\n");
    if job.site.backend == Backend::Uml {
        let system = ["--boot", "system"];
        let done = run().with(&system).limit(120).go().exits(37);
        done.prints(&format!("systemd\n{uid}\nto stdin\n"));
    }
    assert_eq!(sha256(image), before);
}

#[test]
fn its_filesystem_and_its_table_are_sound() {
    let Some(job) = Job::new() else { return };
    let Some(image) = boot_disk() else { return };
    let name = image.to_str().unwrap();
    job.apppot(&["image", "verify", name]).go().exits(0);
    assert!(tool("sfdisk", &["--verify", name]).contains("No errors detected"));
    let done = job.apppot(&["image", "info", name]).go().exits(0);
    let version = format!("agent          {}", env!("CARGO_PKG_VERSION"));
    done.shows(&["layout         disk", &version]);
}

/// Also that an image is a source of images.
#[test]
fn a_source_without_a_kernel_is_refused() {
    let Some(job) = Job::new() else { return };
    let partition = ext4(&job, "partition");
    let words = ["image", "import", partition.to_str().unwrap(), "disk.img"];
    let disk = ["--layout", "disk"];
    let done = job.apppot(&[&words[..], &disk].concat()).go().exits(125);
    done.says(&["no kernel", "hint: ", "linux-image-amd64"]);
    assert!(!job.has("disk.img"));
    let squashfs = [&words[..], &disk, &["--format", "squashfs"]].concat();
    job.apppot(&squashfs)
        .go()
        .exits(125)
        .says(&["ext4", "hint: "]);
    job.apppot(&words).go().exits(0);
    let done = job
        .run(&["cat", "/etc/name"])
        .image(&job.path().join("disk.img"));
    done.go().exits(0).prints("partition");
}

/// Sectors of the root partition.
fn root_sectors(disk: &Path) -> u64 {
    let mut size = [0; 16];
    let file = File::open(disk).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut size, 1024 + 32).unwrap();
    let number = |at: usize| u64::from_le_bytes(size[at..at + 8].try_into().unwrap());
    number(8) + 1 - number(0)
}

/// The service has run: nothing else makes the root grow.
fn grows_without_a_contract(image: Option<&Path>, says: &str, has_network: bool) {
    let Some(job) = Job::new() else { return };
    if job.site.backend != Backend::Qemu {
        return;
    }
    let Some(image) = image else { return };
    let disk = job.beside("disk.img");
    copy_sparse(image, &disk);
    let file = File::options().write(true).open(&disk).unwrap();
    file.set_len(file.metadata().unwrap().len() + (256 << 20))
        .unwrap();
    let before = root_sectors(&disk);
    // As clouds have it: a disk by NVMe. And user-data that is for others.
    let metadata = Metadata::start(Duration::ZERO, "#!/bin/sh\necho theirs\n");
    let drive = carrier(&job, "CIDATA", "user-data", "#cloud-config\n");
    let args = [&metadata.args()[..], &["-drive", &drive]].concat();
    let mut machine = Machine::start(&job, &disk, &args);
    machine.until("the end of the boot", |machine| {
        machine.says().contains(says)
    });
    machine.until("a larger root", |_| root_sectors(&disk) > before);
    // Where the system brings up no network, systemd-networkd is asked to.
    let asked = |_: &Machine| metadata.asked.load(Relaxed) >= 2;
    machine.until("user-data", |machine| asked(machine) || !has_network);
    // The filesystem grows right after the table, and the journal keeps it sound.
    std::thread::sleep(Duration::from_secs(2));
    drop(machine);
    // And what the image was rounded up by.
    let more = (root_sectors(&disk) - before) * 512;
    assert!((256 << 20..258 << 20).contains(&more), "{more}");
    let name = disk.to_str().unwrap();
    assert!(tool("sfdisk", &["--verify", name]).contains("No errors detected"));
    job.give(&disk);
    let script = "stat -f -c '%b %s' /";
    let done = job
        .sh(script)
        .image(&disk)
        .with(&["--write", "--root"])
        .go()
        .exits(0);
    let (blocks, size) = done.text().trim().split_once(' ').map_or_else(
        || panic!("{}", done.text()),
        |(blocks, size)| (blocks.parse::<u64>().unwrap(), size.parse::<u64>().unwrap()),
    );
    assert!(
        blocks * size > (before * 512) + (128 << 20),
        "{blocks} of {size}"
    );
}

#[test]
fn without_a_contract_it_is_an_ordinary_system_that_grows() {
    grows_without_a_contract(boot_disk(), "login:", true);
}

#[test]
fn without_systemd_a_script_is_the_service() {
    grows_without_a_contract(sysv_disk(), "Entering runlevel: 2", false);
}

#[test]
fn an_init_of_system_v_runs_the_job() {
    let Some(job) = Job::new() else { return };
    let Some(image) = sysv_disk() else { return };
    let script = "cat /proc/1/comm; id -u; cat; echo made >file; exit 37";
    let run = job.sh(script).image(image).bytes("to stdin\n");
    let done = run.with(&["--boot", "system"]).limit(420).go().exits(37);
    let uid = job.site.user.uid;
    done.prints(&format!("init\n{uid}\nto stdin\n"));
    assert_eq!(job.read("file"), "made\n");
}

/// What the agent sends until the report.
fn listen(mut link: UnixStream, machine: &Machine) -> (String, Report) {
    let (mut decoder, mut bytes) = (Decoder::default(), vec![0; 1 << 16]);
    let mut stdout = Vec::new();
    link.set_read_timeout(Some(Duration::from_secs(420)))
        .unwrap();
    loop {
        let len = link.read(&mut bytes).unwrap();
        assert!(len > 0, "the link ended early: {}", machine.says());
        decoder.feed(&bytes[..len]);
        while let Some(frame) = decoder.next().unwrap() {
            match frame {
                Frame::Stdout(text) => stdout.extend_from_slice(text),
                Frame::Report(text) => {
                    let stdout = String::from_utf8_lossy(&stdout).into_owned();
                    return (stdout, Report::decode(text).unwrap());
                }
                _ => {}
            }
        }
    }
}

/// A contract whose job's link is the first port of virtio.
fn greeting() -> String {
    let contract = Contract {
        link: Some(PathBuf::from("/dev/vport0p1")),
        jobdir: PathBuf::from("/tmp"),
        workload: Workload::Command(["sh", "-c", "echo here; exit 5"].map(Into::into).into()),
        ..Contract::default()
    };
    document::encode(&contract)
}

/// A FAT filesystem with this label and one file, as QEMU's argument.
fn carrier(job: &Job, label: &str, file: &str, content: &str) -> String {
    let content = job.put(file, content);
    let carrier = job.beside("carrier.img");
    let name = carrier.to_str().unwrap();
    tool(
        "mformat",
        &["-i", name, "-C", "-T", "2880", "-v", label, "::"],
    );
    let target = format!("::/{file}");
    tool("mcopy", &["-i", name, content.to_str().unwrap(), &target]);
    format!("if=virtio,format=raw,file={name}")
}

/// Boots a machine with a link and these arguments, and fails unless the job of [`greeting`] has run in it.
fn greets(job: &Job, image: &Path, args: &[&str]) {
    let socket = job.beside("link");
    let listener = UnixListener::bind(&socket).unwrap();
    let chardev = format!("socket,id=link,path={}", socket.display());
    let disk = job.beside("disk.img");
    copy_sparse(image, &disk);
    // The first device of virtio: its number is in the port's name.
    let link = [
        "-device",
        "virtio-serial-pci,max_ports=2",
        "-chardev",
        &chardev,
        "-device",
        "virtserialport,nr=1,chardev=link",
    ];
    let machine = Machine::start(job, &disk, &[&link[..], args].concat());
    let (stdout, report) = listen(listener.accept().unwrap().0, &machine);
    assert_eq!(stdout, "here\n");
    assert_eq!(report.outcome, Outcome::Exited { status: 5 });
}

/// The disks that are made for machines of AppPot, and those that NoCloud is made of.
#[test]
fn a_contract_disk_is_found_by_its_label() {
    let Some(job) = Job::new() else { return };
    if job.site.backend != Backend::Qemu {
        return;
    }
    let Some(image) = boot_disk() else { return };
    for (label, file) in [("APPPOTJOB", "contract"), ("CIDATA", "user-data")] {
        let drive = carrier(&job, label, file, &greeting());
        greets(&job, image, &["-drive", &drive]);
        fs::remove_file(job.beside("link")).unwrap();
        fs::remove_file(job.beside("carrier.img")).unwrap();
    }
}

/// Without a network of its own configuration, and with a service that is late.
#[test]
fn the_user_data_of_a_cloud_is_a_contract() {
    let Some(job) = Job::new() else { return };
    if job.site.backend != Backend::Qemu {
        return;
    }
    let Some(image) = boot_disk() else { return };
    let metadata = Metadata::start(Duration::from_secs(5), &greeting());
    greets(&job, image, &metadata.args());
    // At least once in vain, for a token, and for the user-data.
    assert!(metadata.asked.load(Relaxed) >= 3);
}

/// What the image's own loader has started, and the job's way there and back.
fn boots_itself(options: &[&str], script: &str, prints: &str) {
    let Some(job) = Job::new() else { return };
    if job.site.backend == Backend::Uml {
        return;
    }
    let Some(image) = boot_disk() else { return };
    let before = sha256(image);
    // More than any command line holds.
    let long = "x".repeat(20_000);
    let script = format!("{script}; id -u; cat; echo $LONG | wc -c; echo made >file; echo lost >/tmp/x; echo err >&2; exit 37");
    let long = format!("LONG={long}");
    let run = job.sh(&script).image(image).without_env("APPPOT_KERNEL");
    let run = run.with(options).with(&["--env", &long]);
    let done = run.bytes("to stdin\n").limit(420).go().exits(37);
    let uid = job.site.user.uid;
    let done = done.prints(&format!("{prints}\n{uid}\nto stdin\n20001\n"));
    assert!(done.stderr.ends_with("err\n"), "{}", done.stderr);
    assert_eq!(job.read("file"), "made\n");
    assert_eq!(sha256(image), before);
}

#[test]
fn a_bios_boots_it_and_the_job_is_a_service() {
    let script = "cat /proc/1/comm; test -e /boot/vmlinuz-$(uname -r) && echo own";
    boots_itself(&["--boot", "system"], script, "systemd\nown");
}

#[test]
fn uefi_firmware_boots_it() {
    let script = "cat /proc/1/comm; ls -d /sys/firmware/efi";
    let options = ["--firmware", "uefi", "--channel", "link"];
    boots_itself(&options, script, "init\n/sys/firmware/efi");
}

#[test]
fn what_no_firmware_can_boot_is_refused() {
    let Some(job) = Job::new() else { return };
    let Some(image) = boot_disk() else { return };
    let run = || job.sh("touch ran").with(&["--firmware", "bios"]);
    let refused = |run: crate::support::Run, names: &[&str]| run.go().exits(125).says(names);
    let uml = run().image(image).with(&["--backend", "uml"]);
    refused(uml, &["uml", "boot loader", "hint: "]);
    let qemu = || run().with(&["--backend", "qemu"]);
    let partition = qemu().image(&ext4(&job, "partition"));
    refused(partition, &["no whole disk", "hint: ", "--layout disk"]);
    let kernel = job.put("kernel", "");
    let chosen = ["--kernel", kernel.to_str().unwrap()];
    refused(qemu().image(image).with(&chosen), &["--kernel", "hint: "]);
    assert!(!job.has("ran"));
}
