//! The exit status.

use std::time::Duration;

use crate::support::{Backend, Input, Job, PANIC, PANIC_OPTIONS};

#[test]
fn the_commands_own() {
    let Some(job) = Job::new() else { return };
    let cases = [
        ("exit 125", 125),
        ("kill -9 $$", 137),
        ("exit 0", 0),
        ("exit 37", 37),
        ("exit 255", 255),
        ("kill -15 $$", 143),
        ("kill -SEGV $$", 139),
        ("kill -USR1 $$", 138),
        ("kill -64 $$", 192),
    ];
    for (script, status) in job.cases(2, &cases) {
        let done = job.sh(script).go();
        assert_eq!(done.code(), Some(*status), "{script}: {}", done.stderr);
        done.quietly();
    }
}

#[test]
fn a_command_that_does_not_exist() {
    let Some(job) = Job::new() else { return };
    for command in job.cases(1, &["no-such-command", "./missing", "/missing/too", ""]) {
        let done = job.run(&[command]).go();
        assert_eq!(done.code(), Some(127), "{command:?}: {}", done.stderr);
        done.says(&["command not found"]);
    }
}

#[test]
fn a_command_that_cannot_be_executed() {
    let Some(job) = Job::new() else { return };
    job.put("plain", "#!/bin/sh\n");
    job.script("interpreter", "#!/no/such/interpreter\n");
    job.script("garbage", "\0\x01\x02garbage");
    let cases = [
        ("./plain", "permission denied"),
        ("./garbage", "no program"),
        ("./interpreter", "interpreter"),
        ("/etc", "is a directory"),
    ];
    for (command, why) in job.cases(1, &cases) {
        let done = job.run(&[command]).go();
        assert_eq!(done.code(), Some(126), "{command}: {}", done.stderr);
        done.says(&[command, why]);
    }
}

#[test]
fn a_script_without_an_interpreters_line_runs() {
    let Some(job) = Job::new() else { return };
    job.script("script", "echo \"as a shell script: $1\"\n");
    job.run(&["./script", "a b"])
        .go()
        .exits(0)
        .prints("as a shell script: a b\n");
}

#[test]
fn the_time_limit() {
    let Some(job) = Job::new() else { return };
    let done = job
        .run(&["sleep", "1000"])
        .with(&["--time-limit", "3s"])
        .limit(120)
        .go();
    let done = done.exits(124).says(&["time limit"]);
    // Guests with a hardware clock know the host's time to a second.
    let least = match job.site.backend {
        Backend::Uml => 3,
        _ => 2,
    };
    let least = Duration::from_secs(least);
    assert!(done.elapsed >= least, "{:?}", done.elapsed);
}

#[test]
fn the_time_limit_asks_first() {
    let Some(job) = Job::new() else { return };
    // The boot counts.
    let (limit, most) = match job.site.backend {
        Backend::Uml => ("8s", 24),
        Backend::Qemu | Backend::Libvirt => ("15s", 24),
        // Output and results travel every few seconds.
        Backend::Ec2 => ("100s", 130),
    };
    let script = "trap 'echo saved >file; exit 0' TERM; while :; do sleep 0.1; done";
    job.sh(script)
        .with(&["--time-limit", limit])
        .limit(60)
        .go()
        .exits(124);
    assert_eq!(job.read("file"), "saved\n");
    let stubborn = "trap '' TERM; while :; do sleep 0.1; done";
    let options = ["--time-limit", limit, "--grace", "500ms"];
    let done = job.sh(stubborn).with(&options).limit(60).go().exits(124);
    assert!(
        done.elapsed < Duration::from_secs(most),
        "{:?}",
        done.elapsed
    );
}

#[test]
fn a_time_limit_that_is_not_reached() {
    let Some(job) = Job::new() else { return };
    job.run(&["true"])
        .with(&["--time-limit", "1h30m"])
        .go()
        .exits(0)
        .quietly();
}

#[test]
fn a_time_limit_shorter_than_the_boot() {
    let Some(job) = Job::new() else { return };
    let done = job
        .sh("touch ran")
        .with(&["--time-limit", "1ms"])
        .limit(20)
        .go();
    done.exits(124)
        .says(&["time limit", "before the command was started", "hint: "]);
    assert!(!job.has("ran"));
}

#[test]
fn a_panic_of_the_guest_shows_the_console() {
    let Some(job) = Job::new() else { return };
    let done = job.sh(PANIC).with(&PANIC_OPTIONS).limit(30).go();
    done.exits(125).says(&[
        "without reporting",
        "console's last lines",
        "Kernel panic",
        "panicked",
    ]);
}

/// reboot(2), by number: a program of that name would ask an init that is not there.
fn reboot(how: &str) -> String {
    format!("echo once >>ran; perl -e 'syscall(169, 0xfee1dead, 672274793, {how})'; sleep 100")
}

#[test]
fn a_guest_that_powers_off_by_itself_is_a_failure() {
    let Some(job) = Job::new() else { return };
    let run = job.sh(&reboot("0x4321fedc")).with(&["--root"]).limit(30);
    run.go().exits(125).says(&["powered off without a report"]);
    assert_eq!(job.read("ran"), "once\n");
}

#[test]
fn a_reboot_does_not_run_the_job_again() {
    let Some(job) = Job::new() else { return };
    job.sh(&reboot("0x1234567"))
        .with(&["--root"])
        .limit(30)
        .go()
        .exits(125);
    assert_eq!(job.read("ran"), "once\n");
}

#[test]
fn a_machine_that_is_killed_from_outside() {
    let Some(job) = Job::new() else { return };
    let run = job.sh("echo ready; sleep 1000").limit(30);
    let run = match job.site.backend {
        // It would wait for the input's end before there is a machine.
        Backend::Ec2 => run,
        _ => run.input(Input::Open),
    };
    let running = run.start();
    running.until_it_prints("ready");
    let machine = running.machine(&job.site.hypervisor);
    // SAFETY: a process below our child.
    unsafe { libc::kill(machine as i32, libc::SIGKILL) };
    let says = match job.site.backend {
        // It does not say how.
        Backend::Libvirt => "the hypervisor failed",
        // Its cloud says that it was ended.
        Backend::Ec2 => "terminated by someone else",
        _ => "signal 9",
    };
    running.finish().exits(125).says(&[says]);
}
