//! `apppot image`: images made of what people have, and what can be done with them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::tools::{sha256, small_root, tool};
use crate::support::{debian_image, Job, Run};

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn image<'a>(job: &'a Job, args: &[&str]) -> Run<'a> {
    job.apppot(&[&["image"], args].concat())
}

/// A small root filesystem of root's where we are root, as a tar archive.
pub(crate) fn small_tar(job: &Job) -> PathBuf {
    let (root, tar) = (small_root(job, "small"), job.beside("small.tar"));
    tool(
        "tar",
        &[
            "-C",
            text(&root),
            "--owner=0",
            "--group=0",
            "-cf",
            text(&tar),
            ".",
        ],
    );
    tar
}

/// Container images that umoci has made of the small root: a layer, and one above it.
pub(crate) fn layout(job: &Job) -> PathBuf {
    let (root, layout) = (small_root(job, "small"), job.beside("layout"));
    let script = r#"
        cd "$1"
        umoci init --layout layout
        umoci new --image layout:app
        umoci unpack --rootless --image layout:app bundle
        cp -a small/. bundle/rootfs
        echo below >bundle/rootfs/etc/removed
        umoci repack --image layout:app bundle
        rm -r bundle
        umoci unpack --rootless --image layout:app bundle
        rm bundle/rootfs/etc/removed
        echo above >bundle/rootfs/etc/name
        mkdir bundle/rootfs/srv
        printf '#!/bin/sh\necho "$GREETING $1 in $PWD; job $APPPOT_JOBDIR"\n' >bundle/rootfs/srv/greet
        chmod 755 bundle/rootfs/srv/greet
        umoci repack --image layout:app bundle
        umoci config --image layout:app --config.entrypoint ./greet --config.cmd world \
            --config.env GREETING='hello there' --config.env PATH=/bin:/srv --config.workingdir /srv
        rm -r bundle
    "#;
    let base = text(root.parent().unwrap());
    tool("sh", &["-euc", script, "sh", base]);
    tool("chown", &["-R", &job.owner(), text(&layout)]);
    layout
}

/// The image is what [`layout`] has made.
pub(crate) fn greets(job: &Job, path: &Path) {
    let jobdir = job.path().display();
    let expected = format!("hello there world in /srv; job {jobdir}\n");
    job.apppot(&["run"])
        .image(path)
        .go()
        .exits(0)
        .prints(&expected);
    // A command is run as it is, in the job directory, in the image's environment.
    let script =
        r#"echo "$GREETING $PWD"; cat /etc/name; test ! -e /etc/removed && command -v greet"#;
    let expected = format!("hello there {jobdir}\nabove\n/srv/greet\n");
    job.sh(script).image(path).go().exits(0).prints(&expected);
    job.run(&["sh", "-c", "echo $GREETING"])
        .image(path)
        .with(&["--env", "GREETING=mine"])
        .go()
        .exits(0)
        .prints("mine\n");
    // The job directory's script comes first.
    job.script("apppot-run", "#!/bin/sh\necho mine\n");
    job.apppot(&["run"])
        .image(path)
        .go()
        .exits(0)
        .prints("mine\n");
    fs::remove_file(job.path().join("apppot-run")).unwrap();
}

#[test]
fn a_tar_archive_becomes_an_image_that_can_be_written_and_resized() {
    let Some(job) = Job::new() else { return };
    let (tar, path) = (small_tar(&job), job.beside("new.img"));
    tool("zstd", &["-q", text(&tar)]);
    let packed = format!("{}.zst", text(&tar));
    image(&job, &["import", &packed, text(&path)])
        .go()
        .exits(0)
        .says(&["new.img: "]);
    image(&job, &["verify", text(&path)])
        .go()
        .exits(0)
        .says(&["its ext4 is sound"]);
    job.sh("echo kept >/etc/more; stat -c %u /bin/sh")
        .image(&path)
        .with(&["--root", "--write"])
        .go()
        .exits(0)
        .prints("0\n");
    image(&job, &["verify", text(&path)]).go().exits(0);
    image(&job, &["resize", text(&path), "300M"]).go().exits(0);
    assert_eq!(fs::metadata(&path).unwrap().len(), 300 << 20);
    job.sh("cat /etc/name /etc/more")
        .image(&path)
        .go()
        .exits(0)
        .prints("smallkept\n");
    image(&job, &["resize", text(&path), "100M"]).go().exits(0);
    image(&job, &["verify", text(&path)]).go().exits(0);
    image(&job, &["resize", text(&path), "1M"])
        .go()
        .exits(125)
        .says(&["cannot resize"]);
    assert_eq!(fs::metadata(&path).unwrap().len(), 100 << 20);
}

