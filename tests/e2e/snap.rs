//! Changes: made from what a machine kept, merged into another.

use std::fs;

use crate::support::tools::{add_program, ext4, into_ext4, sha256, small_root, tool};
use crate::support::{debian_image, Backend, Job};

const MODIFY: &str = "echo changed >/etc/name; echo new >/etc/new; mkdir -m 1777 /srv; \
    echo set >/bin/set; chmod 4755 /bin/set; rm /bin/env";
const SHOW: &str = "cat /etc/name /etc/new; stat -c %a /srv /bin/set; test ! -e /bin/env";
const SHOWN: &str = "changed\nnew\n1777\n4755\n";

/// A base image, and `c`, the changes that a machine has made above it.
fn scene(job: &Job) -> std::path::PathBuf {
    let image = ext4(job, "image");
    let kept = &["--root", "--overlay", "kept.cow"];
    job.sh(MODIFY).image(&image).with(kept).go().exits(0);
    let base = image.to_str().unwrap();
    let words = [
        "snap",
        "changes",
        "--base",
        base,
        base,
        "--overlay",
        "kept.cow",
        "-o",
        "c",
    ];
    job.apppot(&words).go().exits(0);
    image
}

#[test]
fn what_one_machine_kept_is_in_another_before_its_job() {
    let Some(job) = Job::new() else { return };
    let image = scene(&job);
    let before = sha256(&image);
    let run = || job.sh(SHOW).image(&image).with(&["--changes", "c"]);
    run().go().exits(0).prints(SHOWN);
    // A regular user is mapped after the merge.
    run().with(&["--root"]).go().exits(0).prints(SHOWN);
    assert_eq!(sha256(&image), before);
}

#[test]
fn changes_come_whichever_way_the_jobs_files_travel() {
    let Some(job) = Job::new() else { return };
    let image = scene(&job);
    let channels: &[&str] = match job.site.backend {
        Backend::Uml => &["hostfs", "link", "disk"],
        _ => &["9p", "link", "disk"],
    };
    job.put("input", "from the host\n");
    for channel in channels {
        let script = format!("{SHOW}; cat input; echo back >{channel}");
        job.sh(&script)
            .image(&image)
            .with(&["--changes", "c", "--channel", channel])
            .go()
            .exits(0)
            .prints(&format!("{SHOWN}from the host\n"));
        assert_eq!(job.read(channel), "back\n");
        // What is wrong with an archive is known before any file has travelled.
        let bad = ["--changes", "input", "--channel", channel];
        let run = job.sh("echo ran >ran").image(&image).with(&bad);
        run.go().exits(125).says(&["is no changes archive"]);
        assert!(!job.has("ran"));
    }
}

#[test]
fn a_kept_overlay_is_not_merged_into_twice() {
    let Some(job) = Job::new() else { return };
    let image = scene(&job);
    let options = ["--root", "--overlay", "other.cow", "--changes", "c"];
    let run = |script: &str| job.sh(script).image(&image).with(&options).go();
    run("cat /etc/name; echo mine >/etc/name")
        .exits(0)
        .prints("changed\n");
    run("cat /etc/name").exits(0).prints("mine\n");
}

#[test]
fn bad_archives_stop_the_job_before_it_runs() {
    let Some(job) = Job::new() else { return };
    let image = scene(&job);
    let whole = fs::read(job.path().join("c")).unwrap();
    job.put("truncated", &whole[..whole.len() - 512]);
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    job.put("damaged", &damaged);
    job.put("other", b"a text");
    let words = ["snap", "base", image.to_str().unwrap(), "-o", "base"];
    job.apppot(&words).go().exits(0);
    for (name, reason) in [
        ("missing", "No such file"),
        ("truncated", "is truncated"),
        ("damaged", "is damaged"),
        ("other", "is no changes archive"),
        ("base", "is a recorded base"),
    ] {
        let run = job.sh(": >ran").image(&image).with(&["--changes", name]);
        run.go().exits(125).says(&[name, reason]);
    }
    assert!(!job.has("ran"));
}

