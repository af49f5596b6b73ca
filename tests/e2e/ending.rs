//! Signals, and that nothing is left however a run ends.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{eventually, noise, processes, succeeds, Backend, Input, Job};

#[test]
fn signals_reach_the_command() {
    let Some(job) = Job::new() else { return };
    for (name, number) in [
        ("TERM", libc::SIGTERM),
        ("INT", libc::SIGINT),
        ("HUP", libc::SIGHUP),
        ("QUIT", libc::SIGQUIT),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("XCPU", libc::SIGXCPU),
    ] {
        let script = format!(
            "trap 'echo {name} >got; exit 5' {name}; echo ready; while :; do sleep 0.02; done"
        );
        // However slow the guest is, it is not the grace that ends the command.
        let running = job.sh(&script).with(&["--grace", "60s"]).start();
        running.until_it_prints("ready");
        running.signal(number);
        let done = running.finish();
        assert_eq!(done.code(), Some(5), "{name}: {}", done.stderr);
        assert_eq!(job.read("got"), format!("{name}\n"));
    }
}

#[test]
fn a_signal_ends_a_command_that_does_not_expect_it() {
    let Some(job) = Job::new() else { return };
    for &signal in job.cases(1, &[libc::SIGTERM, libc::SIGINT]) {
        let running = job.sh("echo ready; exec sleep 1000").limit(20).start();
        running.until_it_prints("ready");
        running.signal(signal);
        running.finish().exits(128 + signal);
    }
}

#[test]
fn a_signal_that_is_ignored_stays_so() {
    let Some(job) = Job::new() else { return };
    let script = "trap 'echo got >got' HUP; echo ready; read -r line; echo over";
    let run = job
        .sh(script)
        .ignoring(libc::SIGHUP)
        .input(Input::Open)
        .limit(20);
    let mut running = run.start();
    running.until_it_prints("ready");
    running.signal(libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    running.end_input();
    running.finish().exits(0).prints("ready\nover\n");
    assert!(!job.has("got"));
}

#[test]
fn usr1_does_not_start_the_end() {
    let Some(job) = Job::new() else { return };
    let script = "trap 'echo got' USR1; echo ready; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; echo over";
    let running = job.sh(script).with(&["--grace", "100ms"]).limit(20).start();
    running.until_it_prints("ready");
    running.signal(libc::SIGUSR1);
    running.finish().exits(0).shows(&["got\n", "over\n"]);
}

#[test]
fn what_is_written_after_a_signal_is_complete() {
    let Some(job) = Job::new() else { return };
    let script = "trap 'cat input input input input >output; exit 0' TERM; echo ready; while :; do sleep 0.02; done";
    let bytes = noise(4 << 20);
    job.put("input", &bytes);
    let running = job.sh(script).limit(30).start();
    running.until_it_prints("ready");
    running.signal(libc::SIGTERM);
    running.finish().exits(0);
    let output = std::fs::read(job.path().join("output")).unwrap();
    assert!(output == bytes.repeat(4), "{} bytes", output.len());
}

#[test]
fn a_command_that_ignores_signals_is_ended_after_the_grace() {
    let Some(job) = Job::new() else { return };
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let running = job.sh(script).with(&["--grace", "1s"]).limit(120).start();
    running.until_it_prints("ready");
    let asked = std::time::Instant::now();
    running.signal(libc::SIGTERM);
    running.finish().exits(137);
    let took = asked.elapsed();
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_signal_during_the_boot_ends_it_at_once() {
    let Some(job) = Job::new() else { return };
    let boot = boot_time(&job);
    for part in [4, 2] {
        let running = job.sh("echo ran; exec sleep 1000").limit(120).start();
        std::thread::sleep(boot / part);
        running.signal(libc::SIGTERM);
        let done = running.finish();
        // Before the launcher takes signals, the signal ends it as it ends every program.
        let by_signal = done.code() == Some(143) || done.signal() == Some(libc::SIGTERM);
        assert!(by_signal, "{:?} {}", done.code(), done.stderr);
        assert!(
            done.elapsed < 2 * boot + Duration::from_secs(2),
            "{:?}",
            done.elapsed
        );
    }
}

#[test]
fn a_signal_for_the_command_waits_for_it() {
    let Some(job) = Job::new() else { return };
    let boot = boot_time(&job);
    for signal in [libc::SIGUSR1, libc::SIGUSR2] {
        let run = job.sh("exec sleep 1000").input(Input::Open);
        let running = run.start();
        std::thread::sleep(boot / 2);
        running.signal(signal);
        running.finish().exits(128 + signal);
    }
}

/// From the start to the command.
fn boot_time(job: &Job) -> Duration {
    let running = job.sh("echo ready").start();
    let start = std::time::Instant::now();
    running.until_it_prints("ready");
    let took = start.elapsed();
    running.finish().exits(0);
    took
}

/// Places where a machine's files could be left.
fn places(job: &Job) -> Vec<PathBuf> {
    let fixed = ["/dev/shm", "/tmp", "/var/tmp", "/run/shm"].map(PathBuf::from);
    let own = ["home", "runtime"].map(|name| job.site.stage.join(name));
    fixed
        .into_iter()
        .chain(own)
        .filter(|path| path.is_dir())
        .collect()
}

/// Files of the user's that have something of ours in their names. What is there before a test has nothing to do with
/// it: other tests make such files meanwhile, and what ended a machine as a whole may have left some.
fn our_files(job: &Job) -> BTreeSet<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let uid = job.site.user.uid;
    let is_left = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let suspicious = ["apppot", "vm_file", ".uml", "uml", "linux"]
            .iter()
            .any(|part| name.contains(part));
        suspicious && path.symlink_metadata().is_ok_and(|file| file.uid() == uid)
    };
    let entries = |place: PathBuf| std::fs::read_dir(place).into_iter().flatten().flatten();
    let paths = places(job)
        .into_iter()
        .flat_map(entries)
        .map(|entry| entry.path());
    paths
        .filter(|path| is_left(path) && !path.starts_with(&job.site.stage))
        .collect()
}

