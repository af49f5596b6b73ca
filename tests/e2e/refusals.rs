//! Bad input: a clear error before the boot, and nothing runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::tools::ext4;
use crate::support::{Job, Run};

/// The run fails with status 125 before a machine is started, and its error names these.
fn refused(run: Run, names: &[&str]) {
    let shown: String = format!("{:?}", run.command()).chars().take(1000).collect();
    let done = run.go();
    assert_eq!(done.code(), Some(125), "{shown}: {}", done.stderr);
    assert!(done.stderr.starts_with("error: "), "{}", done.stderr);
    for name in names {
        assert!(
            done.stderr.contains(name),
            "{shown}: no {name:?} in: {}",
            done.stderr
        );
    }
    assert!(
        !done.stderr.contains("console's last lines"),
        "{shown}: booted: {}",
        done.stderr
    );
}

#[test]
fn images() {
    let Some(job) = Job::new() else { return };
    job.put("empty.img", "");
    job.put("short.img", "hello");
    job.put("zeros.img", vec![0; 1 << 20]);
    job.put("text.img", "no filesystem\n".repeat(10_000));
    let mut table = vec![0; 1 << 20];
    table[510..512].copy_from_slice(b"\x55\xaa");
    job.put("table.img", &table);
    table[450] = 0x83;
    table[454..462].copy_from_slice(&[0, 8, 0, 0, 0, 0, 1, 0]);
    job.put("nothing.img", &table);
    let private = job.put("private.img", "x");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o000)).unwrap();
    fs::create_dir(job.path().join("emptydir")).unwrap();
    for (image, names) in [
        ("missing.img", &["missing.img", "No such file"][..]),
        ("empty.img", &["empty.img", "is empty", "hint: "]),
        ("short.img", &["short.img", "no appliance image"]),
        ("zeros.img", &["zeros.img", "no appliance image", "hint: "]),
        ("text.img", &["text.img", "no appliance image"]),
        ("table.img", &["table.img", "no appliance image"]),
        ("nothing.img", &["nothing.img", "no appliance image"]),
        (
            "private.img",
            &["private.img", "ermission denied", "hint: "],
        ),
        ("emptydir", &["emptydir", "no appliance image"]),
        (
            "/dev/null",
            &["/dev/null", "neither a file nor a directory"],
        ),
    ] {
        refused(job.sh("touch ran").with(&["--image", image]), names);
    }
    assert!(!job.has("ran"));
}

#[test]
fn an_image_that_is_cut_off_fails_with_a_reason() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    fs::File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let done = job.sh("touch ran").image(&image).limit(30).go().exits(125);
    assert!(!job.has("ran"));
    done.says(&["error: "]);
}

#[test]
fn memory() {
    let Some(job) = Job::new() else { return };
    for (memory, names) in [
        ("3", &["3 bytes", "at least", "hint: "][..]),
        ("0", &["at least"]),
        ("10M", &["10 MiB", "at least"]),
        ("100T", &["does not fit", "MiB free", "hint: "]),
    ] {
        refused(job.sh("touch ran").with(&["--memory", memory]), names);
    }
    assert!(!job.has("ran"));
}

#[test]
fn memory_beyond_the_limit_of_the_address_space() {
    let Some(job) = Job::new() else { return };
    let run = || job.run(&["true"]).address_space(2 << 30);
    refused(
        run().with(&["--memory", "3G"]),
        &["address space", "2048 MiB", "hint: ", "ulimit -v"],
    );
    run().with(&["--memory", "512M"]).go().exits(0);
}

#[test]
fn memory_that_has_no_place() {
    let Some(job) = Job::new() else { return };
    let run = job
        .run(&["true"])
        .env("TMPDIR", "/proc")
        .with(&["--memory", "90T"]);
    refused(run, &["/dev/shm", "/proc", "MiB free", "set TMPDIR"]);
    // A TMPDIR that does not exist does no harm while there is another place.
    job.run(&["true"])
        .env("TMPDIR", "/nonexistent")
        .go()
        .exits(0);
}

/// Mounts after which memory has a place on /dev/shm only, of this many MiB.
fn little_room(mib: u32) -> String {
    format!(
        "mount -t tmpfs -o size={mib}M,mode=1777 tmpfs /dev/shm
         for d in /tmp /var/tmp; do mount --bind $d $d; mount -o remount,bind,ro $d; done\n"
    )
}

