//! Large changes: committed into an image that is kept, once.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::tools::{disk, into_ext4, sha256, small_root, tool};
use crate::support::{eventually, noise, Job, Run};

/// An image, a large archive for it, and where images are kept.
struct Scene<'a> {
    job: &'a Job,
    image: PathBuf,
    cache: PathBuf,
}

const SHOW: &str = "cat /etc/name /srv/2099; test ! -e /bin/env; test ! -e /written; : >/written";
const SHOWN: &str = "changed\n2099\n";

impl<'a> Scene<'a> {
    /// The archive `c` turns the image into what `modify` makes of a copy of its files.
    fn new(job: &'a Job, modify: impl FnOnce(&Path)) -> Self {
        let root = small_root(job, "image");
        let changed = job.beside("changed");
        tool(
            "cp",
            &["-a", root.to_str().unwrap(), changed.to_str().unwrap()],
        );
        modify(&changed);
        tool("chown", &["-R", &job.owner(), changed.to_str().unwrap()]);
        let (image, changed) = (into_ext4(job, &root), changed);
        let words = ["snap", "base", image.to_str().unwrap(), "-o", "b"];
        job.apppot(&words).go().exits(0);
        let changed = match changed.join("large").exists() {
            // It would not fit into an image of the same size.
            true => changed,
            false => into_ext4(job, &changed),
        };
        let from = changed.to_str().unwrap();
        let words = ["snap", "changes", "--base", "b", from, "-o", "c"];
        let way = ["--exclude", "/lost+found"];
        job.apppot(&words).with(&way).go().exits(0);
        settle();
        let cache = job.directory_beside("cache");
        Scene { job, image, cache }
    }

    fn of_many_files(job: &'a Job) -> Self {
        Self::new(job, |root| {
            fs::write(root.join("etc/name"), "changed\n").unwrap();
            fs::remove_file(root.join("bin/env")).unwrap();
            fs::create_dir(root.join("srv")).unwrap();
            for number in 0..2100 {
                let path = root.join("srv").join(number.to_string());
                fs::write(path, format!("{number}\n")).unwrap();
            }
        })
    }

    fn run(&self, archive: &str) -> Run<'a> {
        self.run_of(SHOW, archive)
    }

    fn run_of(&self, script: &str, archive: &str) -> Run<'a> {
        let options = ["-v", "--root", "--changes", archive];
        let run = self.job.sh(script).image(&self.image).with(&options);
        run.env("XDG_CACHE_HOME", &self.cache).limit(180)
    }

    /// The files in the cache with that ending.
    fn kept(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let directory = self.cache.join("apppot/committed");
        let entries = fs::read_dir(directory).into_iter().flatten();
        let paths = entries.map(|entry| entry.unwrap().path());
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        paths.filter(|path| is_wanted(&name(path))).collect()
    }

    /// Makes the directory, and a note in it of long ago.
    fn note(&self, name: &str) -> PathBuf {
        let mut directory = self.cache.clone();
        for part in ["apppot", "committed"] {
            directory.push(part);
            // A launcher may have made the first.
            fs::create_dir_all(&directory).unwrap();
            self.job.give(&directory);
        }
        let note = self.job.put(directory.join(name), "");
        tool("touch", &["-d", "2020-01-01", note.to_str().unwrap()]);
        note
    }

    fn images(&self) -> Vec<PathBuf> {
        self.kept(|name| name.ends_with(".img"))
    }
}

