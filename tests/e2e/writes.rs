//! What becomes of writes to the appliance.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::support::tools::{ext4, sha256, small_root};
use crate::support::{Backend, Input, Job};

const APPEND: &str = "echo more >>/etc/name; cat /etc/name";

#[test]
fn vanish_by_default() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    let before = (sha256(&image), image.metadata().unwrap().mtime_nsec());
    for options in [&["--root"][..], &["--root", "--overlay", "memory"]] {
        let run = job.sh(APPEND).image(&image).with(options);
        run.go().exits(0).prints("imagemore\n");
    }
    assert_eq!(
        (sha256(&image), image.metadata().unwrap().mtime_nsec()),
        before
    );
}

#[test]
fn vanish_with_the_hosts_root() {
    let Some(job) = Job::new() else { return };
    job.sh("echo x >/etc/apppot-test-file && cat /etc/apppot-test-file")
        .with(&["--root"])
        .go()
        .exits(0)
        .prints("x\n");
    assert!(!std::path::Path::new("/etc/apppot-test-file").exists());
    job.sh("test ! -e /etc/apppot-test-file").go().exits(0);
}

#[test]
fn are_kept_in_an_overlay_file() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    let before = (sha256(&image), image.metadata().unwrap().mtime_nsec());
    let run = || {
        job.sh(APPEND)
            .image(&image)
            .with(&["--root", "--overlay", "kept.cow"])
            .go()
    };
    run().exits(0).prints("imagemore\n");
    run().exits(0).prints("imagemore\nmore\n");
    run().exits(0).prints("imagemore\nmore\nmore\n");
    assert_eq!(
        (sha256(&image), image.metadata().unwrap().mtime_nsec()),
        before
    );
    let overlay = job.path().join("kept.cow").metadata().unwrap();
    assert_eq!(overlay.uid(), job.site.user.uid);
    assert!(
        overlay.blocks() * 512 < 8 << 20,
        "{} blocks",
        overlay.blocks()
    );
    // Without it the image is as it was.
    job.run(&["cat", "/etc/name"])
        .image(&image)
        .go()
        .exits(0)
        .prints("image");
}

#[test]
fn to_a_disk_that_becomes_full_are_told_of() {
    let Some(job) = Job::new() else { return };
    if job.site.backend == Backend::Libvirt {
        // Its daemon does not see the small disk.
        return;
    }
    let place = job.directory_beside("place");
    let overlay = place.join("kept.cow");
    let mounts = format!(
        "mount -t tmpfs -o size=1M,mode=1777 tmpfs '{}'",
        place.display()
    );
    let script = "i=0; while [ $i -lt 400 ]; do printf '%09999d' $i; i=$((i + 1)); done >/large";
    let options = ["--root", "--overlay", overlay.to_str().unwrap()];
    let run = job.sh(script).image(&ext4(&job, "image")).with(&options);
    let done = run.mounts(&mounts).go().exits(125);
    done.says(&["warning: no space is left", "kept.cow", "error:"]);
}

#[test]
fn are_kept_in_an_overlay_file_on_debian() {
    let Some(job) = Job::new() else { return };
    let script = "echo x | sudo -n tee -a /etc/kept; sudo -n sync";
    for expected in ["x\n", "x\n"] {
        let Some(run) = job.sh(script).debian() else {
            return;
        };
        run.with(&["--overlay", "debian.cow"])
            .go()
            .exits(0)
            .prints(expected);
    }
    let run = job.run(&["cat", "/etc/kept"]).debian().unwrap();
    run.with(&["--overlay", "debian.cow"])
        .go()
        .exits(0)
        .prints("x\nx\n");
}

#[test]
fn an_overlay_file_of_something_else_is_refused() {
    let Some(job) = Job::new() else { return };
    let (image, other) = (ext4(&job, "image"), ext4(&job, "other"));
    let run = |image| {
        job.sh("true")
            .image(image)
            .with(&["--overlay", "kept.cow"])
            .go()
    };
    run(&image).exits(0);
    let size = job.path().join("kept.cow").metadata().unwrap().len();
    run(&other)
        .exits(125)
        .says(&["kept.cow", "was made for", "hint: "]);
    job.put("notes", "precious");
    let refused = job
        .sh("true")
        .image(&image)
        .with(&["--overlay", "notes"])
        .go();
    refused.exits(125).says(&["notes", "no copy-on-write file"]);
    assert_eq!(job.read("notes"), "precious");
    // A changed image: its blocks would not fit to those in the file.
    std::process::Command::new("touch")
        .arg("-d")
        .arg("@1000000000")
        .arg(&image)
        .status()
        .unwrap();
    run(&image).exits(125).says(&["kept.cow", "changed"]);
    assert_eq!(job.path().join("kept.cow").metadata().unwrap().len(), size);
    let missing = job
        .sh("true")
        .image(&other)
        .with(&["--overlay", "no/such/directory/file"])
        .go();
    missing.exits(125).says(&["no/such/directory"]);
}

