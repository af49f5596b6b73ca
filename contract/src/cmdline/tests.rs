use super::*;
use crate::{Terminal, Workload};

fn contract(line: &str) -> Contract {
    match decode(line.as_bytes()) {
        Ok(Found::Here(contract)) => *contract,
        other => panic!("{line}: {other:?}"),
    }
}

fn error(line: &str) -> String {
    match decode(line.as_bytes()) {
        Err(error) => error.to_string(),
        other => panic!("{line}: {other:?}"),
    }
}

fn command(args: &[&str]) -> Contract {
    Contract {
        link: Some("/dev/ttyS0".into()),
        workload: Workload::Command(args.iter().map(Into::into).collect()),
        ..Contract::default()
    }
}

#[test]
fn a_line_without_our_prefix_is_no_contract() {
    for line in [
        "",
        "\n",
        "   ",
        "quiet root=/dev/sda1 -- 3",
        "TERM=xterm",
        "TERM=x TERM=y",
        "TERM=\u{e9} TERM=%",
        "apppot apppot_x=1 xapppot.arg=1 Apppot.arg=1 \"apppot.arg=1\"",
        "noise=apppot.arg=1",
    ] {
        assert_eq!(decode(line.as_bytes()), Ok(Found::Absent), "{line}");
    }
    assert_eq!(decode(b"\xff\xfe=\0"), Ok(Found::Absent));
}

#[test]
fn foreign_words_are_ignored() {
    let line = "  quiet\tfoo=\"bar apppot.version=1\u{20}root=98:0 \u{e9} % apppot.arg=a%20b \
                term=no apppot.arg= -- TERM=xterm apppot.terminal=24,80\n";
    let contract = contract(line);
    assert_eq!(
        contract.workload,
        Workload::Command(vec!["a b".into(), "".into()])
    );
    let terminal = Terminal {
        term: "xterm".into(),
        rows: 24,
        columns: 80,
    };
    assert_eq!(contract.terminal, Some(terminal));
}

#[test]
fn the_version_may_stand_anywhere() {
    let contract = contract("apppot.arg=x apppot.version=1");
    assert_eq!(contract.workload, Workload::Command(vec!["x".into()]));
}

#[test]
fn mistakes_are_named() {
    for (line, token, what) in [
        (
            "apppot.arg=x",
            "'apppot.version'",
            "is missing beside apppot.arg",
        ),
        (
            "TERM=x apppot.x=1",
            "'apppot.version'",
            "is missing beside apppot.x",
        ),
        (
            "apppot.version=2",
            "'apppot.version=2'",
            "another version than 1",
        ),
        (
            "apppot.version=",
            "'apppot.version='",
            "another version than 1",
        ),
        (
            "apppot.version=%31",
            "'apppot.version=%31'",
            "another version",
        ),
        (
            "apppot.version=1 apppot.version=1",
            "'apppot.version=1'",
            "repeats",
        ),
        (
            "apppot.version=2 apppot.new=1",
            "'apppot.version=2'",
            "another version",
        ),
        ("apppot.version=1 apppot.x=1", "'apppot.x=1'", "not known"),
        ("apppot.version=1 apppot.x", "'apppot.x'", "has no '='"),
        ("quiet apppot.x", "'apppot.x'", "has no '='"),
        (
            "apppot.version=1 apppot.Arg=1",
            "'apppot.Arg=1'",
            "not known",
        ),
        ("apppot.version=1 apppot.arg=%", "'apppot.arg=%'", "%XX"),
        (
            "apppot.version=1 apppot.arg=\"x\"",
            "'apppot.arg=\\\"x\\\"'",
            "%XX",
        ),
        ("apppot.version=1 TERM=a TERM=b", "'TERM=b'", "repeats"),
        (
            "apppot.version=1 apppot.TERM=a",
            "'apppot.TERM=a'",
            "TERM does not take",
        ),
        ("apppot.TERM=a", "'apppot.TERM=a'", "TERM does not take"),
        (
            "apppot.version=1 apppot.contract=disk",
            "'apppot.contract=disk'",
            "unknown carrier",
        ),
        (
            "apppot.version=1 apppot.contract=link",
            "'apppot.contract=link'",
            "needs apppot.link",
        ),
        (
            "apppot.version=1 apppot.link=/l apppot.contract=link apppot.contract=link",
            "'apppot.contract=link'",
            "repeats",
        ),
        (
            "apppot.version=1 apppot.link=/l apppot.contract=link apppot.arg=x",
            "'apppot.arg=x'",
            "stands beside apppot.contract",
        ),
        (
            "apppot.version=1 apppot.link=/l apppot.link=/m apppot.contract=link",
            "'apppot.link=/m'",
            "repeats",
        ),
    ] {
        let error = error(line);
        assert!(
            error.contains(token) && error.contains(what),
            "{line}: {error}"
        );
    }
}

