//! Root of a guest reaches nothing but what it was given.
//!
//! Every attempt is made a second time without confinement, where it must succeed: so each test shows
//! that it can fail.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::support::{Done, Job, Run};

const SECRET: &str = "the-secret-of-the-host";
/// `hostfs SOURCE TARGET`: kernels and mount(8) differ in how the source is an option.
const HOSTFS: &str = "hostfs() { mount -t hostfs none \"$2\" -o \"$1\" || mount -t hostfs none \"$2\" -o \"hostfs=$1\"; }\n";

/// A directory beside the job directory, with a secret in it.
fn outside(job: &Job) -> PathBuf {
    let path = job.directory_beside("outside");
    job.put(path.join("secret"), SECRET);
    path
}

/// Whether this host can confine; in CI it must.
fn has_landlock(job: &Job) -> bool {
    let done = job.run(&["true"]).with(&["--containment", "required"]).go();
    let can = done.code() == Some(0);
    assert!(
        can || std::env::var_os("CI").is_none(),
        "no Landlock here: {}",
        done.stderr
    );
    if !can {
        eprintln!("skipped: {}", done.stderr);
    }
    can
}

/// Runs `attempt` as root of the guest.
fn attempt<'a>(job: &'a Job, script: &str, containment: &str) -> Run<'a> {
    job.sh(script)
        .with(&["--root", "--containment", containment])
        .limit(60)
}

