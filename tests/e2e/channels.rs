//! Files that travel: what a job finds and what comes back, whatever the channel.

use std::fs;
use std::os::unix::fs::{symlink, FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use crate::support::tools::sha256;
use crate::support::{eventually, noise, processes, Backend, Input, Job, Run};

/// Those by which files are copied.
const COPYING: [&str; 2] = ["link", "disk"];

/// Those by which the directory is shared.
fn live(job: &Job) -> &'static str {
    match job.site.backend {
        Backend::Uml => "hostfs",
        _ => "9p",
    }
}

fn by<'a>(run: Run<'a>, channel: &str) -> Run<'a> {
    run.with(&["--channel", channel])
}

/// Name, mode, time of change, what is in it (of large files: its checksum), number of names, and
/// whether it has holes.
type File = (String, u32, (i64, i64), Vec<u8>, u64, bool);
type Shape = Vec<File>;

/// Everything below the job directory that the channels must agree on.
fn shape(job: &Job) -> Shape {
    fn add(root: &Path, directory: &Path, shape: &mut Shape) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let file = path.symlink_metadata().unwrap();
            let content = match file.file_type() {
                kind if kind.is_file() && file.len() > 1 << 20 => sha256(&path).into_bytes(),
                kind if kind.is_file() => fs::read(&path).unwrap(),
                kind if kind.is_symlink() => fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes(),
                _ => Vec::new(),
            };
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            let time = (file.mtime(), file.mtime_nsec());
            let links = if file.is_dir() { 0 } else { file.nlink() };
            let holes = file.len() > 1 << 20 && file.blocks() * 512 < file.len() / 2;
            shape.push((name, file.mode(), time, content, links, holes));
            if file.is_dir() {
                add(root, &path, shape);
            }
        }
    }
    let mut all = Shape::new();
    add(job.path(), job.path(), &mut all);
    all.sort();
    all
}

/// Files of all kinds, some to be changed.
fn populate(job: &Job) {
    let root = job.path();
    for number in 0..40 {
        fs::create_dir_all(root.join(format!("in/{}", number % 7))).unwrap();
        fs::write(
            root.join(format!("in/{}/f{number}", number % 7)),
            noise(number * 97),
        )
        .unwrap();
    }
    fs::write(root.join("in/large"), noise(32 << 20)).unwrap();
    fs::write(root.join("in/b\x01n\nry \u{fc}"), noise(70_000)).unwrap();
    fs::set_permissions(root.join("in/1/f1"), fs::Permissions::from_mode(0o500)).unwrap();
    symlink("../nowhere", root.join("in/link")).unwrap();
    fs::hard_link(root.join("in/2/f2"), root.join("in/twin")).unwrap();
    fs::create_dir(root.join("in/empty")).unwrap();
    let pipe = root.join("in/pipe");
    crate::support::tools::tool("mkfifo", &["-m", "640", pipe.to_str().unwrap()]);
    let sparse = fs::File::create(root.join("in/sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    sparse.write_all_at(b"middle", 9 << 20).unwrap();
    for (number, item) in walk(root).into_iter().enumerate() {
        let user = &job.site.user;
        std::os::unix::fs::lchown(&item, Some(user.uid), Some(user.gid)).unwrap();
        let time = format!("2020-01-02 03:04:05.{:09}", number * 1001 + 1);
        crate::support::tools::tool("touch", &["-h", "-d", &time, item.to_str().unwrap()]);
    }
}

/// Everything below `root`, the deepest first.
fn walk(root: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            all.extend(walk(&path));
        }
        all.push(path);
    }
    all
}

/// A thousand files of all kinds and 256 MiB, and changes to those that were there. Times are set: those of the
/// machines would differ.
const WORK: &str = r#"set -e
umask 027
mkdir out out/empty out/deep out/deep/er
i=0
while [ $i -lt 1000 ]; do echo "file $i" >out/f$i; i=$((i+1)); done
chmod 600 out/f1; chmod 755 out/f2; chmod 000 out/f3; chmod 1777 out/deep
ln out/f4 out/hard1; ln out/f4 out/deep/hard2
ln -s f5 out/link; ln -s /no/such out/dangling
mkfifo out/fifo 2>/dev/null || test $CHANNEL = 9p
echo through >in/pipe & read -r line <in/pipe; test $line = through; touch -d '2021-05-06 07:08:09' in/pipe
truncate -s 30M out/sparse; printf end >>out/sparse
printf 'x' >"out/$(printf 'n\nl \377')"
echo changed >in/0/f0
cp -p in/3/f3 copy; printf 'Z' | dd of=in/3/f3 bs=1 conv=notrunc 2>/dev/null; touch -r copy in/3/f3; rm copy
chmod 640 in/4/f4
mv in/twin in/renamed
cat in/large in/large in/large in/large in/large in/large in/large in/large >out/large
cat in/large >>in/5/f5
find out in -depth -newermt 2020-06-01 -exec touch -h -d '2021-05-06 07:08:09' {} +
"#;

