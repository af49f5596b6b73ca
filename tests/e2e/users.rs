//! Who runs the command.

use crate::support::tools::copy_sparse;
use crate::support::{debian_image, Job};

#[test]
fn the_caller_in_the_hosts_root() {
    let Some(job) = Job::new() else { return };
    let user = &job.site.user;
    let expected = format!("{} {} {}\n", user.uid, user.gid, user.name);
    job.sh("echo $(id -u) $(id -g) $(whoami)")
        .go()
        .exits(0)
        .prints(&expected);
    let groups = |text: &str| {
        let mut groups: Vec<u32> = text
            .split_whitespace()
            .map(|gid| gid.parse().unwrap())
            .collect();
        groups.sort_unstable();
        groups
    };
    let done = job.run(&["id", "-G"]).go().exits(0);
    let mut own = user.groups.clone();
    own.sort_unstable();
    assert_eq!(groups(&done.text()), own);
}

#[test]
fn the_caller_as_the_images_regular_user() {
    let Some(job) = Job::new() else { return };
    let script =
        "echo $(id -u) $(id -g) $(whoami) $HOME; echo x >~/file && stat -c %U ~ ~/file ~/.bashrc";
    let Some(run) = job.sh(script).debian() else {
        return;
    };
    let (uid, gid) = (job.site.user.uid, job.site.user.gid);
    run.go()
        .exits(0)
        .prints(&format!("{uid} {gid} user /home/user\nuser\nuser\nuser\n"));
}

#[test]
fn sudo_works_without_a_password() {
    let Some(job) = Job::new() else { return };
    let script = "sudo -n id -u && sudo -n sh -c 'echo changed >/etc/motd; cat /etc/motd'";
    let Some(run) = job.sh(script).debian() else {
        return;
    };
    run.go().exits(0).quietly().prints("0\nchanged\n");
}

#[test]
fn the_rule_for_sudo_does_not_stay() {
    let Some(job) = Job::new() else { return };
    let Some(image) = debian_image() else { return };
    let copy = job.beside("debian.img");
    copy_sparse(image, &copy);
    job.give(&copy);
    for options in [&["--overlay", "kept.cow"][..], &["--write"]] {
        let rule = "/etc/sudoers.d/apppot";
        let run = |script: &str| job.sh(script).image(&copy).with(options).go();
        run(&format!("sudo -n test -s {rule}")).exits(0);
        // Seen without the agent's doing: root has no rule.
        let looks = format!("test ! -e {rule} && ls -A /etc/sudoers.d");
        let look = job.sh(&looks).image(&copy).with(options).with(&["--root"]);
        look.go().exits(0).prints("README\n");
        // A machine that is killed leaves at most an empty file, and the next one takes it away.
        let killed = job.sh("sudo -n sync; echo ready; sleep 1000");
        let killed = killed.image(&copy).with(options).start();
        killed.until_it_prints("ready");
        killed.signal(libc::SIGKILL);
        killed.finish();
        let empty = job.sh(&format!("test ! -s {rule}")).image(&copy);
        empty.with(options).with(&["--root"]).go().exits(0);
        run("sudo -n true").exits(0);
        let look = job.sh(&looks).image(&copy).with(options).with(&["--root"]);
        look.go().exits(0).prints("README\n");
    }
}

#[test]
fn sudo_has_nothing_to_say_about_the_hosts_name() {
    let Some(job) = Job::new() else { return };
    let script = "sudo -n true && test \"$(getent hosts $(hostname) | wc -l)\" = 1";
    for options in [&[][..], &["--overlay", "kept.cow"]] {
        let Some(run) = job.sh(script).debian() else {
            return;
        };
        run.with(options).go().exits(0).quietly();
    }
}

#[test]
fn root() {
    let Some(job) = Job::new() else { return };
    let script = "echo $(id -u) $(whoami) $HOME; touch /etc/new && ls /etc/new";
    job.sh(script)
        .with(&["--root"])
        .go()
        .exits(0)
        .prints("0 root /root\n/etc/new\n");
    let Some(run) = job.sh(script).debian() else {
        return;
    };
    run.with(&["--root"])
        .go()
        .exits(0)
        .prints("0 root /root\n/etc/new\n");
}

#[test]
fn an_account_by_name() {
    let Some(job) = Job::new() else { return };
    let script = "echo $(id -u) $(whoami)";
    for name in ["user", "games"] {
        let Some(run) = job.sh(script).debian() else {
            return;
        };
        let expected = format!("{} {name}\n", job.site.user.uid);
        run.with(&["--user", name]).go().exits(0).prints(&expected);
    }
    let run = job
        .sh("touch ran")
        .debian()
        .unwrap()
        .with(&["--user", "nobody-knows"]);
    run.go().exits(125).says(&["nobody-knows"]);
    assert!(!job.has("ran"));
    job.run(&["true"])
        .with(&["--root", "--user", "user"])
        .go()
        .exits(2)
        .says(&["cannot be used with"]);
}
