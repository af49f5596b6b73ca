//! Files that a command makes in the job directory.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::support::{copies_files, noise, Job};

fn metadata(job: &Job, name: &str) -> Metadata {
    job.path()
        .join(name)
        .symlink_metadata()
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

const SCRIPT: &str = "set -e
umask 027
echo plain >plain
mkdir directory directory/deep
printf '#!/bin/sh\\necho runs\\n' >program; chmod 755 program
echo secret >private; chmod 600 private
echo shared >sticky; chmod 4711 sticky
ln -s plain link; ln -s missing/target dangling
echo twice >hard1; ln hard1 hard2
echo first >renamed; mv renamed final
echo old >over; echo new >over.new; mv over.new over
truncate -s 10M sparse; printf end >>sparse
echo old >aged; touch -d @1000000000 aged
echo bye >removed; rm removed; mkdir rd; rmdir rd
echo a >'ünï cödé'; echo b >'a b'; printf c >\"$(printf 'n\\nl')\"
echo one >appended; echo two >>appended
./program";

fn check(job: &Job) {
    let user = &job.site.user;
    for (name, mode) in [
        ("plain", 0o100_640),
        ("directory", 0o040_750),
        ("directory/deep", 0o040_750),
        ("program", 0o100_755),
        ("private", 0o100_600),
        // Set-id bits are not copied.
        ("sticky", if copies_files() { 0o100_711 } else { 0o104_711 }),
        ("link", 0o120_777),
        ("sparse", 0o100_640),
    ] {
        let file = metadata(job, name);
        assert_eq!(file.permissions().mode(), mode, "{name}");
        assert_eq!((file.uid(), file.gid()), (user.uid, user.gid), "{name}");
    }
    let target = |name: &str| std::fs::read_link(job.path().join(name)).unwrap();
    assert_eq!(target("link").to_str(), Some("plain"));
    assert_eq!(target("dangling").to_str(), Some("missing/target"));
    let (first, second) = (metadata(job, "hard1"), metadata(job, "hard2"));
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
    assert_eq!(job.read("final"), "first\n");
    assert_eq!(job.read("over"), "new\n");
    let sparse = metadata(job, "sparse");
    assert_eq!(sparse.len(), (10 << 20) + 3);
    assert!(
        sparse.blocks() * 512 < 1 << 20,
        "{} blocks",
        sparse.blocks()
    );
    assert_eq!(metadata(job, "aged").mtime(), 1_000_000_000);
    assert_eq!(
        job.read("ünï cödé") + &job.read("a b") + &job.read("n\nl"),
        "a\nb\nc"
    );
    assert_eq!(job.read("appended"), "one\ntwo\n");
    for name in ["renamed", "over.new", "removed", "rd"] {
        assert!(!job.has(name), "{name}");
    }
}

#[test]
fn belong_to_the_caller_and_are_as_the_command_made_them() {
    let Some(job) = Job::new() else { return };
    job.sh(SCRIPT).go().exits(0).prints("runs\n");
    check(&job);
}

#[test]
fn in_the_debian_image_too() {
    let Some(job) = Job::new() else { return };
    let Some(run) = job.sh(SCRIPT).debian() else {
        return;
    };
    run.go().exits(0).prints("runs\n");
    check(&job);
}

#[test]
fn as_root_of_the_guest_too() {
    let Some(job) = Job::new() else { return };
    job.sh("echo x >file; mkdir directory")
        .with(&["--root"])
        .go()
        .exits(0);
    for name in ["file", "directory"] {
        assert_eq!(metadata(&job, name).uid(), job.site.user.uid, "{name}");
    }
}

/// Whole seconds at least. The hostfs of other kernels keeps no more of them, does not tell the host of a
/// time that is set to the present, and sets none of symbolic links; 9P keeps whole seconds (docs/channels.md).
#[test]
fn times_are_what_the_command_makes_them() {
    let Some(job) = Job::new() else { return };
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let set = |name| {
        let path = job.put(name, "");
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(old).unwrap();
    };
    set("touched");
    set("target");
    let script = "touch touched; : >exact; touch -d @1000000000.123456789 exact
         ln -s target link; touch -h -d @1100000000 link";
    job.sh(script).go().exits(0);
    let exact = metadata(&job, "exact");
    assert_eq!(exact.mtime(), 1_000_000_000);
    if job.site.has_own_kernel() {
        assert_eq!(exact.mtime_nsec(), 123_456_789);
        assert!(metadata(&job, "touched").mtime() > 1_700_000_000);
        assert_eq!(metadata(&job, "link").mtime(), 1_100_000_000);
    }
    assert_eq!(metadata(&job, "target").mtime(), 1_000_000_000);
}

#[test]
fn large_files_are_complete() {
    let Some(job) = Job::new() else { return };
    let bytes = noise(32 << 20);
    job.put("input", &bytes);
    job.sh("cat input input >output; cmp input input && sync")
        .limit(120)
        .go()
        .exits(0);
    let output = std::fs::read(job.path().join("output")).unwrap();
    assert!(output == bytes.repeat(2), "{} bytes", output.len());
}

#[test]
fn many_small_files_are_all_there() {
    let Some(job) = Job::new() else { return };
    let script = "i=0; while [ $i -lt 500 ]; do echo $i >file$i; i=$((i+1)); done; mkdir d; mv file* d; ls d | wc -l";
    job.sh(script).limit(120).go().exits(0).prints("500\n");
    for number in [0, 250, 499] {
        assert_eq!(job.read(&format!("d/file{number}")), format!("{number}\n"));
    }
}

#[test]
fn what_the_user_may_not_read_stays_unreadable() {
    let Some(job) = Job::new() else { return };
    if !job.site.is_root {
        eprintln!("skipped: only root can make another user's file");
        return;
    }
    let path = job.put("foreign", "secret");
    std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    for options in [&[][..], &["--root"][..]] {
        let done = job.run(&["cat", "foreign"]).with(options).go().exits(1);
        assert!(!done.text().contains("secret"));
    }
}

#[test]
fn follow_the_callers_umask() {
    let Some(job) = Job::new() else { return };
    for (mask, mode) in [(0o077, 0o100_600), (0o002, 0o100_664), (0o027, 0o100_640)] {
        let name = format!("file{mask:o}");
        job.sh(&format!("umask; echo x >{name}"))
            .umask(mask)
            .go()
            .exits(0)
            .prints(&format!("{mask:04o}\n"));
        assert_eq!(metadata(&job, &name).permissions().mode(), mode, "{mask:o}");
    }
}