#[test]
fn give_identical_trees() {
    let Some(job) = Job::new() else { return };
    let mut channels = vec![live(&job)];
    channels.extend(COPYING);
    channels.extend(job.site.virtiofsd.as_ref().map(|_| "virtiofs"));
    // QEMU's 9P server makes none.
    let has_fifos = channels[0] != "9p";
    let mut shapes: Vec<Shape> = Vec::new();
    for &channel in &channels {
        let Some(job) = Job::new() else { return };
        populate(&job);
        let channel_variable = format!("CHANNEL={channel}");
        let run = by(job.sh(WORK), channel).with(&["--env", &channel_variable]);
        run.limit(240).go().exits(0);
        let mut shape = shape(&job);
        assert_eq!(job.has("out/fifo"), channel != "9p", "{channel}");
        let sets_seconds = channel == "9p" || channel == "hostfs" && !job.site.has_own_kernel();
        shape.retain(|(name, ..)| name != "out/fifo" || has_fifos);
        // A copy that is not told to delete leaves the old name of what was renamed.
        shape.retain(|(name, ..)| name != "in/twin" && name != "in/2/f2");
        for file in &mut shape {
            match file.0.as_str() {
                "in/renamed" => file.4 = 0,
                "in/3/f3" => {
                    assert_eq!(file.2 .1 == 0, sets_seconds, "{channel}");
                    file.2 .1 = 0;
                }
                // Not by hostfs of other kernels.
                "out/link" | "out/dangling"
                    if live(&job) == "hostfs" && !job.site.has_own_kernel() =>
                {
                    file.2 = (0, 0);
                }
                _ => {}
            }
        }
        assert!(shape.len() > 1050, "{}", shape.len());
        shapes.push(shape);
    }
    for (channel, other) in channels.iter().zip(&shapes).skip(1) {
        for (mine, theirs) in shapes[0].iter().zip(other) {
            let brief = |item: &File| {
                let content = item.3[..item.3.len().min(40)].to_owned();
                (
                    item.0.clone(),
                    format!("{:o}", item.1),
                    item.2,
                    content,
                    item.3.len(),
                    item.4,
                    item.5,
                )
            };
            assert!(
                mine == theirs,
                "{channel}: {:?}, {}: {:?}",
                brief(theirs),
                channels[0],
                brief(mine)
            );
        }
        assert_eq!(shapes[0].len(), other.len(), "{channel}");
    }
}

#[test]
fn that_copy_leave_the_host_out_of_reach() {
    for channel in COPYING {
        let Some(job) = Job::new() else { return };
        job.put("file", "here\n");
        // The root is the host's own, the job directory is not.
        let script = format!(
            "cat file; grep -c ' '$PWD' {} ' /proc/mounts || :; echo new >>file; sleep 0.2; echo done",
            live(&job)
        );
        let running = by(job.sh(&script), channel)
            .input(Input::Open)
            .limit(60)
            .start();
        running.until_it_prints("here");
        assert_eq!(
            job.read("file"),
            "here\n",
            "{channel}: changed before the end"
        );
        running.finish().exits(0).prints("here\n0\ndone\n");
        assert_eq!(job.read("file"), "here\nnew\n");
    }
}

#[test]
fn return_what_there_is_when_the_command_fails_or_is_stopped() {
    for channel in COPYING {
        let Some(job) = Job::new() else { return };
        by(job.sh("echo x >failed; exit 7"), channel).go().exits(7);
        assert_eq!(job.read("failed"), "x\n");
        by(job.run(&["/no/such"]), channel).go().exits(127);
        // The boot counts.
        let limit = match job.site.backend {
            Backend::Uml => "4s",
            _ => "10s",
        };
        let script = "echo x >limited; echo ready; exec sleep 1000";
        by(job.sh(script), channel)
            .with(&["--time-limit", limit, "--grace", "1s"])
            .go()
            .exits(124);
        assert_eq!(job.read("limited"), "x\n");
        let script = "echo x >stopped; echo ready; exec sleep 1000";
        let running = by(job.sh(script), channel).limit(60).start();
        running.until_it_prints("ready");
        running.signal(libc::SIGTERM);
        running.finish().exits(143);
        assert_eq!(job.read("stopped"), "x\n");
        let script = "trap '' TERM; echo x >killed; echo ready; while :; do sleep 0.1; done";
        let running = by(job.sh(script), channel)
            .with(&["--grace", "500ms"])
            .limit(60)
            .start();
        running.until_it_prints("ready");
        running.signal(libc::SIGTERM);
        running.finish().exits(137);
        assert_eq!(job.read("killed"), "x\n");
    }
}

