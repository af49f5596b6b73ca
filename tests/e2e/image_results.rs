//! The files that `apppot image` makes: who may read them, what they replace, what is left when it is killed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::import::{image, small_tar, text};
use crate::support::tools::{ext4, sha256, tool};
use crate::support::{eventually, Job, Running};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn private(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn what_is_made_of_a_private_file_is_private() {
    let Some(job) = Job::new() else { return };
    let (source, made) = (ext4(&job, "source"), job.path().join("made"));
    let makes: [&[&str]; 4] = [
        &["image", "import", text(&source), "made", "--force"],
        &["image", "export", text(&source), "-o", "made"],
        &["snap", "base", text(&source), "-o", "made"],
        &[
            "image",
            "import",
            text(&source),
            "made",
            "--force",
            "--format",
            "squashfs",
        ],
    ];
    for words in makes {
        for (given, expected) in [(0o600, 0o600), (0o644, 0o644), (0o640, 0o640)] {
            fs::set_permissions(&source, Permissions::from_mode(given)).unwrap();
            let made = words
                .contains(&"import")
                .then(|| made.with_extension("img"));
            let made = made.unwrap_or_else(|| job.path().join("made"));
            let words: Vec<&str> = words
                .iter()
                .map(|word| match *word {
                    "made" => text(&made),
                    word => word,
                })
                .collect();
            job.apppot(&words).umask(0o022).go().exits(0);
            assert_eq!(mode(&made), expected, "{words:?}");
            fs::remove_file(&made).unwrap();
        }
    }
    // A commit, of a base that is private and changes that are not.
    let changed = job.path().join("changed.img");
    fs::copy(&source, &changed).unwrap();
    job.give(&changed);
    let script = "echo new >/etc/name";
    let write = ["--write", "--root"];
    job.sh(script).image(&changed).with(&write).go().exits(0);
    let pair = ["--base", text(&source), "changed.img"];
    let words = [&["snap", "changes"][..], &pair, &["-o", "changes"]].concat();
    job.apppot(&words).umask(0o022).go().exits(0);
    private(&source);
    let words = "snap commit --changes changes -o committed.img --base";
    let words = [&words.split(' ').collect::<Vec<_>>()[..], &[text(&source)]].concat();
    job.apppot(&words).umask(0o022).go().exits(0);
    let committed = job.path().join("committed.img");
    assert_eq!(mode(&committed), 0o600);
    let run = job.run(&["cat", "/etc/name"]).image(&committed);
    run.go().exits(0).prints("new\n");
}

#[test]
fn a_resized_image_keeps_its_link_its_owner_and_its_mode() {
    let Some(job) = Job::new() else { return };
    let (source, link) = (ext4(&job, "source"), job.path().join("link.img"));
    fs::set_permissions(&source, Permissions::from_mode(0o640)).unwrap();
    symlink(&source, &link).unwrap();
    image(&job, &["resize", text(&link), "80M"]).go().exits(0);
    assert_eq!(fs::read_link(&link).unwrap(), source);
    let found = fs::metadata(&source).unwrap();
    assert_eq!((found.len(), found.mode() & 0o777), (80 << 20, 0o640));
    image(&job, &["verify", text(&link)]).go().exits(0);
    if !job.site.is_root {
        eprintln!("skipped: another's image needs root to be made");
        return;
    }
    // By root it stays the user's; by another it is refused before anything is done.
    let binary = job.site.binary.as_os_str();
    let words = ["image", "resize", text(&link), "90M"].map(std::ffi::OsStr::new);
    tool("env", &[&[binary][..], &words].concat());
    let now = fs::metadata(&source).unwrap();
    assert_eq!(
        (now.len(), now.uid(), now.gid()),
        (90 << 20, found.uid(), found.gid())
    );
    assert_eq!(now.mode() & 0o777, 0o640);
    let other = job.path().join("other.img");
    fs::copy(&source, &other).unwrap();
    fs::set_permissions(&other, Permissions::from_mode(0o644)).unwrap();
    let sum = sha256(&other);
    let run = image(&job, &["resize", "other.img", "100M"]).go();
    run.exits(125).says(&["belongs to another user", "hint: "]);
    assert_eq!(sha256(&other), sum);
}

#[test]
fn what_cannot_be_replaced_is_refused_before_anything_is_read() {
    let Some(job) = Job::new() else { return };
    let (source, directory) = (ext4(&job, "source"), job.directory_beside("directory.img"));
    // A source that would be waited for.
    let fifo = fifo(&job);
    for target in [directory.as_path(), Path::new("/dev/null")] {
        let words = ["import", "--force", text(&fifo), text(target)];
        let run = image(&job, &words).go();
        run.exits(125).says(&[text(target), "no regular file"]);
    }
    let run = image(&job, &["import", "--force", text(&source), text(&source)]).go();
    run.exits(125).says(&["it is what is to be read"]);
    let run = image(&job, &["export", text(&source), "-o", text(&source)]).go();
    run.exits(125).says(&["it is what is to be read"]);
    job.run(&["true"]).image(&source).go().exits(0);
}

#[test]
fn links_to_results_stay_links() {
    let Some(job) = Job::new() else { return };
    let source = ext4(&job, "source");
    for (name, words) in [
        ("archive.tar", &["export", text(&source), "-o", "link"][..]),
        ("image.img", &["import", "--force", text(&source), "./link"]),
    ] {
        let (target, link) = (job.beside(name), job.path().join("link"));
        fs::write(&target, "old").unwrap();
        job.give(&target);
        symlink(&target, &link).unwrap();
        image(&job, words).go().exits(0);
        assert_eq!(fs::read_link(&link).unwrap(), target);
        assert!(fs::metadata(&target).unwrap().len() > 1000);
        fs::remove_file(link).unwrap();
    }
}

fn fifo(job: &Job) -> PathBuf {
    let fifo = job.beside("fifo");
    tool("mkfifo", &[text(&fifo)]);
    job.give(&fifo);
    fifo
}

/// An import that has begun to write `target`, and waits for more.
fn begun(job: &Job, target: &Path) -> (Running, fs::File) {
    let fifo = fifo(job);
    let words = ["import", text(&fifo), text(target)];
    let running = image(job, &words).without_unnamed_files().start();
    let tar = fs::read(small_tar(job)).unwrap();
    let mut pipe = fs::File::options().write(true).open(fifo).unwrap();
    std::io::Write::write_all(&mut pipe, &tar[..tar.len() / 2]).unwrap();
    (running, pipe)
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn nothing_is_left_where_every_file_has_a_name() {
    for signal in [libc::SIGKILL, libc::SIGINT, libc::SIGTERM] {
        let Some(job) = Job::new() else { return };
        let directory = job.directory_beside("images");
        let (running, _pipe) = begun(&job, &directory.join("new.img"));
        assert_eq!(names(&directory).len(), 1, "it has a name on the way");
        running.signal(signal);
        assert_eq!(running.finish().signal(), Some(signal));
        eventually("nothing is left", || names(&directory).is_empty());
    }
    // And it ends well, with and without another image in its place.
    let Some(job) = Job::new() else { return };
    let (tar, target) = (small_tar(&job), job.path().join("new.img"));
    for words in [&["import"][..], &["import", "--force"]] {
        let words = [words, &[text(&tar), text(&target)]].concat();
        image(&job, &words).without_unnamed_files().go().exits(0);
        image(&job, &["verify", "new.img"]).go().exits(0);
        assert_eq!(names(job.path()), std::slice::from_ref(&target));
    }
}

#[test]
fn the_disk_a_source_is_unpacked_on_is_not_filled() {
    let Some(job) = Job::new() else { return };
    // What begins as a container image's archive is unpacked before it is read.
    let script = "cd \"$1\"; echo '[]' >manifest.json; truncate -s 300M zeros
        tar -cf bomb.tar manifest.json zeros; gzip -k bomb.tar; rm zeros manifest.json";
    tool("sh", &["-euc", script, "sh", text(job.path())]);
    let directory = job.directory_beside("images");
    let target = directory.join("new.img");
    let import = |source: &str| {
        let words = ["import", "--max-size", "200M", source, text(&target)];
        image(&job, &words).go().exits(125)
    };
    import("bomb.tar.gz").says(&["too large", "209715200 bytes", "--max-size"]);
    assert_eq!(names(&directory), [] as [PathBuf; 0]);
}

#[test]
fn a_container_image_can_come_through_a_pipe() {
    let Some(job) = Job::new() else { return };
    let (layout, saved) = (crate::import::layout(&job), job.beside("saved.tar"));
    let from = format!("oci:{}:app", text(&layout));
    let to = format!("docker-archive:{}:example.org/app:v1", text(&saved));
    tool("skopeo", &["--insecure-policy", "copy", "-q", &from, &to]);
    let target = job.path().join("new.img");
    let fifo = fifo(&job);
    let run = image(&job, &["import", text(&fifo), text(&target)]).start();
    fs::write(fifo, fs::read(&saved).unwrap()).unwrap();
    run.finish().exits(0);
    crate::import::greets(&job, &target);
}

#[test]
fn what_is_in_a_squashfs_image_is_told() {
    let Some(job) = Job::new() else { return };
    let (layout, target) = (crate::import::layout(&job), job.path().join("new.squashfs"));
    let script = "cd \"$1\"; umoci config --image layout:app --config.label purpose=test";
    tool(
        "sh",
        &["-euc", script, "sh", text(layout.parent().unwrap())],
    );
    tool("chown", &["-R", &job.owner(), text(&layout)]);
    let source = format!("oci:{}:app", text(&layout));
    let words = ["import", "--format", "squashfs", &source, text(&target)];
    image(&job, &words).go().exits(0);
    let info = image(&job, &["info", text(&target)]).go().exits(0);
    info.shows(&[
        "squashfs",
        "layout         partition",
        "purpose=test",
        "./greet world",
        "sha256:",
    ]);
    let Some(debian) = crate::support::debian_image() else {
        return;
    };
    let words = [
        "import",
        "--format",
        "squashfs",
        text(debian),
        "debian.squashfs",
    ];
    image(&job, &words).limit(120).go().exits(0);
    let info = image(&job, &["info", "./debian.squashfs"]).go().exits(0);
    info.shows(&["Debian GNU/Linux", "title=Debian, minimal"]);
}
