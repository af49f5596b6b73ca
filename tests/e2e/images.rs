//! Every kind of image.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::tools::{disk, ext4, small_root, tool};
use crate::support::Job;

/// The image works: its files are there, writes vanish, the job directory is shared.
fn works(job: &Job, image: &Path, name: &str) {
    let script = "cat /etc/name; echo changed >/etc/name; cat /etc/name; echo out >made; exit 3";
    let done = job.sh(script).image(image).with(&["--root"]).go();
    assert_eq!(done.code(), Some(3), "{}: {}", image.display(), done.stderr);
    assert_eq!(done.text(), format!("{name}changed\n"));
    assert_eq!(job.read("made"), "out\n");
    // And for the ordinary user, whom the image does not know.
    let done = job.sh("id -u; cat /etc/name").image(image).go().exits(0);
    assert_eq!(done.text(), format!("{}\n{name}", job.site.user.uid));
}

#[test]
fn a_partition() {
    let Some(job) = Job::new() else { return };
    works(&job, &ext4(&job, "image"), "image");
}

#[test]
fn a_disk_with_a_partition_table() {
    let Some(job) = Job::new() else { return };
    for label in ["dos", "gpt"] {
        works(&job, &disk(&job, label, label), label);
    }
}

#[test]
fn a_disk_with_writes_kept() {
    let Some(job) = Job::new() else { return };
    for label in ["dos", "gpt"] {
        let image = disk(&job, label, label);
        let overlay = format!("{label}.cow");
        for options in [&["--overlay", overlay.as_str()][..], &["--write"]] {
            let script = "echo more >>/etc/name; cat /etc/name";
            let run = || {
                job.sh(script)
                    .image(&image)
                    .with(options)
                    .with(&["--root"])
                    .go()
            };
            run().exits(0).prints(&format!("{label}more\n"));
            run().exits(0).prints(&format!("{label}more\nmore\n"));
        }
    }
}

fn compressed(job: &Job, program: &str, name: &str) -> PathBuf {
    let root = small_root(job, name);
    let image = job.beside(&format!("{name}.img"));
    match program {
        "mksquashfs" => tool(
            program,
            &[
                root.as_os_str(),
                image.as_os_str(),
                OsStr::new("-quiet"),
                OsStr::new("-no-progress"),
            ],
        ),
        _ => tool(program, &[image.as_os_str(), root.as_os_str()]),
    };
    fs::remove_dir_all(root).unwrap();
    job.give(&image);
    image
}

#[test]
fn squashfs() {
    let Some(job) = Job::new() else { return };
    works(
        &job,
        &compressed(&job, "mksquashfs", "squashfs"),
        "squashfs",
    );
}

#[test]
fn erofs() {
    let Some(job) = Job::new() else { return };
    works(&job, &compressed(&job, "mkfs.erofs", "erofs"), "erofs");
}

#[test]
fn that_can_only_be_read_are_not_written() {
    let Some(job) = Job::new() else { return };
    let image = compressed(&job, "mksquashfs", "squashfs");
    for options in [&["--write"][..], &["--overlay", "kept.cow"]] {
        job.sh("true")
            .image(&image)
            .with(options)
            .go()
            .exits(125)
            .says(&["squashfs"]);
    }
    assert!(!job.has("kept.cow"));
}

#[test]
fn a_directory() {
    let Some(job) = Job::new() else { return };
    works(&job, &small_root(&job, "directory"), "directory");
}

#[test]
fn of_any_name() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    for name in [
        "with space.img",
        "com,ma.img",
        "col:on.img",
        "new\nline.img",
        "ünï.img",
        "%41.img",
        "host",
    ] {
        let path = job.beside(name);
        fs::hard_link(&image, &path).unwrap();
        let done = job.run(&["cat", "/etc/name"]).image(&path).go();
        assert_eq!(
            (done.code(), done.text().as_str()),
            (Some(0), "image"),
            "{name:?}: {}",
            done.stderr
        );
    }
    let link = job.path().join("link");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    job.run(&["cat", "/etc/name"])
        .image(Path::new("link"))
        .go()
        .exits(0)
        .prints("image");
}

#[test]
fn that_are_also_in_the_job_directory() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    fs::rename(&image, job.path().join("image.img")).unwrap();
    let done = job
        .sh("cat /etc/name; test -s image.img")
        .image(Path::new("image.img"))
        .go();
    done.exits(0).prints("image");
}
