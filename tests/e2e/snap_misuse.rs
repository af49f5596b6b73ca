//! Snapshots in careless hands, on full disks, and interrupted.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::tools::{ext4, sha256, tool};
use crate::support::{debian_image, Job};

fn names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn results_do_not_replace_what_they_are_made_from() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    let base = image.to_str().unwrap();
    let before = sha256(&image);
    std::os::unix::fs::symlink(&image, job.path().join("link")).unwrap();
    for output in [base, "link"] {
        for words in [
            &["snap", "base", base, "-o", output][..],
            &["snap", "changes", "--base", base, base, "-o", output],
            &[
                "snap",
                "commit",
                "--base",
                base,
                "--changes",
                base,
                "-o",
                output,
            ],
        ] {
            job.apppot(words).go().exits(125).says(&["to be read"]);
        }
    }
    for output in ["/dev/null", "/"] {
        let run = job.apppot(&["snap", "base", base, "-o", output]).go();
        run.exits(125).says(&[output, "no regular file"]);
    }
    assert_eq!(sha256(&image), before);
    assert_eq!(names(job.path()), ["link"]);
}

#[test]
fn archives_that_nobody_fills_are_not_waited_for() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    let fifo = job.path().join("fifo");
    tool("mkfifo", &["-m", "666", fifo.to_str().unwrap()]);
    for words in [
        &["snap", "inspect", "fifo"][..],
        &["snap", "changes", "--base", "fifo", image.to_str().unwrap()],
    ] {
        job.apppot(words).limit(20).go().exits(125).says(&["fifo"]);
    }
    let run = job.sh(": >ran").image(&image).with(&["--changes", "fifo"]);
    run.limit(20).go().exits(125).says(&["no regular file"]);
    assert!(!job.has("ran"));
}

#[test]
fn a_full_disk_is_said_and_leaves_what_was_there() {
    let Some(job) = Job::new() else { return };
    let Some(image) = debian_image() else { return };
    let place = job.directory_beside("small");
    let words = ["snap", "base", image.to_str().unwrap(), "-o"];
    let output = place.join("record");
    let words = [&words[..], &[output.to_str().unwrap()]].concat();
    let script = format!(
        "mount -t tmpfs -o size=64k,mode=777 tmpfs '{0}'; echo old >'{0}/record'
         trap 'ls -A {0} >&2; cat {0}/record >&2' EXIT
         set -- sh -c '\"$@\"; s=$?; exit $s' sh \"$@\"; \"$@\"; exit",
        place.display()
    );
    let run = job.apppot(&words).mounts(&script).go();
    let run = run.exits(125).says(&["cannot write", "No space left"]);
    let said = &run.stderr;
    assert!(said.ends_with("record\nold\n"), "{said}");
}

#[test]
fn what_is_interrupted_leaves_nothing() {
    let Some(job) = Job::new() else { return };
    let Some(image) = debian_image() else { return };
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        // On a busy machine it may have ended before the signal comes.
        assert!((0..20).any(|_| is_interrupted(&job, image, signal)));
        let until = Instant::now() + Duration::from_secs(20);
        while names(job.path()).len() > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(names(job.path()), ["record"]);
        assert_eq!(job.read("record"), "old");
    }
}

/// Whether the signal has ended the recording of an image while it was written.
fn is_interrupted(job: &Job, image: &Path, signal: i32) -> bool {
    job.put("record", "old");
    let words = ["snap", "base", image.to_str().unwrap(), "-o", "record"];
    let running = job.apppot(&words).without_unnamed_files().start();
    let begun = || names(job.path()).len() > 1 || job.read("record") != "old";
    let until = Instant::now() + Duration::from_secs(20);
    while !begun() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    running.signal(signal);
    running.finish().signal() == Some(signal)
}

#[test]
fn a_merge_in_a_guest_does_not_reach_what_is_mounted_there() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    let base = image.to_str().unwrap();
    let with_data = job.path().join("data.cow");
    let keep = ["--root", "--overlay", with_data.to_str().unwrap()];
    job.sh("mkdir -p /data/old; echo x >/data/old/file")
        .image(&image)
        .with(&keep)
        .go()
        .exits(0);
    let record = [
        "snap",
        "base",
        base,
        "--overlay",
        "data.cow",
        "-o",
        "with-data",
    ];
    job.apppot(&record).go().exits(0);
    let diff = ["snap", "changes", "--base", "with-data", base];
    job.apppot(&diff).go().exits(0);
    job.apppot(&["snap", "inspect"])
        .go()
        .exits(0)
        .shows(&["- /data"]);
    // There, a directory of the host's is what would be deleted.
    let precious = job.directory_beside("precious");
    job.put(precious.join("file"), "precious");
    let bind = format!("{}:/data/old", precious.display());
    job.sh("apppot-snap merge --any-base; ls /data/old")
        .image(&image)
        .with(&keep)
        .with(&["--bind", &bind])
        .go()
        .exits(0)
        .shows(&["file"]);
    assert_eq!(fs::read(precious.join("file")).unwrap(), b"precious");
}

#[test]
fn as_many_archives_as_there_is_room_for_are_merged() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    let base = image.to_str().unwrap();
    job.apppot(&["snap", "changes", "--base", base, base])
        .go()
        .exits(0);
    let run = |count: usize| {
        let options = ["--changes", "apppot.changes"].repeat(count);
        job.sh(": >ran").image(&image).with(&options).go()
    };
    run(8).exits(0);
    assert!(job.has("ran"));
    fs::remove_file(job.path().join("ran")).unwrap();
    run(40).exits(125).says(&["changes archives"]);
    assert!(!job.has("ran"));
}
