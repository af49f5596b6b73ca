//! Standard input, output and error.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::support::processes::status_field;
use crate::support::{eventually, noise, Input, Job};

const MIB: usize = 1 << 20;

/// Both ends of a pipe: to read, to write.
fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (read.into(), write)
}

#[test]
fn streams_are_byte_exact_and_apart() {
    let Some(job) = Job::new() else { return };
    let bytes = noise(64 * MIB);
    let done = job
        .sh("cat; echo apart >&2")
        .bytes(bytes.clone())
        .limit(180)
        .go()
        .exits(0);
    assert_eq!(done.stderr, "apart\n");
    assert_eq!(done.stdout.len(), bytes.len());
    assert!(done.stdout == bytes, "other bytes than those given");
}

#[test]
fn a_large_file_as_input_is_read_to_its_end() {
    let Some(job) = Job::new() else { return };
    let path = job.put("sparse", "");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let done = job
        .run(&["wc", "-c"])
        .input(Input::File(File::open(path).unwrap()))
        .limit(120)
        .go();
    done.exits(0).prints("1073741824\n");
}

#[test]
fn input_that_is_none_is_empty() {
    let Some(job) = Job::new() else { return };
    let inputs = [
        Input::Null,
        Input::Closed,
        Input::Bytes(vec![]),
        Input::File(File::open("/dev/null").unwrap()),
    ];
    for input in inputs {
        let shown = format!("{input:?}");
        let done = job.sh("cat; echo $?").input(input).go().exits(0);
        assert_eq!(done.text(), "0\n", "{shown}");
    }
}

#[test]
fn a_command_that_ends_does_not_wait_for_input() {
    let Some(job) = Job::new() else { return };
    job.run(&["true"])
        .input(Input::Open)
        .limit(20)
        .go()
        .exits(0);
    job.run(&["true"])
        .bytes(noise(16 * MIB))
        .limit(20)
        .go()
        .exits(0);
    let done = job
        .run(&["head", "-c", "5"])
        .bytes("hello, world")
        .limit(20)
        .go();
    done.exits(0).prints("hello");
}

#[test]
fn input_arrives_while_it_comes() {
    let Some(job) = Job::new() else { return };
    let mut running = job
        .sh("while read -r line; do echo \"<$line>\"; done; echo end")
        .input(Input::Open)
        .start();
    for word in ["one", "two", "three"] {
        running.type_in(&format!("{word}\n"));
        running.until_it_prints(&format!("<{word}>"));
    }
    running.end_input();
    running
        .finish()
        .exits(0)
        .prints("<one>\n<two>\n<three>\nend\n");
}

#[test]
fn a_reader_that_goes_away_is_felt_by_the_command() {
    let Some(job) = Job::new() else { return };
    let (mut read, write) = pipe();
    let running = job
        .sh("while :; do echo yes; done")
        .output(write)
        .limit(30)
        .start();
    let mut some = [0; 10];
    read.read_exact(&mut some).unwrap();
    drop(read);
    let done = running.finish().exits(128 + libc::SIGPIPE).quietly();
    assert_eq!(&some, b"yes\nyes\nye");
    assert!(done.elapsed < Duration::from_secs(20));
}

#[test]
fn a_command_that_outlives_its_reader_keeps_its_status() {
    let Some(job) = Job::new() else { return };
    let (read, write) = pipe();
    drop(read);
    let done = job
        .sh("trap '' PIPE; echo lost; echo kept >&2; exit 7")
        .output(write)
        .go();
    done.exits(7).says(&["kept"]);
}

#[test]
fn a_slow_reader_gets_everything_and_costs_no_memory() {
    let Some(job) = Job::new() else { return };
    let (mut read, write) = pipe();
    let running = job
        .sh("head -c 67108864 /dev/zero")
        .output(write)
        .limit(120)
        .start();
    let mut buffer = vec![1; 64 << 10];
    // While nobody reads, the machine must wait rather than the launcher's memory grow.
    let mut total = read.read(&mut buffer).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let peak = status_field(running.pid(), "VmHWM").unwrap();
    let kib: u64 = peak.split(' ').next().unwrap().parse().unwrap();
    assert!(kib < 64 << 10, "the launcher takes {peak}");
    while let Ok(len @ 1..) = read.read(&mut buffer) {
        assert!(buffer[..len].iter().all(|&byte| byte == 0));
        total += len;
    }
    running.finish().exits(0);
    assert_eq!(total, 64 * MIB);
}