#[test]
fn work_when_the_launcher_is_killed() {
    for channel in COPYING {
        let Some(job) = Job::new() else { return };
        job.put("given", noise(1 << 20));
        // From the boot to the results.
        let step = match job.site.backend {
            Backend::Uml => 120,
            _ => 1200,
        };
        for moment in 0..6 {
            let script =
                "i=0; while [ $i -lt 200 ]; do head -c 300000 given >out$i; i=$((i+1)); done";
            let running = by(job.sh(script), channel).limit(60).start();
            std::thread::sleep(Duration::from_millis(step * moment));
            let below = processes::descendants(running.pid());
            running.signal(libc::SIGKILL);
            running.finish();
            eventually("processes end", || {
                !below.iter().any(|pid| {
                    processes::executable(*pid).is_some_and(|exe| exe == job.site.hypervisor)
                })
            });
            for path in walk(job.path()) {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                assert!(
                    name == "given" || name.starts_with("out"),
                    "{channel}: {name} is left"
                );
                let len = path.metadata().unwrap().len();
                assert!(
                    len == 300_000 || name == "given",
                    "{channel}: {name} has {len} bytes"
                );
            }
        }
    }
}

#[test]
fn keep_what_was_changed_on_both_sides() {
    for channel in COPYING {
        let Some(job) = Job::new() else { return };
        job.put("both", "before");
        job.put("mine", "before");
        let script = "echo theirs >both; echo theirs >new; echo ready; read -r line; exit 0";
        let mut running = by(job.sh(script), channel)
            .input(Input::Open)
            .limit(60)
            .start();
        running.until_it_prints("ready");
        for name in ["both", "new", "mine"] {
            job.put(name, "mine");
        }
        running.end_input();
        let done = running.finish().exits(0);
        done.says(&["'both.apppot-kept'", "'new.apppot-kept'"]);
        for name in ["both", "new"] {
            assert_eq!(job.read(name), "theirs\n", "{channel}");
            assert_eq!(
                job.read(&format!("{name}.apppot-kept")),
                "mine",
                "{channel}"
            );
        }
        assert_eq!(job.read("mine"), "mine");
        assert!(!job.has("mine.apppot-kept"));
    }
}

#[test]
fn delete_only_when_asked_to() {
    for channel in COPYING {
        let Some(job) = Job::new() else { return };
        let directory = job.path().join("d");
        fs::create_dir(&directory).unwrap();
        job.give(&directory);
        for name in ["a", "d/b"] {
            job.put(name, "x");
        }
        by(job.sh("rm -r a d"), channel).go().exits(0);
        assert!(job.has("a") && job.has("d/b"), "{channel}");
        by(job.sh("rm -r a d"), channel)
            .with(&["--sync-deletes"])
            .go()
            .exits(0);
        assert!(!job.has("a") && !job.has("d"), "{channel}");
    }
}

#[test]
fn carry_only_what_is_wanted() {
    for channel in COPYING {
        let Some(job) = Job::new() else { return };
        let directory = job.path().join("data");
        fs::create_dir(&directory).unwrap();
        job.give(&directory);
        for name in ["data/x", "data/x.tmp", "other"] {
            job.put(name, name);
        }
        let options = ["--input", "data", "--input", "!*.tmp", "--output", "*.csv"];
        by(
            job.sh("ls; ls data; echo a >a.csv; echo b >b; mkdir d; echo c >d/c.csv"),
            channel,
        )
        .with(&options)
        .go()
        .exits(0)
        .prints("data\nx\n");
        assert_eq!(
            (job.read("a.csv"), job.read("d/c.csv")),
            ("a\n".into(), "c\n".into())
        );
        assert!(!job.has("b"));
    }
}

