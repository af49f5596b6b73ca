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
fn copy_on_write_files_of_the_other_hypervisor_are_refused() {
    let Some(job) = Job::new() else { return };
    let Some(image) = debian_image() else { return };
    let (other, owner) = match job.site.backend {
        Backend::Uml => (&b"QFI\xfb\0\0\0\x03"[..], "User-Mode Linux"),
        Backend::Qemu => (&b"OOOM\0\0\0\x03"[..], "QEMU"),
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