#[test]
fn another_base_is_refused_unless_it_is_wanted() {
    let Some(job) = Job::new() else { return };
    scene(&job);
    let other = ext4(&job, "another");
    let run = |options: &[&str]| {
        let run = job.sh(": >ran; cat /etc/new").image(&other);
        run.with(&["--changes", "c"]).with(options).go()
    };
    run(&[])
        .exits(125)
        .says(&["made for another base", "--changes-any-base"]);
    // The guest looks by itself where the host does not.
    run(&["--write", "--root"]).exits(125).says(&[
        "made for another base",
        "hint: ",
        "--changes-any-base",
    ]);
    assert!(!job.has("ran"));
    run(&["--changes-any-base"]).exits(0).prints("new\n");
}

#[test]
fn a_committed_image_has_the_changes_and_nothing_else() {
    let Some(job) = Job::new() else { return };
    let image = scene(&job);
    let base = image.to_str().unwrap();
    let commit = [
        "snap",
        "commit",
        "--base",
        base,
        "--changes",
        "c",
        "-o",
        "new.img",
    ];
    job.apppot(&commit).go().exits(0);
    let words = ["snap", "changes", "--base", base, "new.img", "-o", "again"];
    job.apppot(&words).go().exits(0);
    let archive = |name: &str| fs::read(job.path().join(name)).unwrap();
    assert!(archive("c") == archive("again"));
    job.sh(SHOW)
        .image(&job.path().join("new.img"))
        .go()
        .exits(0)
        .prints(SHOWN);
    tool(
        "e2fsck",
        &["-fn", job.path().join("new.img").to_str().unwrap()],
    );
}

#[test]
fn a_guest_makes_the_same_archive_as_its_host() {
    let Some(job) = Job::new() else { return };
    let image = scene(&job);
    let base = image.to_str().unwrap();
    job.apppot(&["snap", "base", base, "-o", "recorded"])
        .go()
        .exits(0);
    job.run(&["apppot-snap", "changes", "-b", "recorded", "guest"])
        .image(&image)
        .with(&["--root", "--overlay", "kept.cow"])
        .go()
        .exits(0);
    let words = [
        "snap",
        "changes",
        "--base",
        "recorded",
        base,
        "--overlay",
        "kept.cow",
        "-o",
        "host",
    ];
    job.apppot(&words).go().exits(0);
    let archive = |name: &str| fs::read(job.path().join(name)).unwrap();
    assert!(archive("guest") == archive("host"));
}

#[test]
fn a_guest_records_changes_and_merges_by_itself() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    let script = format!("apppot-snap base && {{ {MODIFY}; }} && apppot-snap changes");
    job.sh(&script)
        .image(&image)
        .with(&["--root"])
        .go()
        .exits(0);
    let merge = format!("apppot-snap merge >/dev/null && {SHOW}");
    let run = job.sh(&merge).image(&image).with(&["--root"]);
    run.go().exits(0).prints(SHOWN);
    let run = job
        .sh(SHOW)
        .image(&image)
        .with(&["--changes", "apppot.changes"]);
    run.go().exits(0).prints(SHOWN);
}

#[test]
fn archives_are_shown() {
    let Some(job) = Job::new() else { return };
    scene(&job);
    let shown = job.apppot(&["snap", "inspect", "c"]).go().exits(0);
    shown.shows(&[
        "* /etc/name (8 bytes)",
        "+ /etc/new (4 bytes)",
        "+ /srv",
        "- /bin/env",
    ]);
    let json = job
        .apppot(&["--json", "snap", "inspect", "c"])
        .go()
        .exits(0);
    json.shows(&["\"change\":\"-\"", "\"path\":\"/bin/env\""]);
}

#[test]
fn directories_have_changes_too() {
    let Some(job) = Job::new() else { return };
    let root = small_root(&job, "root");
    let path = root.to_str().unwrap();
    job.apppot(&["snap", "base", path]).go().exits(0);
    fs::write(root.join("etc/new"), "new\n").unwrap();
    fs::write(root.join("etc/left-out"), "x").unwrap();
    job.put(".apppotignore", b"left-*\n");
    let words = ["snap", "changes", "--base", "apppot.base", path];
    job.apppot(&words).go().exits(0);
    job.apppot(&["snap", "inspect"])
        .go()
        .exits(0)
        .shows(&["+ /etc/new"]);
    let diff = job
        .apppot(&["snap", "diff", "--base", "apppot.base", path])
        .go()
        .exits(0);
    assert!(!diff.stdout.windows(8).any(|part| part == b"left-out"));
}