#[test]
fn both_outputs_at_once() {
    let Some(job) = Job::new() else { return };
    let script = "head -c 16777216 /dev/zero | tr '\\0' e >&2 & head -c 16777216 /dev/zero | tr '\\0' o; wait";
    let done = job.sh(script).limit(120).go().exits(0);
    assert_eq!((done.stdout.len(), done.stderr.len()), (16 * MIB, 16 * MIB));
    assert!(done.stdout.iter().all(|&byte| byte == b'o'), "mixed output");
    assert!(
        done.stderr.bytes().all(|byte| byte == b'e'),
        "mixed error output"
    );
}

#[test]
fn what_a_command_leaves_running_does_not_keep_the_machine() {
    let Some(job) = Job::new() else { return };
    for script in [
        "sleep 1000 & echo started",
        "setsid sleep 1000 >/dev/null 2>&1 & echo started",
        "(trap '' TERM HUP; sleep 1000; sleep 1000) & echo started",
    ] {
        // What is left running would keep it for 1000 seconds.
        job.sh(script).limit(120).go().exits(0).prints("started\n");
    }
}

#[test]
fn a_reader_that_never_reads_does_not_hold_the_end() {
    let Some(job) = Job::new() else { return };
    let (_read, write) = pipe();
    let run = job.sh("while :; do echo yes; done").output(write);
    let done = run
        .with(&["--time-limit", "3s", "--grace", "1s"])
        .limit(60)
        .go();
    assert_eq!(done.code(), Some(124), "{}", done.stderr);
    let (_read, write) = pipe();
    let run = job.sh("while :; do echo yes; done").output(write).limit(30);
    let running = run.with(&["--grace", "1s"]).start();
    let machine = || running.find_machine(&job.site.hypervisor).is_some();
    eventually("a machine", machine);
    std::thread::sleep(Duration::from_secs(2));
    running.signal(libc::SIGTERM);
    let status = running.finish().code();
    assert!([Some(143), Some(137)].contains(&status), "{status:?}");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let Some(job) = Job::new() else { return };
    for (status, ends) in [(0, 125), (4, 4)] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let script = format!("echo lost; exit {status}");
        let done = job.sh(&script).output(full).go().exits(ends);
        done.says(&["output could not be written", "No space left"]);
    }
}

#[test]
fn input_that_cannot_be_read_is_a_failure() {
    let Some(job) = Job::new() else { return };
    for (status, ends) in [(0, 125), (4, 4)] {
        let directory = File::open(job.path()).unwrap();
        let script = format!("cat; exit {status}");
        let done = job.sh(&script).input(Input::File(directory)).go();
        let done = done.exits(ends);
        done.says(&["standard input could not be read", "Is a directory"]);
    }
}

#[test]
fn can_be_opened_by_name() {
    let Some(job) = Job::new() else { return };
    let script = "cat /dev/stdin; echo out >/dev/stdout; echo err | tee /dev/stderr >/dev/null";
    let done = job.sh(script).bytes("in\n").go().exits(0);
    assert_eq!(
        (done.text().as_str(), done.stderr.as_str()),
        ("in\nout\n", "err\n")
    );
}

#[test]
fn a_loop_keeps_its_standard_input() {
    let Some(job) = Job::new() else { return };
    let run = || job.sh("read line; echo got $line").bytes("mine\n");
    run().go().exits(0).prints("got mine\n");
    for option in ["-n", "--no-stdin"] {
        run().with(&[option]).go().exits(0).prints("got\n");
    }
    let both = run().with(&["-n", "--tty"]).go().exits(2);
    both.says(&["cannot be used with"]);
}

#[test]
fn a_shell_without_anything_to_read_says_so() {
    let Some(job) = Job::new() else { return };
    let warning = "the shell ends at once";
    for args in ["run", "shell"] {
        job.apppot(&[args])
            .go()
            .exits(0)
            .says(&["warning: ", warning]);
        job.apppot(&[args, "-q"]).go().exits(0).quietly();
        let done = job
            .apppot(&[args])
            .bytes("echo read; exit 3\n")
            .go()
            .exits(3);
        done.prints("read\n");
    }
    job.sh("true").go().exits(0).quietly();
}
