//! The courier as a process, between an agent that is played here and an HTTP store that makes trouble.
#![allow(clippy::unwrap_used)]

mod process;
mod server;

use std::time::{Duration, Instant, SystemTime};

use apppot_contract::link::Frame;
use apppot_contract::store::segment_size;
use apppot_contract::{
    document, Boot, Channel, Contract, Files, Outcome, Pointer, Report, Stdin, Url,
};

use process::{Courier, Got};
use server::{Fate, Server};

/// A contract whose job has all kinds of objects; no files yet.
fn contract(server: &Server) -> Contract {
    let mut contract = Contract {
        boot: Boot::System,
        deadline: Some(SystemTime::now() + Duration::from_secs(300)),
        grace: Duration::from_millis(300),
        files: Some(Files {
            channel: Channel::Link,
            target: "/job".into(),
            ring: None,
            results: Vec::new(),
        }),
        ..Contract::default()
    };
    contract.store.results = server.urls("results", 5);
    contract.store.stdout = server.urls("stdout", 3);
    contract.store.stderr = server.urls("stderr", 3);
    contract.store.report = Some(server.url("report"));
    contract.store.control = Some(server.url("control"));
    contract
}

/// Bytes without a pattern.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(&mut next).take(length).collect()
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// Stores a stream, and gives exactly its segments.
fn store(server: &Server, name: &str, bytes: &[u8]) -> Vec<Url> {
    let (mut rest, mut count) = (bytes, 0);
    loop {
        let size = usize::try_from(segment_size(count)).unwrap();
        let (segment, more) = rest.split_at(rest.len().min(size));
        server.set(&format!("{name}.{count}"), segment);
        (rest, count) = (more, count + 1);
        if rest.is_empty() {
            return server.urls(name, count);
        }
    }
}

/// The whole of a stream that was stored, its segments examined.
fn stored(server: &Server, name: &str) -> Vec<u8> {
    let mut all = Vec::new();
    for index in 0.. {
        let Some(segment) = server.object(&format!("{name}.{index}")) else {
            return all;
        };
        let next = server.object(&format!("{name}.{}", index + 1));
        assert!(next.is_none() || segment.len() as u64 == segment_size(index));
        all.extend(segment);
    }
    unreachable!()
}

fn report(server: &Server) -> Report {
    Report::decode(&server.object("report").expect("a report")).unwrap()
}

fn failed(server: &Server) -> (String, String) {
    match report(server).outcome {
        Outcome::Failed { step, reason } => (step, reason),
        other => panic!("{other:?}"),
    }
}

/// A whole job, at a store that does this to it.
fn goes_through(server: &Server) {
    let (files, input, output) = (noise(2_500_000), noise(1_500_000), noise(1_200_000));
    let results = noise(3_000_000);
    let mut contract = contract(server);
    contract.store.files = store(server, "files", &compressed(&files));
    contract.store.stdin = store(server, "stdin", &input);
    contract.stdin = Stdin::Link;
    assert_eq!(contract.check(), Ok(()));
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    assert!(courier.files(files.len()) == files);
    assert!(courier.input() == input);
    courier.stream(&output, |bytes| Frame::Stdout(bytes));
    courier.stream(b"err", |bytes| Frame::Stderr(bytes));
    courier.send(&Frame::Log(b"a warning\x1b[1m"));
    courier.send(&Frame::Files(b""));
    courier.stream(&results, |bytes| Frame::Files(bytes));
    courier.reports(Outcome::Exited { status: 3 });
    assert!(stored(server, "stdout") == output);
    assert_eq!(stored(server, "stderr"), b"err");
    let back = zstd::stream::decode_all(&stored(server, "results")[..]).unwrap();
    assert!(back == results);
    let report = report(server);
    assert_eq!(
        report.outcome,
        Outcome::Exited { status: 3 },
        "{}",
        courier.says()
    );
    assert_eq!(report.notes, ["a warning [1m"]);
    assert_eq!(
        server.puts().last().map(String::as_str),
        Some("report"),
        "the last one"
    );
}

#[test]
fn files_streams_and_results_go_through_the_store() {
    goes_through(&Server::start(|_, _| Fate::Pass));
}

#[test]
fn a_store_that_is_away_for_a_while_loses_nothing() {
    // Every object's first requests fail, each in another way.
    goes_through(&Server::start(|request, count| {
        match (count, request.len() % 2) {
            (0, 0) => Fate::Answer(503, "<Error><Code>SlowDown</Code></Error>"),
            (0, _) => Fate::Answer(429, ""),
            (1, _) => Fate::Drop,
            (2, _) => Fate::Cut,
            _ => Fate::Pass,
        }
    }));
}

#[test]
fn a_store_that_does_not_know_of_ranges_will_do() {
    goes_through(&Server::start(|_, count| match count {
        0 => Fate::Cut,
        _ => Fate::Whole,
    }));
}