fn reveals(done: &Done) -> bool {
    done.text().contains(SECRET) || done.stderr.contains(SECRET)
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn mounting_other_directories_of_the_host() {
    let Some(job) = Job::new() else { return };
    let outside = outside(&job);
    let inside = job.path();
    if !has_landlock(&job) {
        return;
    }
    let below_root = shown(&outside).trim_start_matches('/');
    let sources = [
        String::from("/"),
        shown(&outside).to_owned(),
        format!("{}/../outside", shown(inside)),
        format!("../../../../../../../../{below_root}"),
        format!("/proc/self/root{}", shown(&outside)),
        format!("/proc/self/cwd/../../../../../../../{below_root}"),
        String::from("/proc/self/fd/110/../outside"),
        String::from("/proc/self/fd/110/.."),
        String::from(""),
    ];
    let lines = sources.iter().map(|source| {
        format!(
            "hostfs '{source}' /mnt && {{ cat /mnt/secret /mnt/outside/secret /mnt/{below_root}/secret; umount /mnt; }}\n"
        )
    });
    let script: String = [HOSTFS.to_owned()].into_iter().chain(lines).collect();
    let script = script + "echo tried";
    let Some(confined) = attempt(&job, &script, "required").debian() else {
        return;
    };
    let confined = confined.go().exits(0).shows(&["tried"]);
    assert!(
        !reveals(&confined),
        "{} {}",
        confined.text(),
        confined.stderr
    );
    let free = attempt(&job, &script, "off")
        .debian()
        .unwrap()
        .go()
        .exits(0);
    assert!(
        reveals(&free),
        "the test cannot fail: {} {}",
        free.text(),
        free.stderr
    );
}

#[test]
fn a_symbolic_link_that_is_swapped_in() {
    let Some(job) = Job::new() else { return };
    let outside = outside(&job);
    if !has_landlock(&job) {
        return;
    }
    let script = format!(
        "{HOSTFS}
         mkdir -p sub/deep && hostfs \"$PWD/sub\" /mnt && ls /mnt >/dev/null
         mv sub was && ln -s '{}' sub
         cat /mnt/secret sub/secret; ls /mnt
         mkdir /mnt2; hostfs \"$PWD/sub\" /mnt2 && cat /mnt2/secret
         rm -rf sub was; echo tried",
        shown(&outside)
    );
    let Some(confined) = attempt(&job, &script, "required").debian() else {
        return;
    };
    let confined = confined.go().exits(0).shows(&["tried"]);
    assert!(
        !reveals(&confined),
        "{} {}",
        confined.text(),
        confined.stderr
    );
    let free = attempt(&job, &script, "off")
        .debian()
        .unwrap()
        .go()
        .exits(0);
    assert!(
        reveals(&free),
        "the test cannot fail: {} {}",
        free.text(),
        free.stderr
    );
}

#[test]
fn nothing_outside_can_be_written_with_the_hosts_root() {
    let Some(job) = Job::new() else { return };
    let outside = outside(&job);
    if !has_landlock(&job) {
        return;
    }
    let script = format!(
        "{HOSTFS}
         d='{}'
         mkdir -p /tmp/m; hostfs / /tmp/m && {{
            echo changed >\"/tmp/m$d/secret\"; echo new >\"/tmp/m$d/new\"; mkdir \"/tmp/m$d/newdir\"
            rm -f \"/tmp/m$d/gone\"; mv \"/tmp/m$d/moved\" \"/tmp/m$d/away\"
            chmod 777 \"/tmp/m$d/mode\"; touch -d 2001-01-01 \"/tmp/m$d/time\"
            touch -d 2001-01-01 \"/tmp/m$d\"; chmod 700 \"/tmp/m$d\"
         }}
         echo in-the-overlay >\"$d/secret\"; cat \"$d/secret\"",
        shown(&outside)
    );
    let prepare = || {
        for name in ["gone", "moved", "mode", "time"] {
            job.put(outside.join(name), "");
        }
    };
    prepare();
    let before = state(&outside);
    let confined = attempt(&job, &script, "required").go().exits(0);
    confined.shows(&["in-the-overlay"]);
    assert_eq!(state(&outside), before);
    attempt(&job, &script, "off").go().exits(0);
    let changed = state(&outside);
    assert_eq!(changed.len(), before.len() + 1, "the test cannot fail");
    for (name, was) in &before {
        assert_ne!(changed.get(name), Some(was), "the test cannot fail");
    }
}

/// Content, mode, and time of the last change, seconds and nanoseconds.
type State = (Vec<u8>, u32, i64, i64);

/// The state of all that is in a directory, and of the directory.
fn state(directory: &Path) -> BTreeMap<PathBuf, State> {
    let entries = std::fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .chain([directory.to_owned()])
        .map(|path| {
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let content = std::fs::read(&path).unwrap_or_default();
            let state = (content, meta.mode(), meta.mtime(), meta.mtime_nsec());
            (path, state)
        })
        .collect()
}

#[test]
fn a_read_only_share_stays_so() {
    let Some(job) = Job::new() else { return };
    let outside = outside(&job);
    if !has_landlock(&job) {
        return;
    }
    let bind = format!("{}:/data:ro", shown(&outside));
    let script = format!(
        "{HOSTFS}
         cat /data/secret; echo x >/data/direct; mount -o remount,rw /data; echo x >/data/remounted
         hostfs '{}' /mnt && echo x >/mnt/again
         chmod 777 /data/secret /mnt/secret; touch -d 2001-01-01 /data/secret /mnt/secret; echo tried",
        shown(&outside)
    );
    let run = |mode| {
        attempt(&job, &script, mode)
            .with(&["--bind", &bind])
            .debian()
    };
    let Some(confined) = run("required") else {
        return;
    };
    let before = state(&outside);
    confined.go().exits(0).shows(&["tried", SECRET]);
    assert_eq!(state(&outside), before);
    run("off").unwrap().go().exits(0);
    let changed = state(&outside);
    assert!(changed.len() > before.len(), "the test cannot fail");
    let secret = outside.join("secret");
    assert_ne!(changed[&secret], before[&secret], "the test cannot fail");
}

#[test]
fn the_image_is_read_only_to_a_machine_that_keeps_its_writes_in_memory() {
    let Some(job) = Job::new() else { return };
    if !has_landlock(&job) {
        return;
    }
    let image = crate::support::tools::ext4(&job, "image");
    let before = crate::support::tools::sha256(&image);
    let script = "echo changed >/etc/name; cat /etc/name; cat /dev/zero >/dev/ubda; cat </dev/null >/proc/self/fd/102; true";
    job.sh(script)
        .image(&image)
        .with(&["--root"])
        .go()
        .exits(0)
        .shows(&["changed\n"]);
    assert_eq!(crate::support::tools::sha256(&image), before);
}

#[test]
fn the_state_is_told() {
    let Some(job) = Job::new() else { return };
    if !has_landlock(&job) {
        return;
    }
    for (mode, told) in [
        ("required", "landlock"),
        ("auto", "landlock"),
        ("off", "off"),
    ] {
        job.run(&["true"])
            .with(&["--containment", mode, "-v"])
            .go()
            .exits(0)
            .says(&["containment: ", told]);
    }
}
