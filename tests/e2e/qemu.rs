//! What is QEMU's alone.

use std::path::Path;

use crate::support::tools::sha256;
use crate::support::{debian_image, Backend, Job};

/// A run with `--backend qemu` is refused before anything is started, and its error names these.
#[track_caller]
fn refused(run: crate::support::Run, names: &[&str]) {
    let done = run.with(&["--backend", "qemu"]).limit(30).go().exits(125);
    done.says(&["error: ", "hint: "]).says(names);
}

#[test]
fn missing_and_old_programs_are_named() {
    let Some(job) = Job::new() else { return };
    let programs = job.directory_beside("programs");
    let run = || job.sh("touch ran").env("PATH", &programs);
    refused(run(), &["qemu-system-x86_64", "none on PATH"]);
    let old = job.script(
        "old",
        "#!/bin/sh\necho 'QEMU emulator version 6.2.0 (made up)'\n",
    );
    std::fs::rename(old, programs.join("qemu-system-x86_64")).unwrap();
    refused(run(), &["version 6.2.0", "7.2 is the oldest"]);
    assert!(!job.has("ran"));
}

#[test]
fn modes_that_it_has_not_are_refused_as_options_alone() {
    let Some(job) = Job::new() else { return };
    for mode in ["auto", "off"] {
        let run = job.sh("touch ran").with(&["--seccomp", mode]);
        refused(run, &["--seccomp", "'qemu'"]);
    }
    assert!(!job.has("ran"));
    if job.site.backend == Backend::Qemu {
        let configured = job.run(&["true"]).env("APPPOT_SECCOMP", "off");
        configured.go().exits(0).quietly();
    }
}

#[test]
fn what_is_no_kernel_for_it_is_refused() {
    let Some(job) = Job::new() else { return };
    job.put("short", "hello");
    // An ELF file, as the kernels of User-Mode Linux are.
    for kernel in ["short", "/bin/true"] {
        let run = job.sh("touch ran").with(&["--kernel", kernel]);
        refused(run, &[kernel, "no x86 Linux kernel"]);
    }
    let missing = job.sh("touch ran").with(&["--kernel", "missing"]);
    missing
        .with(&["--backend", "qemu"])
        .go()
        .exits(125)
        .says(&["missing", "No such file"]);
    assert!(!job.has("ran"));
}

#[test]
fn a_kernel_without_a_driver_is_refused() {
    let Some(job) = Job::new() else { return };
    if job.site.backend != Backend::Qemu {
        return;
    }
    // A kernel of which nothing is known but that it has the bus.
    let place = job.directory_beside("kernel");
    let kernel = place.join("vmlinux");
    std::fs::copy(&job.site.kernel, &kernel).unwrap();
    let modules = job.site.kernel.with_file_name("modules");
    for release in std::fs::read_dir(modules).unwrap() {
        let fake = place.join("modules").join(release.unwrap().file_name());
        std::fs::create_dir_all(&fake).unwrap();
        let built_in = "kernel/drivers/virtio/virtio_pci.ko\n";
        std::fs::write(fake.join("modules.builtin"), built_in).unwrap();
    }
    let run = job.sh("touch ran");
    let run = run.with(&["--kernel", kernel.to_str().unwrap()]);
    refused(run, &["has no driver", "make kernel-qemu"]);
    assert!(!job.has("ran"));
}

#[test]
fn copy_on_write_files_of_the_other_hypervisor_are_refused() {
    let Some(job) = Job::new() else { return };
    let Some(image) = debian_image() else { return };
    let (other, owner) = match job.site.backend {
        Backend::Uml => (&b"QFI\xfb\0\0\0\x03"[..], "User-Mode Linux"),
        _ => (&b"OOOM\0\0\0\x03"[..], "QEMU"),
    };
    job.put("overlay", other);
    let run = job
        .sh("touch ran")
        .image(image)
        .with(&["--overlay", "overlay"]);
    run.go()
        .exits(125)
        .says(&["overlay", "no copy-on-write file of", owner]);
    assert_eq!(std::fs::read(job.path().join("overlay")).unwrap(), other);
}

