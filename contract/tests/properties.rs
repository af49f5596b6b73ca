//! What must hold of every contract, report and stream of frames, not only of examples.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use apppot_contract::cmdline::{self, Carrier, Found};
use apppot_contract::link::{Decoder, Frame, Stream};
use apppot_contract::{
    document, percent, Boot, Changes, Channel, Contract, Files, Mount, Network, Outcome, Pointer,
    Report, Root, Stdin, Store, Terminal, Url, Usage, User, Workload, Writes, CHANNELS,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Bytes of all kinds, those that a grammar stumbles over more often than others.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        1u8..,
        proptest::sample::select(b" \t\n\r\"'\\%=,#$*/-.\x7f\xff".to_vec())
    ]
}

fn os() -> impl Strategy<Value = OsString> {
    vec(byte(), 0..24).prop_map(OsString::from_vec)
}

fn path() -> impl Strategy<Value = PathBuf> {
    vec(byte(), 0..24).prop_map(|mut bytes| {
        bytes.insert(0, b'/');
        PathBuf::from(OsString::from_vec(bytes))
    })
}

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,16}"
}

fn name() -> impl Strategy<Value = String> {
    "[^\\p{Cc}:/,]{1,16}"
}

fn variable() -> impl Strategy<Value = (OsString, OsString)> {
    let name = vec(byte().prop_filter("no name", |&byte| byte != b'='), 1..12);
    (name.prop_map(OsString::from_vec), os())
}

fn root() -> impl Strategy<Value = Root> {
    let writes = prop_oneof![Just(Writes::Memory), Just(Writes::Device)];
    ("[^\0]{1,8}", os(), writes).prop_map(|(filesystem, source, writes)| Root {
        filesystem,
        source,
        writes,
    })
}

fn mount() -> impl Strategy<Value = Mount> {
    let live = CHANNELS.into_iter().filter(|channel| channel.is_live());
    let channel = proptest::sample::select(live.collect::<Vec<_>>());
    (channel, os(), path(), any::<bool>()).prop_map(|(channel, source, target, read_only)| Mount {
        channel,
        source,
        target,
        read_only,
    })
}

fn files() -> impl Strategy<Value = Files> {
    let link = (option::of(path())).prop_map(|ring| (Channel::Link, ring));
    let channel = prop_oneof![link, Just((Channel::Disk, None))];
    (channel, path(), vec(text(), 0..3)).prop_map(|((channel, ring), target, results)| Files {
        channel,
        target,
        ring,
        results,
    })
}

fn changes() -> impl Strategy<Value = Changes> {
    (path(), any::<bool>()).prop_map(|(source, any_base)| Changes { source, any_base })
}

fn user() -> impl Strategy<Value = User> {
    let id = || 0..u32::MAX;
    let account = proptest::option::of(name());
    (name(), id(), name(), id(), vec(id(), 0..4), account).prop_map(
        |(name, uid, group, gid, groups, account)| User {
            name,
            uid,
            group,
            gid,
            groups,
            account,
        },
    )
}

fn workload() -> impl Strategy<Value = Workload> {
    prop_oneof![
        vec(os(), 1..8).prop_map(Workload::Command),
        Just(Workload::Default),
        Just(Workload::Shell),
    ]
}

fn stdin() -> impl Strategy<Value = Stdin> {
    prop_oneof![
        Just(Stdin::Null),
        Just(Stdin::Link),
        path().prop_map(Stdin::Ring),
    ]
}

fn terminal() -> impl Strategy<Value = Terminal> {
    (text(), any::<u16>(), any::<u16>()).prop_map(|(term, rows, columns)| Terminal {
        term,
        rows,
        columns,
    })
}

prop_compose! {
    fn network()(
        interface in "[!-.0-9;-~&&[^.]][!-.0-9;-~]{0,14}",
        (address, prefix) in (any::<[u8; 4]>(), 0u8..=32),
        (gateway, nameserver) in (any::<[u8; 4]>(), any::<[u8; 4]>()),
    ) -> Network {
        let (address, gateway) = (address.into(), gateway.into());
        Network { interface, address, prefix, gateway, nameserver: nameserver.into() }
    }
}

