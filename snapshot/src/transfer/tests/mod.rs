//! Trees that travel.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{symlink, FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

mod hostile;

use super::*;
use crate::entry::{Content, Entry, Kind, Meta};
use crate::{tar, Error, Result};

const LIMITS: Limits = Limits {
    bytes: 1 << 30,
    entries: 10_000,
};

/// A tree with files of all kinds.
fn tree() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    fs::create_dir_all(root.join("d/empty")).unwrap();
    fs::write(root.join("d/plain"), "plain").unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join("n\nl \u{fc}"), [0, 255, 1]).unwrap();
    fs::write(root.join("x".repeat(255)), "long").unwrap();
    fs::set_permissions(root.join("d/plain"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("../outside", root.join("link")).unwrap();
    fs::write(root.join("hard1"), "hard").unwrap();
    fs::hard_link(root.join("hard1"), root.join("hard2")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(9 << 20).unwrap();
    sparse.write_all_at(b"middle", 4 << 20).unwrap();
    std::process::Command::new("mkfifo")
        .arg(root.join("fifo"))
        .status()
        .unwrap();
    place
}

fn packed(root: &Path, items: &[&Item], cargo: Cargo) -> Vec<u8> {
    let mut stream = Vec::new();
    let told = &mut |told: Told| assert!(matches!(told, Told::Bytes(_)), "{told:?}");
    pack(root, cargo, items, &mut stream, told).unwrap();
    stream
}

struct Put {
    done: Unpacked,
    result: Result<()>,
    notices: Vec<String>,
}

fn put(stream: &[u8], root: &Path, sent: Option<&Listing>, delete: bool, limits: Limits) -> Put {
    let mut done = Unpacked::default();
    let mut notices = Vec::new();
    let options = Options {
        limits,
        owner: None,
        sent,
        patterns: &Patterns::default(),
        delete,
        rest: None,
        told: &mut |notice| match notice {
            Notice::Bytes(_) | Notice::Start(..) => {}
            Notice::Kept(..) | Notice::NotDeleted(_) => notices.push(format!("{notice:?}")),
        },
    };
    let result = unpack(root, &mut Reader::new(stream), options, &mut done);
    Put {
        done,
        result,
        notices,
    }
}

/// Name, mode, time, content, and number of names.
type File = (String, u32, (i64, i64), Vec<u8>, u64);

/// What two trees must have in common.
fn shape(root: &Path) -> Vec<File> {
    let listing = list(root, true).unwrap();
    let mut shape = Vec::new();
    for item in &listing.items {
        let path = root.join(std::ffi::OsStr::new(
            <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&item.path),
        ));
        let file = path.symlink_metadata().unwrap();
        let mut content = Vec::new();
        if file.is_file() {
            fs::File::open(&path)
                .unwrap()
                .read_to_end(&mut content)
                .unwrap();
        } else if file.is_symlink() {
            content = fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes();
        }
        let time = (file.mtime(), file.mtime_nsec());
        let links = if file.is_dir() { 0 } else { file.nlink() };
        shape.push((
            path.strip_prefix(root).unwrap().display().to_string(),
            file.mode(),
            time,
            content,
            links,
        ));
    }
    shape
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let from = tree();
    let listing = list(from.path(), true).unwrap();
    let items = listing.select(&Patterns::default());
    let stream = packed(from.path(), &items, Cargo::Files);
    assert!(
        stream.len() < 1 << 20,
        "{} bytes: holes travel",
        stream.len()
    );
    let to = tempfile::tempdir().unwrap();
    put(&stream, to.path(), None, false, LIMITS).result.unwrap();
    assert_eq!(shape(to.path()), shape(from.path()));
    assert!(to.path().join("sparse").metadata().unwrap().blocks() < 100);
    // Results take another way to their place.
    let stream = packed(from.path(), &items, Cargo::Results(&[]));
    let to = tempfile::tempdir().unwrap();
    let nothing = Listing::default();
    let put = put(&stream, to.path(), Some(&nothing), false, LIMITS);
    put.result.unwrap();
    assert_eq!(put.done.entries as usize, items.len());
    assert_eq!(shape(to.path()), shape(from.path()));
}

#[test]
fn any_tar_reads_a_stream() {
    let from = tree();
    let listing = list(from.path(), true).unwrap();
    let stream = packed(
        from.path(),
        &listing.select(&Patterns::default()),
        Cargo::Files,
    );
    let to = tempfile::tempdir().unwrap();
    fs::write(to.path().join("s"), stream).unwrap();
    let mut tar = std::process::Command::new("tar");
    tar.arg("-xpf")
        .arg(to.path().join("s"))
        .arg("-C")
        .arg(to.path());
    assert!(tar.status().unwrap().success());
    fs::remove_file(to.path().join("s")).unwrap();
    assert_eq!(shape(to.path()), shape(from.path()));
}

#[test]
fn every_change_is_found() {
    let place = tree();
    let root = place.path();
    let before = list(root, true).unwrap();
    assert!(before
        .changes(&before, &Patterns::default())
        .items
        .is_empty());
    let plain = root.join("d/plain");
    let mtime = plain.metadata().unwrap().modified().unwrap();
    // The same size and time: its ctime gives it away, once the clock has moved on.
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&plain, "PLAIN").unwrap();
    fs::File::options()
        .write(true)
        .open(&plain)
        .unwrap()
        .set_modified(mtime)
        .unwrap();
    fs::set_permissions(root.join("nothing"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(root.join("link")).unwrap();
    fs::write(root.join("d/new"), "").unwrap();
    fs::hard_link(root.join("hard1"), root.join("hard3")).unwrap();
    let after = list(root, true).unwrap();
    let changes = after.changes(&before, &Patterns::default());
    let paths: Vec<_> = changes
        .items
        .iter()
        .map(|item| String::from_utf8_lossy(&item.path))
        .collect();
    assert_eq!(
        paths,
        ["d", "d/new", "d/plain", "hard1", "hard2", "hard3", "nothing"]
    );
    assert_eq!(changes.deleted, [b"link"]);
    let only = Patterns::new(&["new"]).unwrap();
    let changes = after.changes(&before, &only);
    let paths: Vec<_> = changes
        .items
        .iter()
        .map(|item| String::from_utf8_lossy(&item.path))
        .collect();
    assert_eq!(paths, ["d", "d/new"]);
    assert!(changes.deleted.is_empty());
}

/// Sends a tree to another place, changes both, and brings the results back.
fn there_and_back(
    delete: bool,
    here: impl Fn(&Path),
    there: impl Fn(&Path),
) -> (tempfile::TempDir, Put) {
    let (home, away) = (tree(), tempfile::tempdir().unwrap());
    let sent = list(home.path(), true).unwrap();
    let stream = packed(
        home.path(),
        &sent.select(&Patterns::default()),
        Cargo::Files,
    );
    put(&stream, away.path(), None, false, LIMITS)
        .result
        .unwrap();
    let before = list(away.path(), true).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    here(home.path());
    there(away.path());
    let after = list(away.path(), true).unwrap();
    let changes = after.changes(&before, &Patterns::default());
    let stream = packed(
        away.path(),
        &changes.items,
        Cargo::Results(&changes.deleted),
    );
    let put = put(&stream, home.path(), Some(&sent), delete, LIMITS);
    (home, put)
}

#[test]
fn results_replace_what_was_sent() {
    let (home, put) = there_and_back(
        false,
        |_| {},
        |away| {
            fs::write(away.join("d/plain"), "changed").unwrap();
            fs::write(away.join("hard1"), "both").unwrap();
            fs::remove_file(away.join("nothing")).unwrap();
            fs::remove_file(away.join("link")).unwrap();
            fs::create_dir(away.join("link")).unwrap();
            fs::write(away.join("link/x"), "x").unwrap();
        },
    );
    put.result.unwrap();
    assert!(put.notices.is_empty(), "{:?}", put.notices);
    let read = |name: &str| fs::read_to_string(home.path().join(name)).unwrap();
    assert_eq!(read("d/plain"), "changed");
    assert_eq!(
        (read("hard1"), read("hard2")),
        (String::from("both"), String::from("both"))
    );
    assert_eq!(read("link/x"), "x");
    assert_eq!(read("nothing"), "", "deleted without being asked to");
}

#[test]
fn what_is_gone_there_is_removed_when_asked_for() {
    let (home, put) = there_and_back(
        true,
        |home| fs::write(home.join("d/plain"), "mine").unwrap(),
        |away| {
            fs::remove_dir_all(away.join("d")).unwrap();
            fs::remove_file(away.join("nothing")).unwrap();
        },
    );
    put.result.unwrap();
    assert!(!home.path().join("nothing").exists());
    assert!(!home.path().join("d/empty").exists());
    assert_eq!(
        fs::read_to_string(home.path().join("d/plain")).unwrap(),
        "mine"
    );
    assert_eq!(put.notices, ["NotDeleted(\"d/plain\")"]);
}

#[test]
fn what_changed_on_both_sides_is_kept_twice() {
    let (home, put) = there_and_back(
        false,
        |home| {
            fs::write(home.join("d/plain"), "mine").unwrap();
            fs::write(home.join("new"), "mine").unwrap();
            fs::write(home.join("new.apppot-kept"), "older").unwrap();
            fs::create_dir(home.join("dir")).unwrap();
            fs::write(home.join("dir/x"), "mine").unwrap();
        },
        |away| {
            for name in ["d/plain", "new", "dir"] {
                fs::write(away.join(name), "theirs").unwrap();
            }
        },
    );
    put.result.unwrap();
    let read = |name: &str| fs::read_to_string(home.path().join(name)).unwrap();
    assert_eq!(
        (read("d/plain"), read("d/plain.apppot-kept")),
        ("theirs".into(), "mine".into())
    );
    assert_eq!(
        (read("new"), read("new.apppot-kept-2")),
        ("theirs".into(), "mine".into())
    );
    assert_eq!(
        (read("dir"), read("dir.apppot-kept/x")),
        ("theirs".into(), "mine".into())
    );
    assert_eq!(read("new.apppot-kept"), "older");
    assert_eq!(put.notices.len(), 3, "{:?}", put.notices);
}

#[test]
fn set_id_bits_do_not_come_back() {
    let (home, put) = there_and_back(
        false,
        |_| {},
        |away| {
            fs::write(away.join("program"), "x").unwrap();
            fs::set_permissions(away.join("program"), fs::Permissions::from_mode(0o6755)).unwrap();
        },
    );
    put.result.unwrap();
    let mode = home.path().join("program").metadata().unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn directories_that_are_closed_take_results() {
    let close = |root: &Path| {
        fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o500)).unwrap();
    };
    let home = tree();
    close(home.path());
    let sent = list(home.path(), true).unwrap();
    let away = tree();
    fs::write(away.path().join("d/plain"), "changed").unwrap();
    let listing = list(away.path(), true).unwrap();
    let only = listing
        .items
        .iter()
        .filter(|item| item.path == b"d/plain")
        .collect::<Vec<_>>();
    let stream = packed(away.path(), &only, Cargo::Results(&[]));
    put(&stream, home.path(), Some(&sent), false, LIMITS)
        .result
        .unwrap();
    assert_eq!(
        fs::read_to_string(home.path().join("d/plain")).unwrap(),
        "changed"
    );
    assert_eq!(
        home.path().join("d").metadata().unwrap().mode() & 0o777,
        0o500
    );
    fs::set_permissions(home.path().join("d"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_full_disk_leaves_the_rest_elsewhere() {
    let (home, away) = (tempfile::tempdir().unwrap(), tree());
    let listing = list(away.path(), true).unwrap();
    let stream = packed(
        away.path(),
        &listing.select(&Patterns::default()),
        Cargo::Results(&[]),
    );
    let place = tempfile::tempdir().unwrap();
    let tar = place.path().join("rest.tar");
    let sent = Listing::default();
    let mut done = Unpacked::default();
    let mut make = || Some((fs::File::create(&tar).unwrap(), tar.clone()));
    // As on a full disk: the descriptor is of a directory that is gone: nothing can be made in it.
    let gone = home.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let held = fs::File::open(&gone).unwrap();
    fs::remove_dir(&gone).unwrap();
    let root = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    let options = Options {
        limits: LIMITS,
        owner: None,
        sent: Some(&sent),
        patterns: &Patterns::default(),
        delete: false,
        rest: Some(&mut make),
        told: &mut |_| {},
    };
    unpack(
        Path::new(&root),
        &mut Reader::new(&stream[..]),
        options,
        &mut done,
    )
    .unwrap();
    let trouble = done.trouble.unwrap();
    assert!(!trouble.lost, "{trouble:?}");
    assert_eq!(trouble.rest.unwrap().1 as usize, listing.items.len());
    let out = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("tar")
        .arg("-xpf")
        .arg(&tar)
        .arg("-C")
        .arg(out.path())
        .status();
    assert!(status.unwrap().success());
    assert_eq!(shape(out.path()), shape(away.path()));
}
