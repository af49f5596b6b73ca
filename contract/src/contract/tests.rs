use super::*;
use crate::document;
use crate::store::Url;

fn decode(tokens: &str) -> Result<Contract, Error> {
    let lines = tokens.replace(' ', "\n");
    document::decode(format!("#apppot/1\n{lines}\n").as_bytes())
}

fn error(tokens: &str) -> String {
    match decode(tokens) {
        Err(error) => error.to_string(),
        Ok(contract) => panic!("{tokens}: {contract:?}"),
    }
}

/// Asserts that `tokens` make the default contract with `change` made to it, and are what is
/// written for it.
fn reads_as(tokens: &str, change: impl FnOnce(&mut Contract)) {
    let mut contract = Contract::default();
    change(&mut contract);
    assert_eq!(decode(tokens), Ok(contract.clone()), "{tokens}");
    let text = document::encode(&contract);
    for token in tokens.split(' ') {
        assert!(text.lines().any(|line| line == token), "{token}: {text}");
    }
}

fn command(args: &[&str]) -> Workload {
    Workload::Command(args.iter().map(Into::into).collect())
}

const STORED: &str = "apppot.boot=system apppot.deadline=1 apppot.store=report,http://h/r%3Fs%3D1";

#[test]
fn objects_are_named_by_urls() {
    let url = |text: &str| Url::new(text).unwrap();
    reads_as(STORED, |c| {
        c.boot = Boot::System;
        c.deadline = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1));
        c.store.report = Some(url("http://h/r?s=1"));
    });
    let stdout = format!("{STORED} apppot.store=stdout,http://h/0 apppot.store=stdout,http://h/1");
    let contract = decode(&stdout).unwrap();
    assert_eq!(
        contract.store.stdout,
        [url("http://h/0"), url("http://h/1")]
    );
    let shown = format!("{contract:?}");
    assert!(!shown.contains("s=1"), "{shown}");
}

#[test]
fn objects_need_and_exclude_others() {
    let object = |name: &str| format!("apppot.store={name},http://h/o");
    let (files, results) = (object("files"), object("results"));
    let many = vec![object("stdout"); 65].join(" ");
    for (tokens, named) in [
        (object("stdout"), "needs an object for the report"),
        (object("report"), "needs apppot.deadline"),
        (
            format!("apppot.deadline=1 {}", object("report")),
            "needs apppot.boot",
        ),
        (
            format!("{STORED} {}", object("report")),
            "repeats an object",
        ),
        (
            format!("{STORED} {}", object("else")),
            "names an unknown object",
        ),
        (format!("{STORED} {many}"), "one segment too many"),
        (format!("{STORED} apppot.link=/x"), "excludes apppot.link"),
        (
            format!("{STORED} apppot.terminal=1,1"),
            "excludes apppot.terminal",
        ),
        (format!("{STORED} apppot.stdin=/x"), "excludes a ring"),
        (
            format!("{STORED} {}", object("stdin")),
            "needs apppot.stdin=link",
        ),
        (format!("{STORED} {files} {results}"), "and only then"),
        (
            format!("{STORED} apppot.files=link,/x {files}"),
            "and only then",
        ),
        (
            format!("{STORED} apppot.files=disk,/x {files} {results}"),
            "needs apppot.files=link",
        ),
        (
            String::from("apppot.store=report,ftp://h/o%3Fsecret"),
            "is no URL",
        ),
        (
            String::from("apppot.store=report,http://h/o,x%3Fsecret"),
            "3 fields",
        ),
    ] {
        let error = error(&tokens);
        assert!(
            error.contains(named) && !error.contains("secret"),
            "{tokens}: {error}"
        );
    }
}