/// What has changed a moment ago may still be changing. By the clock that files have their times from,
/// which may be set meanwhile.
fn settle() {
    let begun = SystemTime::now();
    while begun.elapsed().unwrap_or_default() < Duration::from_millis(2100) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn large_changes_are_committed_when_they_are_used_again() {
    let Some(job) = Job::new() else { return };
    let scene = Scene::of_many_files(&job);
    let before = sha256(&scene.image);
    // Nothing is made of what nobody starts, or of the first use.
    scene.run("c").with(&["--dry-run"]).go().exits(0);
    assert!(scene.kept(|_| true).is_empty());
    // What others were used for once, long ago.
    let old = scene.note("0123");
    let said = |run: Run| {
        let done = run.go().exits(0).prints(SHOWN);
        done.stderr.contains("prepared in")
    };
    assert!(!said(scene.run("c")));
    assert!(scene.images().is_empty() && !old.exists());
    assert!(said(scene.run("c")));
    let images = scene.images();
    assert_eq!(images.len(), 1);
    // The machine boots it, and leaves it as it is.
    let inode = images[0].metadata().unwrap().ino();
    let kept = images[0].to_str().unwrap();
    scene.run("c").go().exits(0).prints(SHOWN).says(&[kept]);
    let rendered = scene.run("c").with(&["--dry-run"]).go().exits(0);
    rendered.shows(&[kept]);
    assert_eq!(images[0].metadata().unwrap().ino(), inode);
    assert_eq!(sha256(&scene.image), before);
    // Copies of an archive are the same archive.
    job.put("copy", fs::read(job.path().join("c")).unwrap());
    settle();
    assert!(!said(scene.run("copy")));
    // The image, its note, and the lock of all makers.
    assert_eq!(scene.kept(|_| true).len(), 3);
    // What the machine keeps has the archive itself.
    let overlay = ["--overlay", "own.cow"];
    let done = scene.run("c").with(&overlay).go().exits(0).prints(SHOWN);
    assert!(!done.stderr.contains(kept));
    let doctor = job.apppot(&["doctor"]).env("XDG_CACHE_HOME", &scene.cache);
    doctor.go().shows(&["1 with large changes"]);
    // By the way that the base directories' specification has it; and not where others could move it.
    let shows = |run: Run| run.with(&["--dry-run"]).go().exits(0).text().contains(kept);
    let home = job.directory_beside("home");
    std::os::unix::fs::symlink(&scene.cache, home.join(".cache")).unwrap();
    let at_home = || scene.run("c").env("HOME", &home);
    assert!(shows(at_home().env("XDG_CACHE_HOME", "relative")));
    assert!(!shows(at_home().env("XDG_CACHE_HOME", &home)));
    let set = |mode| tool("chmod", &[mode, scene.cache.to_str().unwrap()]);
    set("0777");
    assert!(!shows(scene.run("c")));
    set("0700");
    assert!(shows(scene.run("c")));
    // Somebody else's work in its place is not booted.
    fs::write(&images[0], "an image").unwrap();
    assert!(said(scene.run("c")));
}

#[test]
fn what_is_wrong_with_an_archive_is_the_same_when_an_image_is_kept() {
    let Some(job) = Job::new() else { return };
    let scene = Scene::of_many_files(&job);
    scene.run("c").go().exits(0);
    scene.run("c").go().exits(0);
    assert_eq!(scene.images().len(), 1);
    let whole = fs::read(job.path().join("c")).unwrap();
    job.put("truncated", &whole[..whole.len() - 512]);
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    job.put("damaged", &damaged);
    let other = Scene {
        image: into_ext4(&job, &small_root(&job, "other")),
        cache: scene.cache.clone(),
        ..scene
    };
    settle();
    for (name, reason) in [
        ("missing", "No such file"),
        ("truncated", "is truncated"),
        ("damaged", "is damaged"),
    ] {
        let run = scene.run(name);
        run.go().exits(125).says(&[name, reason]);
    }
    for _ in 0..2 {
        let run = other.run("c");
        run.go().exits(125).says(&["made for another base"]);
    }
}

#[test]
fn jobs_that_start_together_prepare_it_once() {
    let Some(job) = Job::new() else { return };
    let scene = Scene::of_many_files(&job);
    let start = |_| scene.run("c").with(&["--memory", "128M"]).start();
    let jobs: Vec<_> = (0..4).map(start).collect();
    let done = jobs
        .into_iter()
        .map(|job| job.finish().exits(0).prints(SHOWN));
    let made = done
        .filter(|done| done.stderr.contains("prepared in"))
        .count();
    assert_eq!(made, 1);
    assert_eq!(scene.kept(|_| true).len(), 3);
}

#[test]
fn nothing_half_made_stays_when_the_launcher_is_killed() {
    let Some(job) = Job::new() else { return };
    let scene = Scene::of_many_files(&job);
    scene.run("c").go().exits(0);
    let unfinished = || scene.kept(|name| name.contains(".img")).len();
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let running = scene.run("c").without_unnamed_files().start();
        running.until_it_says("preparing");
        eventually("the image is begun", || unfinished() == 1);
        assert!(scene.images().is_empty());
        running.signal(signal);
        assert_eq!(running.finish().signal(), Some(signal));
        eventually("nothing is left of it", || unfinished() == 0);
    }
    let run = scene.run("c").go().exits(0).prints(SHOWN);
    assert!(run.stderr.contains("prepared in"));
}

