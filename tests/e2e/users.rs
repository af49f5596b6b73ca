//! Who runs the command.

use crate::support::Job;

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