#[test]
fn a_connection_that_hangs_is_made_anew() {
    let server = Server::start(|request, count| match (request, count) {
        ("PUT stdout.0", 0) => Fate::Hang,
        _ => Fate::Pass,
    });
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    assert_eq!(courier.files(7), b"content");
    courier.stream(b"out", |bytes| Frame::Stdout(bytes));
    courier.reports(Outcome::Exited { status: 0 });
    assert_eq!(stored(&server, "stdout"), b"out");
    assert_eq!(report(&server).outcome, Outcome::Exited { status: 0 });
    assert!(
        courier.says().contains("trying again"),
        "{}",
        courier.says()
    );
}

const EXPIRED: Fate = Fate::Answer(
    403,
    "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Request has expired of secret0123456789</Message></Error>",
);

#[test]
fn an_expired_url_is_given_up_at_once() {
    let server = Server::start(|request, _| match request {
        "GET files.0" => EXPIRED,
        _ => Fate::Pass,
    });
    let mut contract = contract(&server);
    contract.store.files = server.urls("files", 1);
    let begun = Instant::now();
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    assert!(courier.ends());
    assert!(begun.elapsed() < Duration::from_secs(20));
    let (step, reason) = failed(&server);
    assert_eq!(step, "fetching the job's files");
    assert!(reason.contains("the URL has expired: HTTP 403"), "{reason}");
    assert!(
        courier.says().contains("the URL has expired"),
        "{}",
        courier.says()
    );
    assert_eq!(server.count("GET files.0"), 1);
}

#[test]
fn a_job_whose_output_cannot_be_stored_is_ended() {
    // After the sign of life.
    let server = Server::start(|request, count| match (request, count) {
        ("PUT stdout.0", 1..) => EXPIRED,
        _ => Fate::Pass,
    });
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    courier.files(7);
    courier.send(&Frame::Stdout(b"out"));
    assert_eq!(courier.next(), Got::Signal(15));
    assert_eq!(courier.next(), Got::Shutdown);
    courier.reports(Outcome::Signalled { signal: 9 });
    let (step, reason) = failed(&server);
    assert_eq!(step, "storing standard output");
    assert!(reason.contains("has expired"), "{reason}");
    assert_eq!(report(&server).notes, ["signal 9 ended the command"]);
}

/// The machine was started again.
#[test]
fn a_report_alone_leaves_what_is_stored_as_it_is() {
    let server = Server::start(|_, _| Fate::Pass);
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    server.set("stdout.0", b"of the first time");
    let mut courier = Courier::start(&document::encode(&contract), &["--report-only"]);
    courier.reports(Outcome::Failed {
        step: String::from("starting the job"),
        reason: String::from("again"),
    });
    assert_eq!(failed(&server).1, "again");
    assert_eq!(server.puts(), ["report"]);
    assert_eq!(stored(&server, "stdout"), b"of the first time");
    assert_eq!(server.count("GET files.0"), 0);
}

#[test]
fn output_beyond_its_objects_ends_the_job() {
    let server = Server::start(|_, _| Fate::Pass);
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    contract.store.stdout.truncate(1);
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    courier.files(7);
    let output = noise(1_200_000);
    for piece in output.chunks(60_000) {
        courier.send(&Frame::Stdout(piece));
    }
    assert_eq!(courier.next(), Got::Signal(15));
    courier.reports(Outcome::Signalled { signal: 15 });
    let (_, reason) = failed(&server);
    assert!(
        reason.contains("more than its objects hold (1 MiB)"),
        "{reason}"
    );
    assert!(stored(&server, "stdout") == output[..1 << 20]);
}

#[test]
fn signals_are_taken_from_the_store_once_each() {
    let server = Server::start(|_, _| Fate::Pass);
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    server.set("control", b"10\n");
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    courier.files(7);
    assert_eq!(courier.next(), Got::Signal(10));
    server.set("control", b"10\n12\nnonsense\n15");
    assert_eq!(courier.next(), Got::Signal(12));
    server.set("control", b"10\n12\nnonsense\n15\n");
    assert_eq!(courier.next(), Got::Signal(15));
    courier.reports(Outcome::Signalled { signal: 15 });
    assert_eq!(report(&server).outcome, Outcome::Signalled { signal: 15 });
}

#[test]
fn a_spot_machine_is_given_up_in_order() {
    let metadata = Server::start(|_, count| match count {
        0 => Fate::Answer(503, ""),
        _ => Fate::Pass,
    });
    metadata.set("latest/api/token", b"token==");
    let server = Server::start(|_, _| Fate::Pass);
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    let address = metadata.address.to_string();
    let mut courier = Courier::start(&document::encode(&contract), &["--metadata", &address]);
    courier.files(7);
    let notice = br#"{"action": "terminate", "time": "2026-11-23T08:22:00Z"}"#;
    metadata.set("latest/meta-data/spot/instance-action", notice);
    assert_eq!(courier.next(), Got::Signal(15));
    courier.stream(b"partly", |bytes| Frame::Files(bytes));
    courier.reports(Outcome::Signalled { signal: 15 });
    let notes = report(&server).notes;
    assert_eq!(
        notes,
        ["the cloud takes the machine back: terminate at 2026-11-23T08:22:00Z"]
    );
    let back = zstd::stream::decode_all(&stored(&server, "results")[..]).unwrap();
    assert_eq!(back, b"partly");
}

