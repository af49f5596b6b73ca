//! `docs/contract.md` and the code say the same.
#![allow(clippy::unwrap_used)]

use apppot_contract::cmdline::{self, Found};
use apppot_contract::link::{Decoder, Frame, MAX_PAYLOAD, WINDOW};
use apppot_contract::store::{MAX_CONTROL, MAX_SEGMENTS, MAX_URL, REFRESH, SAVING};
use apppot_contract::{document, Report};

const PAGE: &str = include_str!("../../docs/contract.md");

/// The fenced blocks that start with `first`, their first line.
fn blocks(first: &str) -> Vec<&'static str> {
    let fenced = PAGE.split("```text\n").skip(1);
    let texts = fenced.map(|rest| rest.split("```").next().unwrap());
    texts
        .filter(|text| text.lines().next() == Some(first))
        .collect()
}

/// The cells of the table rows that start with `start`.
fn rows(start: &str) -> Vec<Vec<&'static str>> {
    let lines = PAGE.lines().filter(|line| line.starts_with(start));
    lines
        .map(|line| line.split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn the_documents_can_be_read() {
    assert_eq!(blocks("#apppot/1").len(), 1);
    for text in blocks("#apppot/1") {
        document::decode(text.as_bytes()).unwrap();
    }
    assert_eq!(blocks("#apppot-report/1").len(), 1);
    for text in blocks("#apppot-report/1") {
        Report::decode(text.as_bytes()).unwrap();
    }
}

#[test]
fn the_command_lines_can_be_read() {
    let start = PAGE.find("```text\nquiet apppot.version=1").unwrap();
    let block = PAGE[start + 8..].split("```").next().unwrap();
    let (here, elsewhere) = block.split_once("\n\n").unwrap();
    assert!(matches!(
        cmdline::decode(here.as_bytes()),
        Ok(Found::Here(_))
    ));
    assert!(matches!(
        cmdline::decode(elsewhere.as_bytes()),
        Ok(Found::Elsewhere { .. })
    ));
}

#[test]
fn the_table_of_keys_is_the_code_s() {
    let mut text = String::from("#apppot/1\n");
    let mut keys = Vec::new();
    for row in rows("| `apppot.").into_iter().chain(rows("| `TERM`")) {
        let [_, key, repetition @ ("once" | "repeated"), .., example, _] = row[..] else {
            continue; // The report's table.
        };
        let key = key.trim_matches('`');
        for token in example.trim_matches('`').split(' ') {
            assert!(token.starts_with(&format!("{key}=")), "{key}: {token}");
            // The shell excludes arguments, objects exclude the link, and a pointer everything.
            let line = format!("{token}\n");
            if !["apppot.shell", "apppot.store", "apppot.document"].contains(&key) {
                text.push_str(&line);
            }
            let twice = format!("#apppot/1\n{line}{line}");
            let repeats = document::decode(twice.as_bytes())
                .is_err_and(|error| error.to_string().contains("repeats"));
            assert_eq!(repeats, repetition == "once", "{key}");
        }
        keys.push(key);
    }
    let contract = document::decode(text.as_bytes()).unwrap();
    // Every key that is written has its row.
    for line in document::encode(&contract).lines().skip(1) {
        let key = line.split('=').next().unwrap();
        assert!(keys.contains(&key), "{key}");
    }
    assert_eq!(keys.len(), 31);
}

#[test]
fn the_table_of_frames_is_the_code_s() {
    let frames = [
        Frame::Hello {
            protocol: 1,
            agent: b"",
        },
        Frame::Contract(b""),
        Frame::Stdin(b""),
        Frame::StdinEof,
        Frame::StdinRing(0),
        Frame::Stdout(b""),
        Frame::Stderr(b""),
        Frame::Credit(apppot_contract::link::Stream::Stdin, 0),
        Frame::Resize {
            rows: 0,
            columns: 0,
        },
        Frame::Signal(1),
        Frame::Shutdown,
        Frame::Log(b""),
        Frame::Report(b""),
        Frame::Received(0),
        Frame::Close(apppot_contract::link::Stream::Stdout),
        Frame::Files(b""),
        Frame::FilesRing(0),
    ];
    for frame in frames {
        let debug = format!("{frame:?}");
        let name = debug.split([' ', '(']).next().unwrap();
        let row = format!("| {} | {name} |", frame.to_vec()[0]);
        assert!(PAGE.contains(&row), "{row}");
    }
    let mut decoder = Decoder::default();
    decoder.feed(&[18, 0, 0, 0, 0]);
    decoder
        .next()
        .expect_err("a type that the page does not have");
}

#[test]
fn the_limits_are_the_code_s() {
    let numbers = [
        MAX_PAYLOAD,
        WINDOW,
        document::MAX_LEN,
        MAX_URL,
        MAX_CONTROL,
        MAX_SEGMENTS,
    ];
    for limit in numbers
        .into_iter()
        .chain([REFRESH, SAVING].map(|time| time.as_secs() as usize))
    {
        assert!(PAGE.contains(&limit.to_string()), "{limit}");
    }
}