fn url() -> impl Strategy<Value = Url> {
    "https?://[!-~&&[^/@#?]]{1,8}[!-~&&[^#@]]{0,24}"
        .prop_filter_map("no URL", |text| Url::new(&text).ok())
}

prop_compose! {
    fn store()(
        (files, stdin, results) in (vec(url(), 1..3), vec(url(), 0..3), vec(url(), 1..3)),
        (stdout, stderr) in (vec(url(), 0..3), vec(url(), 0..3)),
        (report, control) in (url(), option::of(url())),
    ) -> Store {
        Store { files, stdin, stdout, stderr, results, report: Some(report), control }
    }
}

prop_compose! {
    fn pointer()(
        (url, report) in (url(), option::of(url())),
        (deadline, grace) in any::<(u64, u64)>(),
    ) -> Pointer {
        Pointer {
            url,
            deadline: SystemTime::UNIX_EPOCH + Duration::from_millis(deadline),
            grace: Duration::from_millis(grace),
            report,
        }
    }
}

/// A contract of a machine that only the store reaches.
fn of_store((mut contract, mut store): (Contract, Store)) -> Contract {
    (contract.link, contract.terminal, contract.boot) = (None, None, Boot::System);
    contract.deadline = contract.deadline.or(Some(SystemTime::UNIX_EPOCH));
    contract.stdin = match store.stdin.is_empty() {
        true => Stdin::Null,
        false => Stdin::Link,
    };
    match &mut contract.files {
        Some(files) => (files.channel, files.ring) = (Channel::Link, None),
        None => (store.files, store.results) = (Vec::new(), Vec::new()),
    }
    contract.store = store;
    contract
}

fn contract() -> impl Strategy<Value = Contract> {
    prop_oneof![linked(), (linked(), store()).prop_map(of_store)]
}

prop_compose! {
    fn linked()(
        (id, hostname, network) in (name(), option::of(name()), option::of(network())),
        (link, jobdir, tmpdir) in (option::of(path()), path(), option::of(path())),
        (root, mounts, changes) in (option::of(root()), vec(mount(), 0..4), vec(changes(), 0..3)),
        files in option::of(files()),
        (user, workload, stdin) in (option::of(user()), workload(), stdin()),
        (terminal, env) in (option::of(terminal()), vec(variable(), 0..4)),
        (deadline, grace, umask) in (option::of(any::<u64>()), any::<u64>(), 0u32..0o1000),
        boot in prop_oneof![Just(Boot::Direct), Just(Boot::System)],
    ) -> Contract {
        Contract {
            id, link, root, mounts, changes, files, jobdir, tmpdir, user, workload, stdin, terminal, env, hostname, network,
            deadline: deadline.map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms)),
            grace: Duration::from_millis(grace),
            umask,
            boot,
            store: Store::default(),
        }
    }
}

/// Words that a boot loader or an administrator may have put there.
fn foreign() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(vec![
            "quiet",
            "root=98:0",
            "apppot",
            "apppot-x.y=1",
            "init=/apppot.arg=x",
            "--",
            "%",
            "\"",
            "#apppot/1",
            "",
            "\t",
        ])
        .prop_map(String::from),
        "[!-~]{1,12}".prop_filter("ours", |word| {
            !word.starts_with("apppot.") && !word.starts_with("TERM=")
        }),
    ]
}

/// Equal, also byte for byte: `PathBuf` takes `/a//b` and `/a/b` for the same.
fn assert_same(read: &Contract, written: &Contract) {
    assert_eq!(read, written);
    assert_eq!(document::encode(read), document::encode(written));
}