#[test]
fn the_same_image_runs_on_both() {
    let Some(job) = Job::new() else { return };
    if job.site.backend != Backend::Qemu {
        // This one has both kernels: there it is `linux.uml`'s turn as well.
        return;
    }
    let Some(image) = debian_image() else { return };
    let before = sha256(image);
    let script = "cat /etc/os-release; id -u; id -g; pwd; printf 'a\\0b' | od -c; cat; exit 37";
    let run = || job.sh(script).image(image).bytes("to stdin");
    let qemu = run().go().exits(37);
    assert!(
        Path::new("/usr/bin/linux.uml").exists(),
        "install user-mode-linux"
    );
    let uml = run()
        .without_env("APPPOT_KERNEL")
        .without_env("APPPOT_BACKEND");
    let uml = uml.with(&["--backend", "uml"]).go().exits(37);
    assert_eq!(qemu.text(), uml.text());
    assert_eq!(sha256(image), before);
}

#[test]
fn says_what_executes_the_guest() {
    let Some(job) = Job::new() else { return };
    if job.site.backend != Backend::Qemu {
        return;
    }
    let done = job
        .sh("true")
        .with(&["-v", "--report", "report"])
        .go()
        .exits(0);
    let shown = ["KVM", "TCG"]
        .iter()
        .any(|name| done.stderr.contains(&format!("accelerator: {name}")));
    assert!(shown, "{}", done.stderr);
    let report: serde_json::Value = serde_json::from_str(&job.read("report")).unwrap();
    assert_eq!(report["machine"]["backend"], "qemu");
    assert!(report["machine"]["accelerator"].is_string(), "{report}");
}

/// A fake whose `--version` is fine, and which then does this.
fn fake_qemu(job: &Job, then: &str) -> String {
    let programs = job.directory_beside("fake");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo 'QEMU emulator version 9.9.9'; exit; }}\n{then}\n"
    );
    let fake = job.script("fake-qemu", &text);
    std::fs::rename(fake, programs.join("qemu-system-x86_64")).unwrap();
    format!("{}:/usr/bin:/bin", programs.display())
}

#[test]
fn what_the_hypervisor_says_last_is_in_the_error() {
    let Some(job) = Job::new() else { return };
    if job.site.backend != Backend::Qemu {
        return;
    }
    for (then, how) in [
        ("echo 'made-up complaint' >&2; exit 3", "exit status 3"),
        ("echo 'made-up complaint' >&2; kill -9 $$", "signal 9"),
    ] {
        let run = job.sh("true").env("PATH", fake_qemu(&job, then));
        let done = run.with(&["--containment", "off"]).limit(30).go();
        done.exits(125).says(&[how, "made-up complaint"]);
        std::fs::remove_dir_all(job.beside("fake")).unwrap();
    }
}

#[test]
fn a_kvm_that_does_not_work_is_passed_over() {
    let Some(job) = Job::new() else { return };
    if job.site.backend != Backend::Qemu {
        return;
    }
    if !Path::new("/dev/kvm").exists() {
        eprintln!("skipped: nothing can be mounted on /dev/kvm");
        return;
    }
    job.put("kvm", "no device");
    for (mode, reason) in [("666", "does not work"), ("000", "/dev/kvm: ")] {
        let script = format!("chmod {mode} kvm; mount --bind kvm /dev/kvm");
        let run = job.sh("echo ran").mounts(&script).with(&["-v"]);
        let done = run.limit(60).go().exits(0).prints("ran\n");
        done.says(&["accelerator: TCG", reason]);
    }
}

#[test]
fn memory_that_the_kernel_cannot_start_in_is_refused() {
    let Some(job) = Job::new() else { return };
    if job.site.backend != Backend::Qemu {
        return;
    }
    refused(
        job.sh("touch ran").with(&["--memory", "48M"]),
        &["48 MiB does not fit", "MiB to start", "--memory"],
    );
    assert!(!job.has("ran"));
}

#[test]
fn a_missing_virtiofsd_is_named() {
    let Some(job) = Job::new() else { return };
    if job.site.backend != Backend::Qemu {
        return;
    }
    let programs = job.directory_beside("programs");
    let old = job.script("old", "#!/bin/sh\necho 'virtiofsd 1.10.0'\n");
    std::fs::rename(old, programs.join("virtiofsd")).unwrap();
    let path = format!("{}:/usr/bin:/bin", programs.display());
    let run = job.sh("touch ran").env("PATH", path);
    // A newer one of the distribution's may be found after it.
    let done = run.with(&["--channel", "virtiofs"]).limit(60).go();
    match done.code() {
        Some(0) => assert!(job.has("ran")),
        _ => drop(
            done.exits(125)
                .says(&["version 1.10.0", "1.13 is the oldest", "hint: "]),
        ),
    }
}