#[test]
fn a_full_filesystem_for_memory() {
    let Some(job) = Job::new() else { return };
    let full = little_room(40) + "head -c 30M /dev/zero >/dev/shm/other";
    for (mounts, options, names) in [
        (
            &full,
            &[][..],
            &[
                "does not fit",
                "/dev/shm has 10 MiB free",
                "/tmp: Read-only",
            ][..],
        ),
        (
            &little_room(100),
            &["--memory", "200M"],
            &["200 MiB", "/dev/shm has 100 MiB free", "--memory 100M"],
        ),
    ] {
        refused(job.run(&["true"]).mounts(mounts).with(options), names);
    }
    // What nobody has asked for becomes as much as there is.
    let shown = job
        .run(&["true"])
        .mounts(&little_room(100))
        .with(&["--dry-run"]);
    shown.go().exits(0).shows(&["mem=100M"]);
}

#[test]
fn a_filesystem_for_memory_that_is_mounted_noexec() {
    let Some(job) = Job::new() else { return };
    let place = job.directory_beside("noexec");
    let mounts = little_room(10)
        + &format!(
            "mount -t tmpfs -o noexec,mode=1777 tmpfs '{}'",
            place.display()
        );
    let run = job.run(&["true"]).mounts(&mounts).env("TMPDIR", &place);
    let told = format!("{}: mounted noexec", place.display());
    refused(run.with(&["--memory", "200M"]), &["200 MiB", &told]);
}

#[test]
fn a_filesystem_for_memory_that_fills_up_later() {
    let Some(job) = Job::new() else { return };
    // Room when the machine starts, taken by somebody else while it runs. $$ becomes the launcher.
    let mounts = "mount -t tmpfs -o size=200M,mode=1777 tmpfs /dev/shm
        (while kill -0 $$ && [ ! -e up ]; do sleep 0.02; done
         head -c 200M /dev/zero >/dev/shm/other || true; echo >go) >/dev/null 2>&1 &";
    let script = "touch up; while [ ! -e go ]; do sleep 0.05; done; head -c 120M /dev/zero | tail >/dev/null";
    let run = job.sh(script).mounts(mounts).with(&["--memory", "190M"]);
    run.limit(60).go().exits(125).says(&["error: "]);
}

#[test]
fn kernels() {
    let Some(job) = Job::new() else { return };
    job.script("hangs", "#!/bin/sh\nexec sleep 100\n");
    job.script("lies", "#!/bin/sh\necho '# Linux/um'\n");
    for (kernel, names) in [
        (
            "/bin/true",
            &["/bin/true", "no User-Mode Linux kernel", "hint: "][..],
        ),
        ("/etc/passwd", &["/etc/passwd", "not executable", "hint: "]),
        ("missing", &["missing", "No such file"]),
        ("/", &["no file"]),
        ("./hangs", &["hangs", "--showconfig"]),
        ("./lies", &["lies", "no User-Mode Linux kernel"]),
    ] {
        refused(job.sh("touch ran").with(&["--kernel", kernel]), names);
    }
    assert!(!job.has("ran"));
}

#[test]
fn too_long_for_anything() {
    let Some(job) = Job::new() else { return };
    let mut run = job.run(&["true"]);
    for number in 0..60 {
        // Percent-encoded this is three times as long: beyond the 4 MiB of a contract.
        run = run.with(&[
            "--env".to_owned(),
            format!("V{number}={}", "\u{1}".repeat(30_000)),
        ]);
    }
    refused(run, &["error: "]);
}

#[test]
fn few_open_files() {
    let Some(job) = Job::new() else { return };
    let run = |most| job.run(&["true"]).limit_of(libc::RLIMIT_NOFILE, most);
    let names = ["64 open files (RLIMIT_NOFILE)", "ulimit -n", "hint: "];
    refused(run(64), &names);
    run(256).go().exits(0).quietly();
}

#[test]
fn files_that_are_none() {
    let Some(job) = Job::new() else { return };
    let fifo = job.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    job.give(&fifo);
    let run = |options: &[&str]| job.sh("touch ran").with(options);
    refused(run(&["--env-file", "fifo"]), &["fifo", "nobody writes"]);
    refused(
        run(&["--env-file", "/dev/zero"]),
        &["/dev/zero", "larger than"],
    );
    refused(run(&["--time-limit", "0"]), &["time limit is 0", "option"]);
    refused(
        run(&["--image", "ubuntu:22.04"]),
        &["no image file 'ubuntu:22.04'", "hint: "],
    );
    let config = job.path().join("apppot.toml");
    fs::rename(&fifo, &config).unwrap();
    refused(run(&[]), &["apppot.toml", "no regular file"]);
    fs::remove_file(&config).unwrap();
    job.put("apppot.toml", "");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o000)).unwrap();
    refused(run(&[]), &["apppot.toml", "ermission denied"]);
    assert!(!job.has("ran"));
}
