//! Arguments arrive as they were given.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::support::Job;

/// Runs a command that prints its arguments, and returns them.
fn echoed(job: &Job, args: &[&OsStr]) -> Vec<OsString> {
    let words = ["sh", "-c", r#"for a; do printf '%s\0' "$a"; done"#, "sh"].map(OsStr::new);
    let done = job
        .run(&[&words[..], args].concat())
        .go()
        .exits(0)
        .quietly();
    let mut parts: Vec<&[u8]> = done.stdout.split(|&byte| byte == 0).collect();
    assert_eq!(parts.pop(), Some(&b""[..]));
    parts
        .iter()
        .map(|bytes| OsString::from_vec(bytes.to_vec()))
        .collect()
}

#[test]
fn every_byte_of_every_argument_arrives() {
    let Some(job) = Job::new() else { return };
    let mut args = [
        "a b",
        "*",
        "",
        "'",
        "\"",
        "'a b'",
        "new\nline",
        "\n",
        "x;y",
        "$HOME",
        "${HOME}",
        "--",
        "-",
        "-x",
        "--help",
        "`id`",
        "$(id)",
        "\\",
        "\\n",
        "%",
        "%41",
        "%zz",
        "a=b",
        "=",
        "apppot.uid=0",
        "apppot.",
        "TERM=x",
        "root=/dev/x",
        "\t",
        " ",
        "  lead",
        "trail  ",
        "é",
        "\u{1f41a}",
        "~",
        "#",
        "!",
        "&&",
        "|",
        ">",
        "<",
        "?",
        "[a]",
        "{a,b}",
    ]
    .map(OsStr::new)
    .to_vec();
    let every: Vec<u8> = (1..=255).collect();
    args.extend(
        [
            &every[..],
            b"\xff\xfe",
            b"\x80",
            b"\x7f\x1b[31m",
            b"caf\xe9",
        ]
        .map(OsStr::from_bytes),
    );
    assert_eq!(echoed(&job, &args), args);
}

#[test]
fn a_command_looks_as_if_it_were_called_directly() {
    let Some(job) = Job::new() else { return };
    job.apppot(&["run", "printf", "%s|", "a", "-v", "--root"])
        .go()
        .exits(0)
        .prints("a|-v|--root|");
    job.apppot(&["run", "--", "printf", "%s|", "--", "b"])
        .go()
        .exits(0)
        .prints("--|b|");
}

#[test]
fn a_hundred_kilobytes_of_arguments_arrive() {
    let Some(job) = Job::new() else { return };
    let long = "x y'".repeat(25_000);
    let short: Vec<String> = (0..5000).map(|number| format!("{number:016}+")).collect();
    let mut args = vec![OsStr::new(&long)];
    args.extend(short.iter().map(OsStr::new));
    assert!(
        echoed(&job, &args) == args,
        "other arguments than the {} given",
        args.len()
    );
}

#[test]
fn a_mebibyte_of_arguments_arrives() {
    let Some(job) = Job::new() else { return };
    let long: Vec<String> = (0u8..10)
        .map(|number| char::from(b'0' + number).to_string().repeat(105_000))
        .collect();
    let args: Vec<&OsStr> = long.iter().map(OsStr::new).collect();
    assert!(
        echoed(&job, &args) == args,
        "other arguments than those given"
    );
}

/// Many arguments travel over the link, which credit and signals use after them.
#[test]
fn what_comes_after_many_arguments_arrives_too() {
    let Some(job) = Job::new() else { return };
    let long = "x".repeat(20_000);
    let output = job.run(&["sh", "-c", "head -c 5000000 /dev/zero", "sh", &long]);
    assert_eq!(output.go().exits(0).stdout.len(), 5_000_000);
    let input = job.run(&["sh", "-c", "wc -c", "sh", &long]);
    input
        .bytes(vec![b'x'; 5_000_000])
        .go()
        .exits(0)
        .prints("5000000\n");
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let running = job.run(&["sh", "-c", script, "sh", &long]).start();
    running.until_it_prints("ready");
    running.signal(libc::SIGTERM);
    running.finish().exits(5);
}
