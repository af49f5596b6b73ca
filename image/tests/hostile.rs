//! Archives that were made to do harm end in an error that names the member; nothing is written but the
//! image.
#![allow(clippy::unwrap_used)]

mod common;

use apppot_image::{Archive, Error};
use common::{image, import, limits, shown, Tar};
use proptest::prelude::*;

fn attempt(archive: &[u8]) -> Result<String, Error> {
    let work = tempfile::tempdir().unwrap();
    let path = work.path().join("image");
    import(&path, &[archive], Archive::Plain)?;
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 1);
    Ok(shown(&path))
}

fn refused(archive: Tar) -> String {
    attempt(&archive.end()).unwrap_err().to_string()
}

#[test]
fn paths_that_lead_out() {
    let tar = Tar::default;
    for (archive, why) in [
        (
            tar().file("/etc/passwd", ""),
            "'/etc/passwd' in the archive: its path is absolute",
        ),
        (
            tar().file("../x", ""),
            "'../x' in the archive: its path contains '..'",
        ),
        (
            tar().file("a/../../x", ""),
            "'a/../../x' in the archive: its path contains '..'",
        ),
        (
            tar().add("x", b'1', "/etc/passwd", b""),
            "'x' in the archive: its path is absolute",
        ),
        (
            tar().add("x", b'1', "../x", b""),
            "'x' in the archive: its path contains '..'",
        ),
        (
            tar().add("x", b'1', "etc/passwd", b""),
            "'x' in the archive: is a hard link to 'etc/passwd', which is not in the archive",
        ),
        (
            tar().add("s", b'2', "../..", b"").file("s/x", ""),
            "'s/x' in the archive: a symbolic link on its path leads out of the root",
        ),
        (
            tar().add("s", b'2', "s", b"").file("s/x", ""),
            "'s/x' in the archive: too many symbolic links are on its path",
        ),
        (
            tar().file("f", "").file("f/x", ""),
            "'f/x' in the archive: a file that is no directory is on its path",
        ),
        (
            tar().directory("d").add("x", b'1', "d", b""),
            "'x' in the archive: is a hard link to a directory",
        ),
        (
            tar().file(".", ""),
            "'.' in the archive: the root can only be a directory",
        ),
        (
            tar().add("x", b'2', "", b""),
            "'x' in the archive: is a symbolic link to no path",
        ),
        (
            tar().pax(&[("path", &"n".repeat(256))]).file("x", ""),
            "its name is too long",
        ),
        (
            tar().pax(&[("path", &"n/".repeat(3000))]).file("x", ""),
            "its path is too long",
        ),
        (
            tar().pax(&[("path", &"n/".repeat(1500))]).directory("x"),
            "nested deeper than 1000",
        ),
    ] {
        let error = refused(archive);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn headers_that_make_no_sense() {
    let tar = Tar::default;
    let broken = |at: usize, byte: u8| {
        let mut archive = tar().file("x", "content").end();
        archive[at] = byte;
        attempt(&archive).unwrap_err().to_string()
    };
    assert!(broken(0, b'y').contains("checksum is wrong"));
    assert!(broken(148, b'x').contains("its checksum is no number"));
    assert!(refused(tar().add("x", b'9', "", b"")).contains("'x' is of the unknown kind '9'"));
    for records in [
        vec![("size", "x")],
        vec![("mtime", "x")],
        vec![("GNU.sparse.map", "1,2,3")],
        vec![("GNU.sparse.map", "5,1,0,6"), ("GNU.sparse.size", "100")],
        vec![("GNU.sparse.map", "0,7"), ("GNU.sparse.size", "6")],
        vec![("GNU.sparse.map", "0,8"), ("GNU.sparse.size", "100")],
        vec![
            ("GNU.sparse.map", "18446744073709551615,7"),
            ("GNU.sparse.size", "100"),
        ],
        vec![("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "100")],
    ] {
        let archive = tar().pax(&records).file("x", "content").end();
        let error = attempt(&archive).unwrap_err();
        assert!(
            matches!(error, Error::Malformed(_) | Error::Truncated),
            "{records:?}: {error}"
        );
    }
    let mut long = tar();
    long.header("x", b'L', "", 1 << 30);
    assert!(refused(long).contains("a header of 1073741824 bytes"));
}

#[test]
fn archives_that_are_cut_off() {
    let archive = Tar::default().file("x", &"content ".repeat(100)).end();
    for len in [0, 1, 511, 513, 1000, 1536] {
        let error = attempt(&archive[..len]).unwrap_err();
        assert!(matches!(error, Error::Truncated), "{len}: {error}");
    }
}

#[test]
fn more_than_the_limits() {
    let work = tempfile::tempdir().unwrap();
    let with = |archive: Tar, bytes, names| {
        let mut filesystem = image(&work.path().join("image"), limits(bytes, names));
        filesystem
            .add_tar(&archive.end()[..], Archive::Plain)
            .unwrap_err()
            .to_string()
    };
    let mut bomb = Tar::default();
    bomb.header("bomb", b'0', "", 1 << 32);
    assert_eq!(
        with(bomb, 1 << 30, 10),
        "too large: 'bomb': more than 1073741824 bytes unpacked"
    );
    let twice = Tar::default().file("a", "12345").file("a", "12345");
    assert_eq!(
        with(twice, 9, 10),
        "too large: 'a': more than 9 bytes unpacked"
    );
    let many = Tar::default().directory("a").directory("b").directory("c");
    assert_eq!(with(many, 9, 2), "too large: more than 2 files");
    let huge = [
        ("GNU.sparse.map", "0,1"),
        ("GNU.sparse.size", "99999999999999999"),
    ];
    let huge = Tar::default().pax(&huge).file("a", "x");
    assert_eq!(
        with(huge, 9, 2),
        "too large: 'a': a file of 99999999999999999 bytes"
    );
    let xattr = Tar::default()
        .pax(&[("SCHILY.xattr.user.x", &"x".repeat(5000))])
        .file("a", "x");
    let mut filesystem = image(&work.path().join("image"), limits(1 << 30, 10));
    filesystem
        .add_tar(&xattr.end()[..], Archive::Plain)
        .unwrap();
    assert!(filesystem
        .finish()
        .unwrap_err()
        .to_string()
        .contains("extended attributes"));
}

#[test]
fn names_that_come_twice_are_the_last_ones() {
    let archive = Tar::default()
        .file("a", "1")
        .file("a", "2")
        .directory("b")
        .file("b", "3")
        .file("b", "4");
    assert_eq!(attempt(&archive.end()).unwrap(), "a=2 b=4");
    let archive = Tar::default()
        .file("a", "1")
        .add("a", b'1', "a", b"")
        .add("b", b'1', "a", b"")
        .add("a", b'1', "b", b"");
    assert_eq!(attempt(&archive.end()).unwrap(), "a=1 b==a");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever bytes of an archive change, there is an error or a sound filesystem.
    #[test]
    fn damage_is_survived(changes in prop::collection::vec((0usize..6000, any::<u8>()), 0..6)) {
        let archive = Tar::default()
            .pax(&[("GNU.sparse.map", "0,3,4096,4"), ("GNU.sparse.size", "10000"), ("path", "a/b")])
            .file("x", "content")
            .add("l", b'1', "a/b", b"")
            .add("long", b'L', "", b"a-long-name\0")
            .file("y", "z")
            .add("s", b'2', "a", b"")
            .file("s/t", "through");
        let mut archive = archive.end();
        for (at, byte) in changes {
            let len = archive.len();
            archive[at % len] = byte;
        }
        let work = tempfile::tempdir().unwrap();
        let path = work.path().join("image");
        let mut filesystem = image(&path, limits(1 << 24, 100));
        if filesystem.add_tar(&archive[..], Archive::Layer).is_ok() && filesystem.finish().is_ok() {
            common::check(&path);
        }
    }
}

#[test]
fn device_numbers_that_linux_has_not() {
    let mut archive = Tar::default().add("dev/x", b'3', "", b"").end();
    archive[329..337].copy_from_slice(b"0011610\0");
    archive[148..156].fill(b' ');
    let sum: u32 = archive[..512].iter().copied().map(u32::from).sum();
    archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let error = attempt(&archive).unwrap_err().to_string();
    let why = "'dev/x' in the archive: has device numbers that Linux has not: 5000, 0";
    assert!(error.contains(why), "{error}");
}