/// A base image with the tools that make everything that a file can be.
fn workshop(job: &Job) -> std::path::PathBuf {
    let root = small_root(job, "workshop");
    for program in [
        "ln",
        "cp",
        "mv",
        "mkfifo",
        "mknod",
        "touch",
        "truncate",
        "dd",
        "chown",
        "find",
        "sort",
        "sha256sum",
        "setcap",
        "getcap",
    ] {
        add_program(&root, program);
    }
    for (name, content) in [
        ("issue", "an issue"),
        ("same", "what is to become something else"),
    ] {
        fs::write(root.join("etc").join(name), content).unwrap();
    }
    for directory in ["etc/default", "var/tmp"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    fs::write(root.join("etc/default/file"), "gone later").unwrap();
    into_ext4(job, &root)
}

/// Everything that a file can be, and everything that can become of one.
const HARD: &str = r#"
    mkdir /srv; cd /srv
    mknod null c 1 3; mknod sda b 8 0; mkfifo -m 600 pipe; ln -s loop loop; ln -s y x; ln -s x y
    echo x >a; ln a b; ln b /etc/linked; chown 77:4000000000 a; chmod 6711 a; touch -d @-5.25 a
    truncate -s 4G sparse; printf x | dd of=sparse bs=1 seek=3000000000 conv=notrunc status=none
    mkdir -m 1777 sticky; : >"$(printf '\377\n\001 *')"
    cp /bin/true /bin/pinger; setcap cap_net_raw,cap_chown+ep /bin/pinger
    rm /etc/issue; mkdir /etc/issue; echo in >/etc/issue/in
    rm -r /etc/default; echo file >/etc/default
    cp -p /etc/same /etc/kept; printf W | dd of=/etc/same bs=1 conv=notrunc status=none
    touch -r /etc/kept /etc/same
"#;

/// Everything about everything there, in words of other programs than AppPot's.
const DESCRIBE: &str = r#"
    cd /; find bin etc srv -printf '%p %y %m %U %G %T@ %l ' \( -type d -o -printf '%n ' \) \
        \( -type f -printf '%s' , -printf '\n' \) | sort
    getcap -r /bin; stat -c '%t %T' /srv/null /srv/sda; find etc srv -samefile srv/a | sort
    find bin etc srv -type f ! -name sparse -exec sha256sum {} + | sort
"#;

/// The way to the job directory, which the boot makes.
const WAY: &str = "--exclude /var/tmp";

#[test]
fn hosts_and_guests_agree_on_everything_that_a_file_can_be() {
    let Some(job) = Job::new() else { return };
    let image = workshop(&job);
    let base = image.to_str().unwrap();
    let keep = &["--root", "--overlay", "kept.cow"];
    let changes = |image: &str, options: &[&str], to: &str| {
        let words = ["snap", "changes", "--base", "apppot.base", image, "-o", to];
        let way = WAY.split(' ').collect::<Vec<_>>();
        let words = [&words[..], options, &way].concat();
        job.apppot(&words).go().exits(0);
    };
    job.apppot(&["snap", "base", base]).go().exits(0);
    let modify = job.sh(&format!("set -e; {HARD}")).image(&image).with(keep);
    modify.go().exits(0);
    // The same state, read by the guest, on the host through the overlay, in another guest into
    // which it was merged, and twice, and on the host in an image of its own.
    let record = |name: &str| format!("apppot-snap changes -b apppot.base {WAY} {name} >/dev/null");
    let describe = format!("{}; {DESCRIBE}", record("guest"));
    let modified = job.sh(&describe).image(&image).with(keep).go().exits(0);
    changes(base, &["--overlay", "kept.cow"], "host");
    let (once, twice) = (record("merged"), record("twice"));
    let script = format!("{once}; apppot-snap merge host >/dev/null; {twice}; {DESCRIBE}");
    let merged = job.sh(&script).image(&image);
    let merged = merged.with(&["--root", "--changes", "host"]).go().exits(0);
    let words = [
        "snap",
        "commit",
        "--base",
        base,
        "--changes",
        "host",
        "-o",
        "new.img",
    ];
    job.apppot(&words).go().exits(0);
    changes("new.img", &[], "raw");
    for part in [
        "cap_chown,cap_net_raw=ep",
        "etc/linked\nsrv/a\nsrv/b\n",
        "4294967296",
    ] {
        assert!(
            modified.text().contains(part),
            "{part}: {}",
            modified.text()
        );
    }
    assert_eq!(merged.text(), modified.text());
    let archive = |name: &str| fs::read(job.path().join(name)).unwrap();
    let shown = |name: &str| job.apppot(&["snap", "inspect", name]).go().exits(0).text();
    for name in ["guest", "merged", "twice", "raw"] {
        assert_eq!(shown(name), shown("host"));
        assert!(archive(name) == archive("host"), "{name}");
    }
    let size = job.path().join("host").metadata().unwrap().len();
    assert!(size < 1 << 20, "{size}");
}

#[test]
fn who_and_where_the_job_is_survives_a_merge() {
    let Some(job) = Job::new() else { return };
    let Some(image) = debian_image() else { return };
    let base = image.to_str().unwrap();
    let script = "echo added:x:4242:4242::/:/bin/sh >>/etc/passwd; echo elsewhere >/etc/hostname; \
        echo 0123 >/etc/machine-id; mkdir -p /usr/lib/apppot; echo mine >/usr/sbin/apppot-init";
    let keep = &["--root", "--overlay", "kept.cow"];
    job.sh(script).image(image).with(keep).go().exits(0);
    let words = [
        "snap",
        "changes",
        "--base",
        base,
        base,
        "--overlay",
        "kept.cow",
    ];
    job.apppot(&words).go().exits(0);
    let who =
        "id -un; id -u; id -gn; hostname; cat /etc/machine-id; ls -ld . /usr/sbin/apppot-init; \
        cat /proc/1/comm; true";
    let run = || {
        job.sh(&format!("{{ {who}; }} 2>&1; grep -c added /etc/passwd"))
            .image(image)
    };
    let (without, with) = (
        run().go(),
        run().with(&["--changes", "apppot.changes"]).go(),
    );
    let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (without, with) = (lines(without.text()), lines(with.text()));
    let (last, same) = with.split_last().unwrap();
    assert_eq!(last, "1");
    assert_eq!(same, &without[..without.len() - 1]);
}

#[test]
fn what_a_killed_machine_left_is_read_with_its_journal() {
    let Some(job) = Job::new() else { return };
    let image = ext4(&job, "image");
    let base = image.to_str().unwrap();
    let script = "echo killed >/etc/name; rm /bin/env; apppot-snap sync; echo ready; sleep 60";
    let keep = &["--root", "--overlay", "kept.cow"];
    let running = job.sh(script).image(&image).with(keep).start();
    running.until_it_prints("ready");
    let words = [
        "snap",
        "diff",
        "--base",
        base,
        base,
        "--overlay",
        "kept.cow",
    ];
    job.apppot(&words).go().exits(125).says(&["in use"]);
    running.signal(libc::SIGKILL);
    running.finish();
    let done = loop {
        // The machine ends a moment after its launcher.
        let done = job.apppot(&words).go();
        if done.code() == Some(0) {
            break done;
        }
        done.says(&["in use"]);
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    done.shows(&["* /etc/name (7 bytes)", "- /bin/env"]);
}

#[test]
fn images_that_are_no_partition_take_changes_too() {
    let Some(job) = Job::new() else { return };
    let image = scene(&job);
    // The same files with the same times.
    let root = job.directory_beside("root");
    let dump = format!("rdump / {}", root.display());
    tool("debugfs", &["-R", &dump, image.to_str().unwrap()]);
    let squashed = job.beside("squashed.img");
    let words = [
        root.to_str().unwrap(),
        squashed.to_str().unwrap(),
        "-quiet",
        "-no-progress",
    ];
    tool("mksquashfs", &words);
    for image in [&root, &squashed] {
        job.give(image);
        let options = ["--changes", "c", "--changes-any-base", "--root"];
        job.sh(SHOW)
            .image(image)
            .with(&options)
            .go()
            .exits(0)
            .prints(SHOWN);
    }
}
