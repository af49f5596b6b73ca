//! `--boot system`: the image's own init is PID 1.

use crate::support::tools::small_root;
use crate::support::{Input, Job};

const SYSTEM: [&str; 2] = ["--boot", "system"];

#[test]
fn systemd_boots_and_the_job_runs() {
    let Some(job) = Job::new() else { return };
    let script = "cat /proc/1/comm; id -u; pwd; cat; echo err >&2; echo made >file; exit 37";
    let Some(run) = job.sh(script).debian() else {
        return;
    };
    let done = run
        .with(&SYSTEM)
        .bytes("from stdin\n")
        .limit(120)
        .go()
        .exits(37);
    let (uid, here) = (job.site.user.uid, job.path().display());
    let done = done.prints(&format!("systemd\n{uid}\n{here}\nfrom stdin\n"));
    assert_eq!(done.stderr, "err\n");
    assert_eq!(job.read("file"), "made\n");
}

#[test]
fn a_signal_reaches_the_job() {
    let Some(job) = Job::new() else { return };
    let script = "trap 'echo got >file; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let Some(run) = job.sh(script).debian() else {
        return;
    };
    let running = run.with(&SYSTEM).limit(120).start();
    running.until_it_prints("ready");
    running.signal(libc::SIGTERM);
    running.finish().exits(5);
    assert_eq!(job.read("file"), "got\n");
}

#[test]
fn a_launcher_that_is_killed_leaves_nothing() {
    let Some(job) = Job::new() else { return };
    let Some(run) = job.sh("echo ready; sleep 1000").debian() else {
        return;
    };
    let running = run.with(&SYSTEM).input(Input::Open).limit(120).start();
    running.until_it_prints("ready");
    running.signal(libc::SIGKILL);
    assert_eq!(running.finish().signal(), Some(libc::SIGKILL));
}

#[test]
fn an_image_without_an_init_says_so() {
    let Some(job) = Job::new() else { return };
    let root = small_root(&job, "root");
    let done = job
        .sh("touch ran")
        .image(&root)
        .with(&SYSTEM)
        .limit(120)
        .go();
    done.exits(125).says(&["init"]);
    let done = job.sh("touch ran").with(&SYSTEM).go();
    done.exits(125).says(&["--boot system", "hint: "]);
    assert!(!job.has("ran"));
}

#[test]
fn what_goes_on_writing_is_not_waited_for() {
    let Some(job) = Job::new() else { return };
    // A session of its own: what ends the job does not end it.
    let script = "setsid yes noise & sleep 0.3; echo last >&2; exit 3";
    let Some(run) = job.sh(script).debian() else {
        return;
    };
    let done = run.with(&SYSTEM).limit(120).go().exits(3);
    assert_eq!(done.stderr, "last\n");
    assert!(done.text().starts_with("noise\n"));
}