#[test]
fn a_directory_and_back() {
    let Some(job) = Job::new() else { return };
    let (root, path, out) = (
        small_root(&job, "small"),
        job.beside("new.img"),
        job.beside("out.tar"),
    );
    image(&job, &["import", text(&root), text(&path)])
        .go()
        .exits(0);
    image(&job, &["export", text(&path), "-o", text(&out)])
        .go()
        .exits(0);
    let compared = format!(
        "tar -C '{}' --compare -f '{}' 2>&1",
        text(&root),
        text(&out)
    );
    assert_eq!(tool("sh", &["-c", &compared]), "");
    job.run(&["cat", "/etc/name"])
        .image(&path)
        .go()
        .exits(0)
        .prints("small");
}

#[test]
fn debian_survives_the_way_there_and_back() {
    let (Some(job), Some(debian)) = (Job::new(), debian_image()) else {
        return;
    };
    let (tar, path, again) = (
        job.beside("a.tar"),
        job.beside("new.img"),
        job.beside("b.tar"),
    );
    image(&job, &["export", text(debian), "-o", text(&tar)])
        .go()
        .exits(0);
    image(&job, &["import", text(&tar), text(&path)])
        .limit(120)
        .go()
        .exits(0);
    image(&job, &["export", text(&path), "-o", text(&again)])
        .go()
        .exits(0);
    assert_eq!(sha256(&tar), sha256(&again));
    job.run(&["sudo", "id", "-u"])
        .image(&path)
        .go()
        .exits(0)
        .prints("0\n");
    job.run(&["id", "-un"])
        .image(&path)
        .with(&["--boot", "system"])
        .limit(120)
        .go()
        .exits(0)
        .prints("user\n");
}

#[test]
fn names_in_the_store() {
    let Some(job) = Job::new() else { return };
    let tar = small_tar(&job);
    let data = job.directory_beside("data");
    let with = |args: &[&str]| image(&job, args).env("XDG_DATA_HOME", &data);
    with(&["list"]).go().exits(0).prints("");
    with(&["import", text(&tar), "small-1.0"]).go().exits(0);
    with(&["import", text(&tar), "small-1.0"])
        .go()
        .exits(125)
        .says(&["exists", "--force"]);
    with(&["import", "--force", text(&tar), "small-1.0"])
        .go()
        .exits(0);
    let path = data.join("apppot/images/small-1.0.img");
    with(&["list", "--json"])
        .go()
        .exits(0)
        .shows(&["\"name\": \"small-1.0\"", text(&path)]);
    let run = job.run(&["true"]).with(&["--image", "small-2.0"]);
    let run = run.env("XDG_DATA_HOME", &data);
    run.go().exits(125).says(&["no image file", "in the store"]);
    let sum = sha256(&path);
    with(&["info", "small-1.0"]).go().exits(0).shows(&[
        "a raw partition image",
        "ext4",
        "apppot",
        &sum,
    ]);
    with(&["verify", "small-1.0", "--sha256", &sum])
        .go()
        .exits(0);
    with(&["verify", "small-1.0", "--sha256", "00"])
        .go()
        .exits(125)
        .says(&["another file"]);
    let run = || job.run(&["cat", "/etc/name"]).env("XDG_DATA_HOME", &data);
    run()
        .with(&["--image", "small-1.0"])
        .go()
        .exits(0)
        .prints("small");
    job.put("apppot.toml", "image = \"small-1.0\"\n");
    run().go().exits(0).prints("small");
    fs::remove_file(job.path().join("apppot.toml")).unwrap();
    // It is a source like any other image.
    let copy = job.beside("copy.img");
    with(&["import", "small-1.0", text(&copy)]).go().exits(0);
    job.run(&["cat", "/etc/name"])
        .image(&copy)
        .go()
        .exits(0)
        .prints("small");
    with(&["rm", "small-1.0", "other"])
        .go()
        .exits(125)
        .says(&["no image 'other'"]);
    with(&["rm", "small-1.0"]).go().exits(0);
    with(&["list"]).go().exits(0).prints("");
    run()
        .with(&["--image", "small-1.0"])
        .go()
        .exits(125)
        .says(&["small-1.0"]);
}

#[test]
fn a_container_image_runs_what_it_was_made_for() {
    let Some(job) = Job::new() else { return };
    let layout = layout(&job);
    let from = |source: &str| {
        let path = job.beside("new.img");
        image(&job, &["import", "--force", source, text(&path)])
            .go()
            .exits(0);
        greets(&job, &path);
        path
    };
    let path = from(text(&layout));
    image(&job, &["info", text(&path)]).go().exits(0).shows(&[
        "./greet world",
        "sha256:",
        "linux/",
    ]);
    from(&format!("oci:{}:app", text(&layout)));
    // What 'docker save' and others write.
    let saved = job.beside("saved.tar");
    let to = format!("docker-archive:{}:example.org/app:v1", text(&saved));
    tool(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "-q",
            &format!("oci:{}:app", text(&layout)),
            &to,
        ],
    );
    from(text(&saved));
    tool("gzip", &[text(&saved)]);
    from(&format!("{}.gz", text(&saved)));
    from(&format!(
        "docker-archive:{}.gz:example.org/app:v1",
        text(&saved)
    ));
    let missing = format!("oci:{}:none", text(&layout));
    let path = job.beside("none.img");
    image(&job, &["import", &missing, text(&path)])
        .go()
        .exits(125)
        .says(&["no image 'none'", "only: app"]);
    assert!(!path.exists());
}

