//! Decoders take time and memory in proportion to their input. A quadratic one would take minutes
//! here; the bound is far above what a slow machine needs.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::time::{Duration, Instant};

use apppot_contract::cmdline::{self, Carrier, Found};
use apppot_contract::link::{Decoder, Frame, MAX_PAYLOAD};
use apppot_contract::{document, Contract, Workload};

/// What grows with the square of its input takes far longer; a busy machine does not.
const BOUND: Duration = Duration::from_secs(120);

fn within<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let took = start.elapsed();
    println!("{what}: {took:?}");
    assert!(took < BOUND, "{what} took {took:?}");
    result
}

/// As many tokens as a document holds.
fn large() -> Contract {
    Contract {
        link: Some("/dev/ttyS0".into()),
        workload: Workload::Command(vec!["x".into(); 150_000]),
        env: vec![("A".into(), OsString::new()); 100_000],
        ..Contract::default()
    }
}

#[test]
fn a_document_of_250_000_tokens() {
    let contract = large();
    let encoded = within("encode", || {
        cmdline::encode(&contract, 4096, Some(Carrier::Link)).unwrap()
    });
    let text = encoded.document.unwrap();
    assert!(text.len() <= document::MAX_LEN);
    let read = within("decode document", || document::decode(text.as_bytes()));
    assert_eq!(read, Ok(contract));
}

#[test]
fn a_command_line_of_250_000_words() {
    let contract = large();
    let words = cmdline::encode(&contract, usize::MAX, None).unwrap().words;
    let line = format!("{} {}", "quiet ".repeat(100_000), words.join(" "));
    let read = within("decode line", || cmdline::decode(line.as_bytes()));
    assert_eq!(read, Ok(Found::Here(Box::new(contract))));
}

#[test]
fn one_argument_of_a_mebibyte_of_bytes_that_are_all_escaped() {
    let contract = Contract {
        link: Some("/dev/ttyS0".into()),
        workload: Workload::Command(vec![" ".repeat(1 << 20).into()]),
        ..Contract::default()
    };
    let encoded = cmdline::encode(&contract, 4096, Some(Carrier::Link)).unwrap();
    let text = encoded.document.unwrap();
    let read = within("decode argument", || document::decode(text.as_bytes()));
    assert_eq!(read, Ok(contract));
}

#[test]
fn values_of_separators_only() {
    let commas = ",".repeat(document::MAX_LEN - 100);
    for key in ["mount", "root", "terminal", "groups"] {
        let text = format!("#apppot/1\napppot.{key}={commas}\n");
        let error = within(key, || document::decode(text.as_bytes())).unwrap_err();
        assert!(error.to_string().len() < 400, "{error}");
    }
}

#[test]
fn a_million_small_frames_and_frames_byte_by_byte() {
    let wire = Frame::Signal(1).to_vec().repeat(1_000_000);
    let count = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = Decoder::default();
        let mut count = 0;
        for piece in pieces {
            decoder.feed(piece);
            while decoder.next().unwrap().is_some() {
                count += 1;
            }
        }
        count
    };
    let frames = within("frames at once", || count(&mut [&wire[..]].into_iter()));
    assert_eq!(frames, 1_000_000);
    let frames = within("frames in reads", || count(&mut wire.chunks(65_521)));
    assert_eq!(frames, 1_000_000);
    let wire = Frame::Stdout(&vec![0; MAX_PAYLOAD]).to_vec().repeat(64);
    let frames = within("bytes", || count(&mut wire.chunks(1)));
    assert_eq!(frames, 64);
}