/// Waits until there are no files of ours but those of `before`; panics with their names.
fn only_leaves(job: &Job, before: &BTreeSet<PathBuf>) {
    let mut left = Vec::new();
    let removed = succeeds(|| {
        left = our_files(job).difference(before).cloned().collect();
        left.is_empty()
    });
    assert!(removed, "files are left: {left:?}");
}

#[test]
fn a_launcher_that_is_killed_leaves_nothing() {
    let Some(job) = Job::new() else { return };
    const TIMES: u32 = 20;
    let before = our_files(&job);
    let boot = boot_time(&job);
    for moment in 0..TIMES {
        let running = job
            .sh("echo up; exec sleep 1000")
            .input(Input::Open)
            .limit(30)
            .start();
        // From the launcher's first steps to a command that runs.
        std::thread::sleep(boot * moment * 3 / (TIMES * 2));
        let below = processes::descendants(running.pid());
        running.signal(libc::SIGKILL);
        // Looks for orphans.
        let done = running.finish();
        assert_eq!(
            done.signal(),
            Some(libc::SIGKILL),
            "{:?} {}",
            done.code(),
            done.stderr
        );
        eventually("processes below the launcher end", || {
            !below.iter().any(|pid| {
                processes::executable(*pid).is_some_and(|exe| exe == job.site.hypervisor)
            })
        });
    }
    only_leaves(&job, &before);
}

#[test]
fn a_job_with_its_memory_on_a_disk_leaves_nothing_either() {
    let Some(job) = Job::on_uml("others keep memory in their own process") else {
        return;
    };
    let boot = boot_time(&job);
    let place = job.directory_beside("disk");
    for moment in 0..8 {
        let run = job
            .sh("echo up; exec sleep 1000")
            .env("TMPDIR", &place)
            .input(Input::Open);
        let run = run.mounts("mount -t tmpfs -o size=8M,mode=1777 tmpfs /dev/shm");
        let running = run.with(&["--memory", "200M"]).limit(60).start();
        std::thread::sleep(boot * moment / 6);
        running.signal(libc::SIGKILL);
        running.finish();
        eventually("the directory for memory is removed", || {
            std::fs::read_dir(&place).unwrap().next().is_none()
        });
    }
    let run = job
        .run(&["true"])
        .env("TMPDIR", &place)
        .with(&["--memory", "200M", "-v"]);
    let run = run.mounts("mount -t tmpfs -o size=8M,mode=1777 tmpfs /dev/shm");
    run.go().exits(0).says(&[place.to_str().unwrap()]);
    assert!(std::fs::read_dir(&place).unwrap().next().is_none());
}

#[test]
fn an_ordinary_end_leaves_nothing() {
    let Some(job) = Job::new() else { return };
    let before = our_files(&job);
    job.sh("touch file").go().exits(0);
    only_leaves(&job, &before);
    let names: Vec<_> = std::fs::read_dir(job.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["file"]);
}

/// As batch systems send them.
#[test]
fn signals_to_all_processes_of_a_job_are_for_the_command() {
    let Some(job) = Job::new() else { return };
    // A kernel that traces what it executes gives up when that gets a signal which is not blocked there.
    let gives_up = job.site.backend == Backend::Uml && !job.site.has_own_kernel();
    let script = "for s in TERM USR1 USR2; do trap \"echo $s >>got\" $s; done
        echo ready; while ! grep -q TERM got 2>/dev/null; do sleep 0.02; done; exit 0";
    let running = job.sh(script).with(&["--grace", "60s"]).start();
    running.until_it_prints("ready");
    let below = processes::descendants(running.pid());
    for (name, signal) in [
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("TERM", libc::SIGTERM),
    ] {
        let all = signal == libc::SIGTERM || !gives_up;
        for &pid in below.iter().filter(|_| all) {
            // SAFETY: processes of ours, which wait for what we do.
            unsafe { libc::kill(pid as i32, signal) };
        }
        running.signal(signal);
        eventually("it has arrived", || {
            job.has("got") && job.read("got").contains(name)
        });
    }
    running.finish().exits(0);
}