#[test]
fn a_squashfs_image_boots_and_can_be_checked() {
    let Some(job) = Job::new() else { return };
    let (tar, path) = (small_tar(&job), job.beside("new.squashfs"));
    image(
        &job,
        &["import", "--format", "squashfs", text(&tar), text(&path)],
    )
    .go()
    .exits(0);
    image(&job, &["info", text(&path)])
        .go()
        .exits(0)
        .shows(&["squashfs"]);
    image(&job, &["verify", text(&path)])
        .go()
        .exits(0)
        .says(&["its squashfs is sound"]);
    let script = "cat /etc/name; stat -c '%u %a' /bin/sh";
    job.sh(script)
        .image(&path)
        .with(&["--root"])
        .go()
        .exits(0)
        .prints("small0 755\n");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    image(&job, &["verify", text(&path)])
        .go()
        .exits(125)
        .says(&["is damaged"]);
}

#[test]
fn what_is_no_source_is_refused_and_leaves_nothing() {
    let Some(job) = Job::new() else { return };
    let target = job.beside("new.img");
    let refuse = |source: &str, texts: &[&str]| {
        image(&job, &["import", source, text(&target)])
            .go()
            .exits(125)
            .says(texts);
        assert!(!target.exists());
    };
    refuse(
        "debian:12",
        &[
            "there is no 'debian:12' here",
            "hint: for an image in a registry: docker://debian:12",
        ],
    );
    refuse("/does/not/exist", &["cannot read '/does/not/exist'"]);
    let squashfs = ["import", text(job.path()), "new.squashfs"];
    let done = image(&job, &squashfs).go().exits(125);
    done.says(&["hint: --format squashfs makes one"]);
    refuse("docker://127.0.0.1:1/x", &["registry 127.0.0.1:1", "hint:"]);
    job.put("nonsense", "nonsense ".repeat(100));
    refuse("nonsense", &["the archive is malformed"]);
    let script = "cd \"$1\"; ln -s ../.. up; tar -cf evil.tar --transform 's,^x$,up/x,' up; echo x >x; tar -rf evil.tar --transform 's,^x$,up/x,' x";
    tool("sh", &["-euc", script, "sh", text(job.path())]);
    refuse(
        "evil.tar",
        &["'up/x' in the archive: a symbolic link on its path leads out of the root"],
    );
    tool(
        "sh",
        &[
            "-euc",
            "cd \"$1\"; tar -cPf evil.tar --transform 's,^x$,/x,' x",
            "sh",
            text(job.path()),
        ],
    );
    refuse("evil.tar", &["its path is absolute"]);
    let bomb = "cd \"$1\"; truncate -s 300M zeros; tar -czf bomb.tar.gz zeros";
    tool("sh", &["-euc", bomb, "sh", text(job.path())]);
    image(
        &job,
        &["import", "--max-size", "200M", "bomb.tar.gz", text(&target)],
    )
    .go()
    .exits(125)
    .says(&["too large", "--max-size"]);
    assert!(!target.exists());
}

#[test]
fn an_import_that_is_killed_leaves_nothing() {
    let Some(job) = Job::new() else { return };
    let directory = job.directory_beside("images");
    tool("mkfifo", &[text(&job.path().join("fifo"))]);
    tool("chown", &[&*job.owner(), text(&job.path().join("fifo"))]);
    let target = directory.join("new.img");
    let running = image(&job, &["import", "fifo", text(&target)]).start();
    // It reads, and has begun to write.
    let tar = fs::read(small_tar(&job)).unwrap();
    let mut pipe = fs::File::options()
        .write(true)
        .open(job.path().join("fifo"))
        .unwrap();
    std::io::Write::write_all(&mut pipe, &tar[..tar.len() / 2]).unwrap();
    running.signal(libc::SIGKILL);
    assert_eq!(running.finish().signal(), Some(libc::SIGKILL));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}

#[test]
fn a_full_disk_says_so() {
    let Some(job) = Job::new() else { return };
    if !job.site.is_root {
        eprintln!("skipped: a small disk needs root");
        return;
    }
    let (tar, small) = (small_tar(&job), job.directory_beside("small-disk"));
    let script = format!(
        "mount -t tmpfs -o size=1m,mode=1777 none '{}'",
        small.display()
    );
    let target = small.join("new.img");
    let run = image(&job, &["import", text(&tar), text(&target)]).mounts(&script);
    run.go()
        .exits(125)
        .says(&["No space left on device", "hint: free some space"]);
}