proptest! {
    #[test]
    fn a_contract_comes_back_from_a_document(contract in contract()) {
        contract.check().unwrap();
        let text = document::encode(&contract);
        assert_same(&document::decode(text.as_bytes()).unwrap(), &contract);
    }

    #[test]
    fn a_pointer_comes_back_from_user_data(pointer in pointer(), contract in contract()) {
        let text = document::encode_pointer(&pointer);
        prop_assert!(document::decode(text.as_bytes()).is_err());
        let read = document::decode_user_data(text.as_bytes()).unwrap();
        prop_assert_eq!(read, document::Document::Elsewhere(Box::new(pointer)));
        let text = document::encode(&contract);
        let read = document::decode_user_data(text.as_bytes()).unwrap();
        prop_assert_eq!(read, document::Document::Contract(Box::new(contract)));
    }

    #[test]
    fn a_contract_comes_back_from_among_foreign_words(
        contract in contract(),
        foreign in vec((foreign(), any::<prop::sample::Index>()), 0..8),
    ) {
        let mut words = cmdline::encode(&contract, usize::MAX, None).unwrap().words;
        prop_assert!(words.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_graphic())));
        for (word, at) in foreign {
            words.insert(at.index(words.len() + 1), word);
        }
        match cmdline::decode(words.join(" ").as_bytes()) {
            Ok(Found::Here(read)) => assert_same(&read, &contract),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_contract_comes_back_by_one_carrier_or_the_other(
        contract in contract(),
        limit in 0usize..2000,
    ) {
        let Ok(encoded) = cmdline::encode(&contract, limit, Some(Carrier::Link)) else {
            return Ok(());
        };
        let line = encoded.words.join(" ");
        prop_assert!(line.len() < limit);
        match (cmdline::decode(line.as_bytes()).unwrap(), encoded.document) {
            (Found::Here(read), None) => {
                prop_assert!(contract.env.is_empty() && contract.store.is_empty());
                assert_same(&read, &contract);
            }
            (Found::Elsewhere { carrier: Carrier::Link, link }, Some(document)) => {
                prop_assert_eq!(Some(&link), contract.link.as_ref());
                assert_same(&document::decode(document.as_bytes()).unwrap(), &contract);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bytes_come_back_from_percent_encoding(bytes in vec(any::<u8>(), 0..64)) {
        let mut text = String::new();
        percent::encode(&bytes, &mut text);
        prop_assert_eq!(percent::decode(text.as_bytes()), Ok(bytes));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in vec(any::<u8>(), 0..256)) {
        let _ = percent::decode(&bytes);
        let _ = cmdline::decode(&bytes);
        let _ = document::decode(&bytes);
        let _ = document::decode(&[b"#apppot/1\n", &bytes[..]].concat());
        let _ = Report::decode(&bytes);
        let _ = Report::decode(&[b"#apppot-report/1\n", &bytes[..]].concat());
        let mut decoder = Decoder::default();
        decoder.feed(&bytes);
        while let Ok(Some(_)) = decoder.next() {}
    }

    #[test]
    fn no_values_make_a_decoder_panic(
        tokens in vec((key(), "[ -~]{0,12}|[0-9,]{0,24}|(%[0-9A-Fa-f]{2}|[a-z/,]){0,8}"), 0..6),
    ) {
        let lines: String = tokens.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        let _ = cmdline::decode(format!("apppot.version=1 {lines}").as_bytes());
        let _ = Report::decode(format!("#apppot-report/1\n{lines}").as_bytes());
        // What is read can be written, and is read the same again.
        if let Ok(contract) = document::decode(format!("#apppot/1\n{lines}").as_bytes()) {
            contract.check().unwrap();
            let text = document::encode(&contract);
            assert_same(&document::decode(text.as_bytes()).unwrap(), &contract);
        }
    }

    #[test]
    fn a_report_comes_back(report in report()) {
        prop_assert_eq!(Report::decode(&report.encode()), Ok(report));
    }

    #[test]
    fn frames_come_back_from_any_pieces(
        frames in vec(frame(), 0..12),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut wire = Vec::new();
        for frame in &frames {
            frame.borrowed().encode(&mut wire);
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
        cuts.extend([0, wire.len()]);
        cuts.sort_unstable();
        let mut decoder = Decoder::default();
        let mut expected = frames.iter();
        for piece in cuts.windows(2) {
            decoder.feed(&wire[piece[0]..piece[1]]);
            while let Some(frame) = decoder.next().unwrap() {
                prop_assert_eq!(Some(frame), expected.next().map(OwnedFrame::borrowed));
            }
        }
        prop_assert!(expected.next().is_none());
    }
}

fn key() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "apppot.id",
        "apppot.link",
        "apppot.root",
        "apppot.writes",
        "apppot.mount",
        "apppot.changes",
        "apppot.files",
        "apppot.files-ring",
        "apppot.results",
        "apppot.jobdir",
        "apppot.tmpdir",
        "apppot.user",
        "apppot.uid",
        "apppot.group",
        "apppot.gid",
        "apppot.groups",
        "apppot.arg",
        "apppot.shell",
        "apppot.stdin",
        "apppot.terminal",
        "TERM",
        "apppot.env",
        "apppot.hostname",
        "apppot.network",
        "apppot.deadline",
        "apppot.grace",
        "apppot.boot",
        "apppot.store",
        "apppot.document",
        "apppot.contract",
        "apppot.outcome",
        "apppot.status",
        "apppot.signal",
        "apppot.step",
        "apppot.reason",
        "apppot.elapsed-us",
        "apppot.note",
    ])
}

fn report() -> impl Strategy<Value = Report> {
    let outcome = prop_oneof![
        any::<u8>().prop_map(|status| Outcome::Exited { status }),
        (1u8..128).prop_map(|signal| Outcome::Signalled { signal }),
        Just(Outcome::TimedOut),
        any::<String>().prop_map(|reason| Outcome::NotFound { reason }),
        any::<String>().prop_map(|reason| Outcome::NotExecutable { reason }),
        any::<(String, String)>().prop_map(|(step, reason)| Outcome::Failed { step, reason }),
    ];
    let notes = vec(any::<String>(), 0..4);
    (outcome, any::<[u64; 4]>(), notes).prop_map(|(outcome, numbers, notes)| Report {
        outcome,
        usage: Usage {
            elapsed: Duration::from_micros(numbers[0]),
            user: Duration::from_micros(numbers[1]),
            system: Duration::from_micros(numbers[2]),
            max_rss_kib: numbers[3],
        },
        notes,
    })
}

/// A type of frame that carries bytes.
type Carry = for<'a> fn(&'a [u8]) -> Frame<'a>;