#[test]
fn a_pointer_stands_alone() {
    let pointer = "apppot.document=http://h/o%3Fsecret";
    let read = |tokens: &str| {
        let lines = tokens.replace(' ', "\n");
        document::decode_user_data(format!("#apppot/1\n{lines}\n").as_bytes())
    };
    for beside in ["", "apppot.grace=9", "apppot.store=report,http://h/r"] {
        let tokens = format!("{pointer} apppot.deadline=1 {beside}");
        assert!(
            matches!(read(&tokens), Ok(document::Document::Elsewhere(_))),
            "{tokens}"
        );
        let error = error(&tokens);
        assert!(
            error.contains("user-data only") && !error.contains("secret"),
            "{error}"
        );
    }
    for (beside, named) in [
        ("", "needs apppot.deadline"),
        ("apppot.deadline=1 apppot.arg=x", "beside other keys"),
        ("apppot.deadline=1 apppot.boot=system", "beside other keys"),
        (
            "apppot.deadline=1 apppot.store=stdout,http://h/o",
            "beside other keys",
        ),
        ("apppot.document=http://h/o", "repeats a key"),
    ] {
        let error = read(&format!("{pointer} {beside}"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(named) && !error.contains("secret"),
            "{beside}: {error}"
        );
    }
}

#[test]
fn every_key_is_read_and_written() {
    reads_as("apppot.id=job-1", |c| c.id = "job-1".into());
    reads_as("apppot.link=/dev/ttyS0", |c| {
        c.link = Some("/dev/ttyS0".into())
    });
    reads_as("apppot.jobdir=/a%20b", |c| c.jobdir = "/a b".into());
    reads_as("apppot.tmpdir=/tmp", |c| c.tmpdir = Some("/tmp".into()));
    reads_as("apppot.arg=", |c| c.workload = command(&[""]));
    reads_as("apppot.arg=ls apppot.arg=-l apppot.arg=a,b", |c| {
        c.workload = command(&["ls", "-l", "a,b"]);
    });
    reads_as("apppot.shell=yes", |c| c.workload = Workload::Shell);
    reads_as("apppot.stdin=link", |c| c.stdin = Stdin::Link);
    reads_as("apppot.stdin=/dev/ubdb", |c| {
        c.stdin = Stdin::Ring("/dev/ubdb".into())
    });
    reads_as("apppot.env=A%3D apppot.env=B%3D%3D%20b", |c| {
        c.env = vec![("A".into(), "".into()), ("B".into(), "= b".into())];
    });
    reads_as("apppot.hostname=h", |c| c.hostname = Some("h".into()));
    reads_as("apppot.network=eth0,10.0.2.15/24,10.0.2.2,10.0.2.3", |c| {
        c.network = Some(Network {
            interface: "eth0".into(),
            address: [10, 0, 2, 15].into(),
            prefix: 24,
            gateway: [10, 0, 2, 2].into(),
            nameserver: [10, 0, 2, 3].into(),
        });
    });
    reads_as("apppot.deadline=1500", |c| {
        c.deadline = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
    });
    reads_as("apppot.grace=0", |c| c.grace = Duration::ZERO);
    reads_as("apppot.boot=system", |c| c.boot = Boot::System);
}

#[test]
fn compound_values_are_read_and_written() {
    for (word, writes) in [("memory", Writes::Memory), ("device", Writes::Device)] {
        let tokens = format!("apppot.root=ext4,/dev/ubda1 apppot.writes={word}");
        reads_as(&tokens, |c| {
            c.root = Some(Root {
                filesystem: "ext4".into(),
                source: "/dev/ubda1".into(),
                writes,
            });
        });
    }
    reads_as(
        "apppot.mount=hostfs,/a%2Cb,/c,ro apppot.mount=hostfs,/,/d,rw",
        |c| {
            let mount = |source: &str, target: &str, read_only| Mount {
                channel: Channel::Hostfs,
                source: source.into(),
                target: target.into(),
                read_only,
            };
            c.mounts = vec![mount("/a,b", "/c", true), mount("/", "/d", false)];
        },
    );
    reads_as(
        "apppot.mount=9p,share0,/c,ro apppot.mount=virtiofs,share1,/d,rw",
        |c| {
            let mount = |channel, source: &str, target: &str, read_only| Mount {
                channel,
                source: source.into(),
                target: target.into(),
                read_only,
            };
            c.mounts = vec![
                mount(Channel::NineP, "share0", "/c", true),
                mount(Channel::Virtiofs, "share1", "/d", false),
            ];
        },
    );
    reads_as(
        "apppot.changes=/dev/ubdc,own apppot.changes=/a%2Cb,any",
        |c| {
            let changes = |source: &str, any_base| Changes {
                source: source.into(),
                any_base,
            };
            c.changes = vec![changes("/dev/ubdc", false), changes("/a,b", true)];
        },
    );
    let user = User {
        name: "j.doe".into(),
        uid: 1000,
        group: "staff".into(),
        gid: 50,
        groups: vec![],
        account: None,
    };
    let tokens = "apppot.user=j.doe apppot.uid=1000 apppot.group=staff apppot.gid=50";
    reads_as(tokens, |c| c.user = Some(user.clone()));
    reads_as(&format!("{tokens} apppot.groups=4,24"), |c| {
        c.user = Some(User {
            groups: vec![4, 24],
            ..user.clone()
        });
    });
    reads_as(&format!("{tokens} apppot.account=www-data"), |c| {
        c.user = Some(User {
            account: Some("www-data".into()),
            ..user.clone()
        });
    });
    reads_as("apppot.terminal=24,80 TERM=xterm-256color", |c| {
        c.terminal = Some(Terminal {
            term: "xterm-256color".into(),
            rows: 24,
            columns: 80,
        });
    });
}

#[test]
fn left_out_parts_have_defaults() {
    assert_eq!(decode("TERM=xterm"), Ok(Contract::default()));
    let terminal = decode("apppot.terminal=1,2").unwrap().terminal.unwrap();
    assert_eq!(terminal.term, "dumb");
    let root = decode("apppot.root=squashfs,/dev/ubda")
        .unwrap()
        .root
        .unwrap();
    assert_eq!(root.writes, Writes::Memory);
}

#[test]
fn keys_that_may_come_once_say_so() {
    for token in [
        "apppot.id=x",
        "apppot.link=/x",
        "apppot.root=ext4,x",
        "apppot.writes=memory",
        "apppot.jobdir=/x",
        "apppot.tmpdir=/x",
        "apppot.user=x",
        "apppot.uid=1",
        "apppot.group=x",
        "apppot.gid=1",
        "apppot.groups=1",
        "apppot.shell=yes",
        "apppot.stdin=null",
        "apppot.terminal=1,1",
        "TERM=x",
        "apppot.hostname=x",
        "apppot.network=x,1.1.1.1/8,1.1.1.2,1.1.1.3",
        "apppot.deadline=1",
        "apppot.grace=1",
        "apppot.boot=direct",
    ] {
        let error = error(&format!("{token} {token}"));
        assert_eq!(error, format!("boot argument '{token}' repeats a key"));
    }
}

#[test]
fn bad_values_are_named() {
    for (token, what) in [
        ("apppot.nonsense=1", "is not known to this version"),
        ("apppot.arg=%zz", "neither plain nor a %XX escape"),
        ("apppot.arg=%2", "neither plain nor a %XX escape"),
        ("apppot.arg=a%00", "holds a NUL byte"),
        ("apppot.jobdir=/a%00", "holds a NUL byte"),
        ("apppot.root=ext4,a%00", "holds a NUL byte"),
        ("apppot.root=e%00,a", "holds a NUL byte"),
        ("apppot.root=,/dev/x", "names no filesystem"),
        ("apppot.root=%FF,/dev/x", "is not UTF-8 text"),
        ("apppot.root=ext4", "has 1 fields where 2 belong"),
        ("apppot.root=ext4,a,b", "has 3 fields where 2 belong"),
        ("apppot.writes=disk", "neither memory nor device"),
        ("apppot.changes=/x,all", "neither its own nor any base"),
        ("apppot.changes=x,own", "no absolute path"),
        ("apppot.mount=hostfs,/a%00,/b,ro", "holds a NUL byte"),
        ("apppot.mount=hostfs,/a,b,ro", "is no absolute path"),
        ("apppot.mount=hostfs,/a,/b,wo", "neither ro nor rw"),
        (
            "apppot.mount=nfs,/a,/b,ro",
            "names a channel that is unknown here",
        ),
        ("apppot.mount=hostfs,/a,/b", "has 3 fields where 4 belong"),
        ("apppot.jobdir=work", "is no absolute path"),
        ("apppot.jobdir=", "is no absolute path"),
        ("apppot.tmpdir=./x", "is no absolute path"),
        ("apppot.link=ttyS0", "is no absolute path"),
        ("apppot.stdin=file", "is no absolute path"),
        ("apppot.id=", "is no usable name"),
        ("apppot.id=a/b", "is no usable name"),
        ("apppot.id=a%00b", "holds a NUL byte"),
        ("apppot.user=a:b", "is no usable name"),
        ("apppot.user=a%0Ab", "is no usable name"),
        ("apppot.group=a,b", "is no usable name"),
        ("apppot.hostname=%FF", "is not UTF-8 text"),
        ("apppot.network=e", "has 1 fields where 4 belong"),
        (
            "apppot.network=,1.1.1.1/8,1.1.1.1,1.1.1.1",
            "names no network interface",
        ),
        (
            "apppot.network=.,1.1.1.1/8,1.1.1.1,1.1.1.1",
            "names no network interface",
        ),
        (
            "apppot.network=a/b,1.1.1.1/8,1.1.1.1,1.1.1.1",
            "names no network interface",
        ),
        (
            "apppot.network=e123456789012345,1.1.1.1/8,1.1.1.1,1.1.1.1",
            "names no network interface",
        ),
        (
            "apppot.network=e,1.1.1.1,1.1.1.1,1.1.1.1",
            "without the bits",
        ),
        (
            "apppot.network=e,1.1.1.1/33,1.1.1.1,1.1.1.1",
            "more bits of a network",
        ),
        ("apppot.network=e,1.1.1.1/x,1.1.1.1,1.1.1.1", "is no number"),
        (
            "apppot.network=e,1.1.1.1/8,1.1.1,1.1.1.1",
            "no IPv4 address",
        ),
        ("apppot.network=e,1.1.1.1/8,1.1.1.1,::1", "no IPv4 address"),
        (
            "apppot.network=e,256.1.1.1/8,1.1.1.1,1.1.1.1",
            "no IPv4 address",
        ),
        ("apppot.uid=-1", "is no number"),
        ("apppot.uid=+1", "is no number"),
        ("apppot.uid=", "is no number"),
        ("apppot.uid=0x10", "is no number"),
        (
            "apppot.uid=4294967296",
            "is no number, or one that is too large",
        ),
        ("apppot.uid=4294967295", "is no usable id"),
        ("apppot.gid=4294967295", "is no usable id"),
        ("apppot.groups=1,4294967295", "is no usable id"),
        ("apppot.groups=", "is no number"),
        ("apppot.groups=1,,2", "is no number"),
        ("apppot.shell=no", "takes only 'yes'"),
        ("apppot.terminal=24", "has 1 fields where 2 belong"),
        ("apppot.terminal=24,65536", "too large"),
        ("apppot.terminal=24,", "is no number"),
        ("TERM=%FF", "is not UTF-8 text"),
        ("apppot.deadline=soon", "is no number"),
        ("apppot.deadline=18446744073709551616", "too large"),
        ("apppot.grace=1.5", "is no number"),
        ("apppot.boot=fast", "neither direct nor system"),
    ] {
        let error = error(token);
        assert!(
            error.starts_with(&format!("boot argument '{token}' ")),
            "{error}"
        );
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn environment_errors_name_the_variable_only() {
    for (token, shown) in [
        ("apppot.env=PASS", "'apppot.env=PASS' is no NAME=value"),
        ("apppot.env=%3Dsecret", "'apppot.env=' is no NAME=value"),
        ("apppot.env=", "'apppot.env=' is no NAME=value"),
        (
            "apppot.env=PASS%3Dsecret%00",
            "'apppot.env=PASS' holds a NUL",
        ),
        ("apppot.env=PASS%3Dsecret%", "'apppot.env=PASS' has a byte"),
        ("apppot.env=PASS=secret", "'apppot.env=PASS' has a byte"),
    ] {
        let error = error(token);
        assert!(
            error.contains(shown) && !error.contains("secret"),
            "{error}"
        );
    }
}

#[test]
fn parts_that_belong_together_are_all_wanted() {
    for (tokens, named) in [
        ("apppot.writes=memory", "'apppot.writes' needs apppot.root"),
        ("apppot.groups=1", "'apppot.groups' needs apppot.user"),
        (
            "apppot.user=x apppot.uid=1 apppot.group=x",
            "'apppot.gid' is missing",
        ),
        (
            "apppot.uid=1 apppot.group=x apppot.gid=1",
            "'apppot.user' is missing",
        ),
        ("apppot.user=x apppot.gid=1", "'apppot.uid' is missing"),
        (
            "apppot.user=x apppot.uid=1 apppot.gid=1",
            "'apppot.group' is missing",
        ),
        (
            "apppot.shell=yes apppot.arg=x",
            "'apppot.shell' excludes apppot.arg",
        ),
    ] {
        let error = error(tokens);
        assert!(error.contains(named), "{tokens}: {error}");
    }
}

#[test]
fn a_contract_that_would_be_read_otherwise_does_not_stand_the_check() {
    type Change = fn(&mut Contract);
    let bad: [(&str, Change); 9] = [
        ("'apppot.arg'", |c| c.workload = Workload::Command(vec![])),
        ("'A=B'", |c| c.env = vec![("A=B".into(), "c".into())]),
        ("'apppot.env='", |c| c.env = vec![("".into(), "c".into())]),
        ("'null'", |c| c.stdin = Stdin::Ring("null".into())),
        ("'apppot.jobdir=x'", |c| c.jobdir = "x".into()),
        ("'apppot.arg=%00'", |c| c.workload = command(&["\0"])),
        ("'apppot.id='", |c| c.id = String::new()),
        ("'apppot.grace=", |c| c.grace = Duration::MAX),
        ("'apppot.hostname=a%0A'", |c| {
            c.hostname = Some("a\n".into())
        }),
    ];
    assert_eq!(Contract::default().check(), Ok(()));
    for (token, change) in bad {
        let mut contract = Contract::default();
        change(&mut contract);
        let error = contract.check().unwrap_err().to_string();
        assert!(error.contains(token), "{error}");
    }
}