#[test]
fn input_without_bytes_is_an_object_without_bytes() {
    let server = Server::start(|_, _| Fate::Pass);
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    contract.store.stdin = store(&server, "stdin", b"");
    contract.stdin = Stdin::Link;
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    courier.files(7);
    assert_eq!(courier.input(), b"");
    courier.reports(Outcome::Exited { status: 0 });
    assert_eq!(report(&server).outcome, Outcome::Exited { status: 0 });
    assert_eq!(stored(&server, "stdout"), b"");
    assert!(server.object("stdout.0").is_some(), "a sign of life");
    assert!(server.object("stderr.0").is_none());
}

#[test]
fn output_is_stored_while_the_job_runs() {
    let server = Server::start(|_, _| Fate::Pass);
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    courier.files(7);
    let end = Instant::now() + Duration::from_secs(60);
    for (text, so_far) in [("one ", "one "), ("two", "one two")] {
        courier.stream(text.as_bytes(), |bytes| Frame::Stdout(bytes));
        while stored(&server, "stdout") != so_far.as_bytes() {
            assert!(Instant::now() < end, "not stored: {so_far}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(server.object("report").is_none());
    courier.reports(Outcome::Exited { status: 0 });
}

#[test]
fn a_document_elsewhere_is_fetched_for_the_agent() {
    let server = Server::start(|_, count| match count {
        0 => Fate::Cut,
        _ => Fate::Pass,
    });
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    contract.env = vec![("LONG".into(), "x".repeat(100_000).into())];
    let text = document::encode(&contract);
    server.set("document", text.as_bytes());
    let pointer = Pointer {
        url: server.url("document"),
        deadline: contract.deadline.unwrap(),
        grace: contract.grace,
        report: contract.store.report.clone(),
    };
    let mut courier = Courier::start(&document::encode_pointer(&pointer), &[]);
    let mut got = Vec::new();
    loop {
        match courier.next() {
            Got::Contract(piece) if piece.is_empty() => break,
            Got::Contract(piece) => got.extend(piece),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, text.as_bytes());
    assert_eq!(courier.files(7), b"content");
    courier.reports(Outcome::Exited { status: 0 });
    assert_eq!(report(&server).outcome, Outcome::Exited { status: 0 });
}

#[test]
fn a_document_that_cannot_be_had_is_reported() {
    for (content, says) in [
        (None, "HTTP 404"),
        (Some("#!/bin/sh\n"), "not the first line"),
        (Some("#apppot/1\napppot.arg=x\n"), "names no objects"),
        (
            Some("#apppot/1\napppot.deadline=1\napppot.document=http://h/o%3Fsecret\n"),
            "user-data only",
        ),
    ] {
        let server = Server::start(|_, _| Fate::Pass);
        if let Some(text) = content {
            server.set("document", text.as_bytes());
        }
        let pointer = Pointer {
            url: server.url("document"),
            deadline: SystemTime::now() + Duration::from_secs(300),
            grace: Duration::ZERO,
            report: Some(server.url("report")),
        };
        let mut courier = Courier::start(&document::encode_pointer(&pointer), &[]);
        assert!(!courier.ends());
        let (step, reason) = failed(&server);
        assert_eq!(step, "fetching the contract");
        assert!(
            reason.contains(says) && !reason.contains("secret"),
            "{reason}"
        );
    }
}

/// Also that a report is stored after the deadline.
#[test]
fn the_deadline_ends_the_waiting_for_a_store() {
    let server = Server::start(|request, _| match request {
        "GET files.0" => Fate::Answer(503, ""),
        _ => Fate::Pass,
    });
    let mut contract = contract(&server);
    contract.store.files = server.urls("files", 1);
    contract.deadline = Some(SystemTime::now() + Duration::from_secs(3));
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    assert!(courier.ends());
    assert_eq!(report(&server).outcome, Outcome::TimedOut);
}

#[test]
fn an_agent_that_ends_without_a_report_has_failed() {
    let server = Server::start(|_, _| Fate::Pass);
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    courier.files(7);
    courier.stream(b"out", |bytes| Frame::Stdout(bytes));
    courier.link.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(courier.process.wait().unwrap().success());
    assert_eq!(stored(&server, "stdout"), b"out");
    assert!(failed(&server).1.contains("without a report"));
}

/// Neither in arguments nor in the environment, which others may read.
#[test]
fn secrets_are_not_to_be_seen_from_outside() {
    let server = Server::start(|_, _| Fate::Pass);
    let mut contract = contract(&server);
    contract.store.files = store(&server, "files", &compressed(b"content"));
    let mut courier = Courier::start(&document::encode(&contract), &[]);
    courier.files(7);
    for name in ["cmdline", "environ"] {
        let path = format!("/proc/{}/{name}", courier.process.id());
        let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        assert!(
            !text.contains("secret") && !text.contains("http:"),
            "{text}"
        );
    }
    courier.reports(Outcome::Exited { status: 0 });
    assert!(!String::from_utf8_lossy(&server.object("report").unwrap()).contains("secret"));
}