#[test]
fn say_what_does_not_travel() {
    let Some(job) = Job::new() else { return };
    let socket = std::os::unix::net::UnixListener::bind(job.path().join("socket")).unwrap();
    job.give(&job.path().join("socket"));
    let done = by(job.sh("test ! -e socket"), "link").go();
    done.exits(0)
        .says(&["'socket' is not sent: it is a socket"]);
    // What nobody wants is not missed.
    job.put("data", "x");
    let run = by(job.sh("cat data; test ! -e typo"), "link");
    let done = run.with(&["--input", "data", "--input", "/typo"]).go();
    let done = done.exits(0).prints("x");
    let said = "nothing here matches --input '/typo'";
    assert!(done.stderr.contains(said) && !done.stderr.contains("socket"));
    drop(socket);
}

#[test]
fn have_limits() {
    let Some(job) = Job::new() else { return };
    for channel in COPYING {
        let done = by(job.sh("head -c 3000000 /dev/zero >big"), channel)
            .with(&["--output-limit", "1M"])
            .go();
        done.exits(125)
            .says(&["not all of the job's results came back", "--output-limit"]);
        assert!(!job.has("big"));
        let done = by(job.sh("touch 1 2 3 4"), channel)
            .with(&["--output-files", "3"])
            .go();
        done.exits(125).says(&["4 files, the limit is 3"]);
    }
    let holes = job.put("holes", "");
    let holes = fs::File::options().write(true).open(holes).unwrap();
    holes.set_len(3 << 30).unwrap();
    let small = ["--memory", "128M"];
    by(job.run(&["true"]), "link").with(&small).go().exits(0);
    job.put("input", vec![1; 128 << 20]);
    let done = by(job.run(&["true"]), "link").with(&small).go();
    done.exits(125)
        .says(&["does not fit into the guest's memory", "--input"]);
}

#[test]
fn say_where_the_rest_is_when_the_disk_is_full() {
    let Some(job) = Job::new() else { return };
    let small = job.directory_beside("small");
    let rest = job.directory_beside("rest");
    for channel in COPYING {
        let script = "echo 1 >a; head -c 6000000 /dev/zero >big; echo 2 >c";
        let mount = format!(
            "mount -t tmpfs -o size=4M,mode=0777 tmpfs '{}'",
            small.display()
        );
        let run = by(job.sh(script), channel)
            .with(&["--workdir", small.to_str().unwrap(), "--id", channel])
            .env("TMPDIR", &rest)
            .mounts(&mount);
        let done = run.limit(60).go().exits(125);
        let done = done.says(&[
            "No space left on device",
            "1 files",
            "'big' is not",
            "apppot-rest",
        ]);
        let mut left = fs::read_dir(&rest)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let is_rest = |path: &std::path::PathBuf| path.extension().is_some_and(|tar| tar == "tar");
        let name = left.find(is_rest).unwrap();
        assert!(
            done.stderr.contains(name.to_str().unwrap()),
            "{}",
            done.stderr
        );
        let listed = crate::support::tools::tool("tar", &["-tf", name.to_str().unwrap()]);
        assert_eq!(listed, "big\nc\n", "{channel}");
        fs::remove_file(name).unwrap();
    }
}

#[test]
fn are_refused_with_reasons() {
    let Some(job) = Job::new() else { return };
    for (options, texts) in [
        (
            &["--channel", "pigeon"][..],
            &["no channel 'pigeon'", "link"][..],
        ),
        (
            &["--channel", live(&job), "--input", "x"],
            &["--input", "is shared"],
        ),
        (
            &["--channel", "link", "--output", "["],
            &["--output", "no pattern"],
        ),
    ] {
        job.run(&["true"]).with(options).go().exits(125).says(texts);
    }
    let done = job.run(&["true"]).with(&["--channel", "link", "-v"]).go();
    done.exits(0).says(&["channel:     link"]);
}

#[test]
fn need_no_memory_where_the_image_keeps_what_is_written() {
    let Some(job) = Job::new() else { return };
    let bytes = noise(140 << 20);
    job.put("input", &bytes);
    let script = "cp input output; ls -d /var/lib/apppot/files";
    let options = ["--overlay", "../o.cow", "--memory", "128M"];
    for channel in COPYING {
        let Some(run) = by(job.sh(script), channel).with(&options).debian() else {
            return;
        };
        run.limit(240).go().exits(0);
        assert!(
            fs::read(job.path().join("output")).unwrap() == bytes,
            "{channel}"
        );
        fs::remove_file(job.path().join("output")).unwrap();
        // Nothing of it stays in the image.
        let run = job.run(&["ls", "/var/lib/apppot/files"]).with(&options);
        let done = by(run, live(&job)).debian().unwrap().go();
        assert_ne!(done.code(), Some(0), "{}", done.text());
    }
}