#[derive(Debug, Clone)]
enum OwnedFrame {
    Bytes(Carry, Vec<u8>),
    Fixed(Frame<'static>),
}

impl OwnedFrame {
    fn borrowed(&self) -> Frame<'_> {
        match self {
            OwnedFrame::Bytes(carry, bytes) => carry(bytes),
            OwnedFrame::Fixed(frame) => *frame,
        }
    }
}

fn frame() -> impl Strategy<Value = OwnedFrame> {
    let carries: Vec<Carry> = vec![
        |agent| Frame::Hello { protocol: 1, agent },
        |bytes| Frame::Contract(bytes),
        |bytes| Frame::Stdin(bytes),
        |bytes| Frame::Stdout(bytes),
        |bytes| Frame::Stderr(bytes),
        |bytes| Frame::Log(bytes),
        |bytes| Frame::Report(bytes),
    ];
    let streams = vec![Stream::Stdin, Stream::Stdout, Stream::Stderr];
    let fixed = prop_oneof![
        Just(Frame::StdinEof),
        Just(Frame::Shutdown),
        any::<u64>().prop_map(Frame::StdinRing),
        any::<u8>().prop_map(Frame::Signal),
        any::<(u16, u16)>().prop_map(|(rows, columns)| Frame::Resize { rows, columns }),
        (proptest::sample::select(streams), any::<u32>())
            .prop_map(|(stream, bytes)| Frame::Credit(stream, bytes)),
        Just(Frame::Close(Stream::Stdout)),
        any::<u32>().prop_map(Frame::Received),
    ];
    prop_oneof![
        (proptest::sample::select(carries), vec(any::<u8>(), 0..300))
            .prop_map(|(carry, bytes)| OwnedFrame::Bytes(carry, bytes)),
        fixed.prop_map(OwnedFrame::Fixed),
    ]
}