#[test]
fn a_signal_for_the_job_waits_while_its_image_is_prepared() {
    let Some(job) = Job::new() else { return };
    let scene = Scene::of_many_files(&job);
    scene.run("c").go().exits(0);
    let start = || scene.run_of("exec sleep 1000", "c").start();
    // Another job has the lock.
    let note = &scene.kept(|name| !name.contains('.'))[0];
    let taken = fs::File::open(note).unwrap();
    // SAFETY: flock takes no pointers, the descriptor is open.
    assert_eq!(unsafe { libc::flock(taken.as_raw_fd(), libc::LOCK_EX) }, 0);
    let running = start();
    running.until_it_says("waiting for another job");
    running.signal(libc::SIGTERM);
    assert_eq!(running.finish().signal(), Some(libc::SIGTERM));
    let running = start();
    running.until_it_says("waiting for another job");
    running.signal(libc::SIGUSR1);
    drop(taken);
    running.until_it_says("preparing");
    running.signal(libc::SIGUSR1);
    let done = running.finish().exits(128 + libc::SIGUSR1);
    done.says(&["prepared in"]);
    assert_eq!(scene.images().len(), 1);
}

#[test]
fn without_locks_nothing_is_kept() {
    let Some(job) = Job::new() else { return };
    let scene = Scene::of_many_files(&job);
    for _ in 0..2 {
        let run = scene.run("c").without_locks().go();
        run.exits(0).prints(SHOWN);
    }
    let run = scene.run("c").without_locks().go().exits(0).prints(SHOWN);
    run.says(&["merged at boot, not kept: cannot lock"]);
    assert!(scene.images().is_empty());
}

/// The archive has one file, larger than the image.
fn one_large_file(job: &Job) -> Scene<'_> {
    Scene::new(job, |root| {
        fs::write(root.join("large"), noise(LARGE)).unwrap();
    })
}

const LARGE: usize = 65 << 20;

/// What a machine says that shows that file.
fn show_large(job: &Job, image: &Path, cache: &Path) -> String {
    show_large_with(job, image, cache, &[])
}

fn show_large_with(job: &Job, image: &Path, cache: &Path, options: &[&str]) -> String {
    let run = job.sh("stat -c %s /large").image(image).limit(180);
    let run = run.env("XDG_CACHE_HOME", cache).with(options);
    run.with(&["-v", "--changes", "c"])
        .go()
        .exits(0)
        .prints(&format!("{LARGE}\n"))
        .stderr
}

