//! Streams that must not have their way.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// A stream of these members, with a start and an end.
fn forged(members: &[Vec<u8>]) -> Vec<u8> {
    let start = tar::global(RESULTS, &[(b"APPPOT.files", b"1")]);
    let end = tar::global(b"apppot-end", &[(b"APPPOT.end", b"1")]);
    [&[start][..], members, &[end, vec![0; 1024]]]
        .concat()
        .concat()
}

fn member(path: &str, kind: Kind) -> Vec<u8> {
    let meta = Meta {
        mode: 0o6777,
        ..Meta::default()
    };
    let size = match &kind {
        Kind::File(content) => content.stored() as usize,
        _ => 0,
    };
    let entry = Entry {
        path: path.into(),
        kind,
        meta,
    };
    let mut bytes = tar::header(&entry);
    bytes.resize(bytes.len() + size.next_multiple_of(512), b'x');
    bytes
}

fn file(path: &str, size: u64) -> Vec<u8> {
    member(
        path,
        Kind::File(Content {
            size,
            ..Content::default()
        }),
    )
}

/// Unpacks a stream beside a file that must stay as it is, and in a directory from which links
/// lead there.
fn hostile(stream: &[u8]) -> Put {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(place.path().join("outside"), "whole").unwrap();
    fs::create_dir(place.path().join("beside")).unwrap();
    symlink("../beside", root.join("lead")).unwrap();
    symlink("../outside", root.join("lead2")).unwrap();
    let put = put(stream, &root, Some(&Listing::default()), true, LIMITS);
    assert_eq!(fs::read(place.path().join("outside")).unwrap(), b"whole");
    assert_eq!(
        fs::read_dir(place.path().join("beside")).unwrap().count(),
        0
    );
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 3);
    for item in list(&root, true).unwrap().items {
        assert!(
            !item.path.starts_with(b".apppot-new"),
            "a temporary file is left"
        );
        assert_eq!(item.stamp.mode & 0o6000, 0, "{item:?}");
    }
    put
}

#[test]
fn nothing_leaves_its_place() {
    for path in [
        "../x",
        "/x",
        "a/../../x",
        "a//b",
        ".",
        "..",
        "a/.",
        "",
        "a/\0b",
    ] {
        let error = hostile(&forged(&[file(path, 1)])).result.unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{path}: {error}");
    }
    // Through a symbolic link that was there, or that came first.
    for members in [
        vec![file("lead/x", 1)],
        vec![
            member("a", Kind::Symlink(b"../beside".into())),
            file("a/x", 1),
        ],
        vec![
            member("a", Kind::Symlink(b"/etc".into())),
            member("a/b", Kind::Directory),
        ],
    ] {
        let error = hostile(&forged(&members)).result.unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error}");
    }
    // In the place of one, and through hard links.
    let put = hostile(&forged(&[file("lead2", 1)]));
    put.result.unwrap();
    assert_eq!(put.notices.len(), 1, "{:?}", put.notices);
    for target in ["../outside", "/etc/passwd", "b"] {
        let link = member("a", Kind::Link(target.into()));
        assert!(hostile(&forged(&[link])).result.is_err(), "{target}");
    }
    let link = member("z", Kind::Link(b"lead2".into()));
    hostile(&forged(&[link, file("zz", 1)])).result.unwrap();
}

#[test]
fn kinds_that_do_not_travel_are_refused() {
    for kind in [Kind::Character(1, 3), Kind::Block(8, 0)] {
        let error = hostile(&forged(&[member("a", kind)])).result.unwrap_err();
        assert!(error.to_string().contains("kind"), "{error}");
    }
}

#[test]
fn members_come_in_order_and_once() {
    for members in [
        [file("b", 0), file("a", 0)],
        [file("a", 0), file("a", 0)],
        [file("a/b", 0), member("a", Kind::Directory)],
    ] {
        let error = hostile(&forged(&members)).result.unwrap_err();
        assert!(error.to_string().contains("order"), "{error}");
    }
}

#[test]
fn limits_hold_whatever_is_announced() {
    let limits = Limits {
        bytes: 1000,
        entries: 3,
    };
    let root = tempfile::tempdir().unwrap();
    let go = |stream: &[u8]| {
        put(
            stream,
            root.path(),
            Some(&Listing::default()),
            false,
            limits,
        )
    };
    let many: Vec<_> = ["a", "b", "c", "d"].map(|name| file(name, 1)).into();
    for stream in [
        forged(&[file("big", 1001)]),
        forged(&[file("a", 600), file("b", 600)]),
        forged(&many),
    ] {
        let error = go(&stream).result.unwrap_err();
        assert!(matches!(error, Error::Limit(_)), "{error}");
    }
    let announced = [
        (&b"APPPOT.files"[..], &b"1"[..]),
        (b"APPPOT.bytes", b"1001"),
    ];
    let error = go(&tar::global(RESULTS, &announced)).result.unwrap_err();
    assert!(matches!(error, Error::Limit(_)), "{error}");
}

#[test]
fn streams_that_are_cut_off_are_noticed() {
    let stream = forged(&[file("a", 700), member("b", Kind::Directory), file("b/c", 3)]);
    hostile(&stream).result.unwrap();
    for end in (0..stream.len()).step_by(97).chain([stream.len() - 1]) {
        let error = hostile(&stream[..end]).result.unwrap_err();
        assert!(matches!(error, Error::Truncated), "{end}: {error}");
    }
}

#[test]
fn damaged_streams_are_refused_or_harmless() {
    let content = Content {
        size: 3 << 20,
        runs: Some(vec![(0, 512), (1 << 20, 700)]),
        ..Content::default()
    };
    let long = "n".repeat(200);
    let stream = forged(&[
        file(&long, 10),
        member("s", Kind::File(content)),
        member("t", Kind::Symlink(long.clone().into_bytes())),
    ]);
    hostile(&stream).result.unwrap();
    // Every byte is the fuzz target's; these are some of each header.
    for (at, byte) in (0..stream.len())
        .step_by(37)
        .zip([0, b'9', 0xff].into_iter().cycle())
    {
        let mut damaged = stream.clone();
        damaged[at] = byte;
        let _ = hostile(&damaged);
    }
}