#[test]
fn a_contract_that_fits_stays_on_the_line() {
    let contract = command(&["a b"]);
    let encoded = encode(&contract, 4096, Some(Carrier::Link)).unwrap();
    assert_eq!(encoded.document, None);
    assert_eq!(encoded.words[0], "apppot.version=1");
    let line = encoded.words.join(" ");
    assert_eq!(
        decode(line.as_bytes()),
        Ok(Found::Here(Box::new(contract.clone())))
    );
    // The limit counts each word with one space.
    let len = line.len() + 1;
    assert!(encode(&contract, len, None).is_ok());
    let split = encode(&contract, len - 1, Some(Carrier::Link)).unwrap();
    assert!(split.document.is_some());
}

#[test]
fn a_contract_that_does_not_fit_goes_by_the_link() {
    let contract = command(&[&"x".repeat(5000)]);
    let encoded = encode(&contract, 4096, Some(Carrier::Link)).unwrap();
    assert_eq!(
        encoded.words,
        [
            "apppot.version=1",
            "apppot.link=/dev/ttyS0",
            "apppot.contract=link"
        ]
    );
    let found = decode(encoded.words.join(" ").as_bytes());
    let elsewhere = Found::Elsewhere {
        carrier: Carrier::Link,
        link: "/dev/ttyS0".into(),
    };
    assert_eq!(found, Ok(elsewhere));
    let document = encoded.document.unwrap();
    assert_eq!(document::decode(document.as_bytes()), Ok(contract));
}

#[test]
fn an_environment_keeps_off_the_line_where_it_can() {
    let contract = Contract {
        env: vec![("TOKEN".into(), "secret".into())],
        ..command(&["x"])
    };
    let encoded = encode(&contract, 4096, Some(Carrier::Link)).unwrap();
    assert!(!encoded.words.join(" ").contains("secret"));
    assert!(encoded.document.unwrap().contains("TOKEN%3Dsecret"));
    let encoded = encode(&contract, 4096, None).unwrap();
    assert!(encoded
        .words
        .contains(&"apppot.env=TOKEN%3Dsecret".to_owned()));
}

#[test]
fn what_cannot_be_carried_is_an_error() {
    let long = command(&["x", &"y".repeat(4096)]);
    let many = command(&["x"; 400_000]);
    let longer = command(&[&" ".repeat(2 << 20)]);
    let unlinked = Contract {
        link: None,
        ..long.clone()
    };
    for (contract, limit, other, token, what) in [
        (&long, 4096, None, "'apppot.arg=yyy", "4096 is the most"),
        (
            &longer,
            4096,
            Some(Carrier::Link),
            "'apppot.arg=%20",
            "4194304 is the most",
        ),
        (
            &many,
            4096,
            Some(Carrier::Link),
            "'apppot.arg=x'",
            "4194304 is the most",
        ),
        (
            &unlinked,
            4096,
            Some(Carrier::Link),
            "'apppot.contract=link'",
            "needs apppot.link",
        ),
        (
            &long,
            20,
            Some(Carrier::Link),
            "'apppot.link=/dev/ttyS0'",
            "20 is the most",
        ),
        (&command(&["\0"]), 4096, None, "'apppot.arg=%00'", "NUL"),
    ] {
        let error = encode(contract, limit, other).unwrap_err().to_string();
        assert!(error.contains(token) && error.contains(what), "{error}");
    }
}
