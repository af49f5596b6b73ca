//! The command's environment.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::support::{Done, Job};

fn value(done: &Done, name: &str) -> Option<Vec<u8>> {
    let prefix = format!("{name}=");
    let mut found = done
        .stdout
        .split(|&byte| byte == 0)
        .filter_map(|line| line.strip_prefix(prefix.as_bytes()));
    let value = found.next().map(<[u8]>::to_vec);
    assert!(found.next().is_none(), "{name} twice");
    value
}

#[test]
fn is_clean_and_describes_the_job() {
    let Some(job) = Job::new() else { return };
    let done = job
        .run(&["env", "-0"])
        .env("SECRET", "x")
        .env("LD_PRELOAD_NOT", "x")
        .with(&["--id", "job-7"])
        .go()
        .exits(0);
    let get =
        |name: &str| value(&done, name).map(|value| String::from_utf8_lossy(&value).into_owned());
    for name in [
        "SECRET",
        "LD_PRELOAD_NOT",
        "APPPOT_KERNEL",
        "XDG_RUNTIME_DIR",
    ] {
        assert_eq!(get(name), None, "{name}");
    }
    assert!(get("PATH").unwrap().contains("/usr/bin"));
    assert_eq!(get("USER").as_deref(), Some(job.site.user.name.as_str()));
    assert_eq!(get("APPPOT_ID").as_deref(), Some("job-7"));
    assert_eq!(get("APPPOT_JOBDIR").as_deref(), job.path().to_str());
    for name in ["HOME", "SHELL", "LOGNAME", "TMPDIR"] {
        assert!(get(name).is_some_and(|value| !value.is_empty()), "{name}");
    }
}

#[test]
fn what_options_add() {
    let Some(job) = Job::new() else { return };
    job.put(
        "variables",
        "# a comment\nFROM_FILE=file value\n\nBOTH=file\nQUOTED='x'\nEQUALS=a=b\n",
    );
    let raw = [&b"RAW="[..], b"\xff\n 'x' \\ $HOME\t"].concat();
    let options = [
        "--env",
        "PLAIN=a b",
        "-e",
        "EMPTY=",
        "-e",
        "PASSED",
        "-e",
        "UNSET",
        "--env-file",
        "variables",
        "-e",
        "BOTH=option",
    ];
    let run = job
        .run(&["env", "-0"])
        .env("PASSED", "from the caller")
        .with(&options);
    let done = run
        .with(&[OsStr::new("--env"), OsStr::from_bytes(&raw)])
        .go()
        .exits(0);
    for (name, expected) in [
        ("PLAIN", Some(&b"a b"[..])),
        ("EMPTY", Some(b"")),
        ("PASSED", Some(b"from the caller")),
        ("UNSET", None),
        ("FROM_FILE", Some(b"file value")),
        ("QUOTED", Some(b"'x'")),
        ("EQUALS", Some(b"a=b")),
        ("BOTH", Some(b"option")),
        ("RAW", Some(&raw[4..])),
    ] {
        assert_eq!(value(&done, name).as_deref(), expected, "{name}");
    }
}

#[test]
fn secrets_are_not_on_the_guests_command_line() {
    let Some(job) = Job::new() else { return };
    let done = job
        .sh("cat /proc/cmdline; echo $TOKEN")
        .with(&["--env", "TOKEN=hush-hush"])
        .go()
        .exits(0);
    assert_eq!(
        done.text().matches("hush-hush").count(),
        1,
        "{}",
        done.text()
    );
    let done = job
        .run(&["true"])
        .with(&["--env", "TOKEN=hush-hush", "-v", "-v"])
        .go()
        .exits(0);
    assert!(!done.stderr.contains("hush-hush"), "{}", done.stderr);
}

#[test]
fn a_large_environment_arrives() {
    let Some(job) = Job::new() else { return };
    let mut run = job.sh("echo ${#A} ${#B} ${#C} ${#D}");
    for name in ["A", "B", "C", "D"] {
        run = run.with(&[
            "--env".to_owned(),
            format!("{name}={}", "v".repeat(100_000)),
        ]);
    }
    run.go().exits(0).prints("100000 100000 100000 100000\n");
}

#[test]
fn mistakes_are_named() {
    let Some(job) = Job::new() else { return };
    job.put("bad", "A=1\n=2\n");
    for (options, what) in [
        (["--env-file", "missing"], "'missing'"),
        (["--env-file", "bad"], "bad:2"),
        (["--env", "=x"], "--env =x"),
    ] {
        let done = job.run(&["true"]).with(&options).go();
        assert_eq!(done.code(), Some(125), "{options:?}: {}", done.stderr);
        done.says(&[what]);
    }
}