#[test]
fn an_overlay_file_serves_one_machine_at_a_time() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    let run = |script: &str| {
        job.sh(script)
            .image(&image)
            .with(&["--overlay", "kept.cow"])
    };
    let mut first = run("echo up; read -r line").input(Input::Open).start();
    first.until_it_prints("up");
    run("true").go().exits(125).says(&["kept.cow", "in use"]);
    // Others may read the image meanwhile.
    job.sh("true").image(&image).go().exits(0);
    first.end_input();
    first.finish();
    run("true").go().exits(0);
}

#[test]
fn go_into_the_image_when_asked() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    let run = || {
        job.sh(APPEND)
            .image(&image)
            .with(&["--root", "--write"])
            .go()
    };
    run().exits(0).prints("imagemore\n");
    run().exits(0).prints("imagemore\nmore\n");
    job.run(&["cat", "/etc/name"])
        .image(&image)
        .go()
        .exits(0)
        .prints("imagemore\nmore\n");
    // Left as a clean filesystem.
    crate::support::tools::tool("e2fsck", &["-fn", image.to_str().unwrap()]);
}

#[test]
fn go_into_the_image_also_when_the_command_fails() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    for (script, status) in [
        ("echo a >>/etc/name; kill -9 $$", 137),
        ("echo b >>/etc/name; exit 3", 3),
    ] {
        job.sh(script)
            .image(&image)
            .with(&["--root", "--write"])
            .go()
            .exits(status);
    }
    job.run(&["cat", "/etc/name"])
        .image(&image)
        .go()
        .exits(0)
        .prints("imagea\nb\n");
}

#[test]
fn are_refused_when_the_image_is_in_use() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    for (first, second) in [
        (&["--write"][..], &["--write"][..]),
        (&[], &["--write"]),
        (&["--write"], &[]),
    ] {
        let holder = job.sh("echo up; read -r line").image(&image).with(first);
        let mut holder = holder.input(Input::Open).start();
        holder.until_it_prints("up");
        job.sh("true")
            .image(&image)
            .with(second)
            .go()
            .exits(125)
            .says(&["in use"]);
        holder.end_input();
        holder.finish();
    }
}

#[test]
fn are_refused_when_the_image_is_read_only() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o444)).unwrap();
    job.sh("true").image(&image).go().exits(0);
    job.sh("true")
        .image(&image)
        .with(&["--write"])
        .go()
        .exits(125)
        .says(&["image.img", "ermission"]);
}

#[test]
fn go_into_a_directory_when_asked() {
    let Some(job) = Job::new() else { return };
    let root = small_root(&job, "root");
    let script = "echo more >>/etc/name; cat /etc/name";
    job.sh(script)
        .image(&root)
        .go()
        .exits(0)
        .prints("rootmore\n");
    assert_eq!(
        std::fs::read_to_string(root.join("etc/name")).unwrap(),
        "root"
    );
    job.sh(script)
        .image(&root)
        .with(&["--write"])
        .go()
        .exits(0)
        .prints("rootmore\n");
    assert_eq!(
        std::fs::read_to_string(root.join("etc/name")).unwrap(),
        "rootmore\n"
    );
}

#[test]
fn that_cannot_be_are_refused() {
    let Some(job) = Job::new() else { return };
    let root = small_root(&job, "root");
    job.sh("true")
        .image(&root)
        .with(&["--overlay", "kept.cow"])
        .go()
        .exits(125)
        .says(&["overlay"]);
    assert!(!job.has("kept.cow"));
    let host = job.sh("true").with(&["--write"]).go();
    host.exits(125).says(&["never written", "hint: "]);
    let image = ext4(&job, "image");
    let both = ["--write", "--overlay", "kept.cow"];
    job.sh("true")
        .image(&image)
        .with(&both)
        .go()
        .exits(2)
        .says(&["cannot be used with"]);
}