#[test]
fn an_image_grows_by_what_is_committed_into_it() {
    let Some(job) = Job::new() else { return };
    let scene = one_large_file(&job);
    show_large(&job, &scene.image, &scene.cache);
    let said = show_large(&job, &scene.image, &scene.cache);
    assert!(said.contains("prepared in"), "{said}");
    let kept = &scene.images()[0];
    tool("e2fsck", &["-fn", kept.to_str().unwrap()]);
    let (before, after) = (&scene.image, kept);
    let len = |path: &Path| path.metadata().unwrap().len();
    assert!(len(after) > len(before) + LARGE as u64);
    // Where nothing can be written, what is there is booted, and nothing else is made.
    let read_only = |cache: &Path| {
        let run = job.sh("stat -c %s /large").image(&scene.image).limit(180);
        let run = run
            .env("XDG_CACHE_HOME", cache)
            .with(&["-v", "--changes", "c"]);
        let cache = cache.display();
        let script =
            format!("mount --bind '{cache}' '{cache}'; mount -o remount,bind,ro '{cache}'");
        let done = run.mounts(&script).go().exits(0);
        done.prints(&format!("{LARGE}\n")).stderr
    };
    let said = read_only(&scene.cache);
    assert!(said.contains(kept.to_str().unwrap()), "{said}");
    let said = read_only(&job.directory_beside("empty"));
    assert!(said.contains("not kept: cannot make"), "{said}");
}

#[test]
fn what_cannot_be_kept_is_merged_at_boot() {
    let Some(job) = Job::new() else { return };
    let scene = one_large_file(&job);
    // A file where the directory should be.
    let file = job.put("file", "");
    let said = show_large(&job, &scene.image, &file);
    assert!(
        said.contains("merged at boot, not kept: cannot make"),
        "{said}"
    );
    // Others could put images there.
    let open = job.directory_beside("open");
    fs::create_dir_all(open.join("apppot/committed")).unwrap();
    tool("chmod", &["-R", "0777", open.to_str().unwrap()]);
    let said = show_large(&job, &scene.image, &open);
    assert!(
        said.contains("is no directory that nobody but you"),
        "{said}"
    );
    // Whole disks do not grow.
    let disk = disk(&job, "disk", "gpt");
    let base = ["snap", "base", disk.to_str().unwrap(), "-o", "b"];
    job.apppot(&base).go().exits(0);
    let changed = job.beside("changed");
    let changes = ["snap", "changes", "--base", "b", changed.to_str().unwrap()];
    let options = ["-o", "c", "--exclude", "/lost+found"];
    job.apppot(&changes).with(&options).go().exits(0);
    settle();
    let run = || show_large(&job, &disk, &scene.cache);
    assert!(!run().contains("not kept"));
    let said = run();
    assert!(said.contains("not kept: 'apppot snap commit'"), "{said}");
    assert!(scene.images().is_empty());
    assert!(run().contains("not kept: this has failed before"));
}

#[test]
fn what_a_commit_would_make_otherwise_is_not_kept() {
    let Some(job) = Job::new() else { return };
    let scene = one_large_file(&job);
    for options in [&["--changes-any-base"][..], &["--changes", "c"]] {
        for _ in 0..3 {
            let run = job.sh("cat /etc/name").image(&scene.image).limit(180);
            let run = run.env("XDG_CACHE_HOME", &scene.cache).with(options);
            run.with(&["-v", "--changes", "c"]).go().exits(0);
        }
    }
    assert!(scene.kept(|_| true).is_empty());
    // The image remembers the archive, and is otherwise as it was.
    let archive = fs::read(job.path().join("c")).unwrap();
    let id = &archive[archive.len() - 32..];
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let image = scene.image.to_str().unwrap();
    for directory in ["", "/merged", &format!("/merged/{id}")] {
        let request = format!("mkdir /var/lib/apppot{directory}");
        tool("debugfs", &["-w", "-R", &request, image]);
    }
    settle();
    assert!(!show_large(&job, &scene.image, &scene.cache).contains("not kept"));
    let said = show_large(&job, &scene.image, &scene.cache);
    assert!(
        said.contains("not kept: the image has one of them"),
        "{said}"
    );
    assert!(scene.images().is_empty());
}
