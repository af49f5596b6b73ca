//! Archives that mean harm: nothing outside the root, nothing half believed.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use apppot_snapshot::archive::{Archive, Manifest};
use apppot_snapshot::base::{identify, Source};
use apppot_snapshot::diff::{Action, Change};
use apppot_snapshot::entry::{Content, Entry, Kind, Meta};
use apppot_snapshot::merge::{is_merged, merge, remember, Options};
use apppot_snapshot::Error;
use common::{base, changes, fresh, merge_file, sh, state};

/// An honest archive as its tar, and back: the tests forge what is in between.
fn packed(tar: &[u8]) -> Vec<u8> {
    let mut bytes = zstd::encode_all(tar, 3).unwrap();
    let len = (bytes.len() + 56).next_multiple_of(512) - bytes.len();
    bytes.extend_from_slice(&0x184d_2a5au32.to_le_bytes());
    bytes.extend_from_slice(&(len as u32 - 8).to_le_bytes());
    bytes.resize(bytes.len() + len - 56, 0);
    bytes.extend_from_slice(b"apppot-checksum1");
    let hash = *blake3::hash(&bytes).as_bytes();
    bytes.extend_from_slice(&hash);
    bytes
}

fn unpacked(archive: &Path) -> Vec<u8> {
    zstd::decode_all(File::open(archive).unwrap()).unwrap()
}

struct Scene {
    directory: tempfile::TempDir,
    root: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = fresh(directory.path(), "root");
        sh(&root, "echo outside >../outside; mkdir ../other");
        Scene { directory, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An archive with these bytes.
    fn archive(&self, bytes: &[u8]) -> PathBuf {
        let path = self.path("forged");
        File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }

    /// An archive of exactly these entries, made from a tree of another shape: the manifest is
    /// replaced by one that says what the test wants.
    fn forged(&self, entries: &[Entry]) -> PathBuf {
        let changes = entries.iter().map(|entry| Change {
            path: entry.path.clone(),
            prior: None,
            action: Action::Put(entry.clone()),
        });
        let tar = apppot_snapshot::archive::forge(&Manifest::new(
            identify([], Source::Image),
            changes.collect(),
        ));
        self.archive(&packed(&tar))
    }

    fn untouched(&self) {
        assert_eq!(std::fs::read(self.path("outside")).unwrap(), b"outside\n");
        assert_eq!(std::fs::read_dir(self.path("other")).unwrap().count(), 0);
    }
}

fn entry(path: &str, kind: Kind) -> Entry {
    let mode = 0o755;
    let meta = match kind {
        Kind::Link(_) => Meta::default(),
        _ => Meta {
            mode,
            ..Meta::default()
        },
    };
    Entry {
        path: path.into(),
        kind,
        meta,
    }
}

fn empty_file() -> Kind {
    Kind::File(Content {
        hash: *blake3::hash(b"").as_bytes(),
        ..Content::default()
    })
}

fn anywhere(archive: &Path, root: &Path) -> apppot_snapshot::Result<()> {
    let options = Options {
        check_base: false,
        ..Options::default()
    };
    let archive = Archive::open(File::open(archive).unwrap())?;
    merge(archive, root, &options).map(drop)
}

#[test]
fn paths_that_leave_the_root_are_refused() {
    for path in [
        "../outside",
        "/etc/x",
        "a/../../outside",
        "a//b",
        ".",
        "..",
        "a/",
        "x\0y",
    ] {
        let scene = Scene::new();
        let error = anywhere(&scene.forged(&[entry(path, empty_file())]), &scene.root);
        assert!(
            matches!(error, Err(Error::Malformed(_))),
            "{path} {error:?}"
        );
        scene.untouched();
    }
}

#[test]
fn symbolic_links_are_not_followed() {
    let scene = Scene::new();
    let other = scene.path("other").into_os_string().into_encoded_bytes();
    for inside in [
        entry("link/x", empty_file()),
        entry("link/x", Kind::Directory),
        entry("link/x/y", empty_file()),
    ] {
        // Planted earlier in the same archive.
        let planted = entry("link", Kind::Symlink(other.clone()));
        let error = anywhere(&scene.forged(&[planted, inside.clone()]), &scene.root);
        assert!(error.is_err());
        // There already.
        let error = anywhere(&scene.forged(&[inside]), &scene.root);
        assert!(error.is_err());
        scene.untouched();
        sh(&scene.root, "rm -f link");
    }
}

#[test]
fn a_planted_link_is_replaced_not_written_through() {
    let scene = Scene::new();
    sh(&scene.root, "ln -s ../outside file; ln -s ../other dir");
    let entries = [entry("dir", Kind::Directory), entry("file", empty_file())];
    anywhere(&scene.forged(&entries), &scene.root).unwrap();
    scene.untouched();
    assert!(scene.root.join("dir").symlink_metadata().unwrap().is_dir());
    assert!(scene
        .root
        .join("file")
        .symlink_metadata()
        .unwrap()
        .is_file());
}

#[test]
fn hard_links_stay_inside() {
    for leader in ["../outside", "/etc/passwd", "link/outside", "missing"] {
        let scene = Scene::new();
        sh(&scene.root, "ln -s .. link");
        let archive = scene.forged(&[entry("z", Kind::Link(leader.into()))]);
        assert!(anywhere(&archive, &scene.root).is_err(), "{leader}");
        scene.untouched();
    }
    let scene = Scene::new();
    let archive = scene.forged(&[entry("z", Kind::Link(b"usr/sbin/apppot-init".to_vec()))]);
    let error = anywhere(&archive, &scene.root).unwrap_err();
    assert!(error.to_string().contains("AppPot's own"), "{error}");
}

#[test]
fn own_files_are_never_replaced_or_removed() {
    let scene = Scene::new();
    sh(&scene.root, "mkdir -p usr/sbin var/lib/apppot; echo agent >usr/sbin/apppot-init; echo x >var/lib/apppot/x; echo y >var/y");
    anywhere(
        &scene.forged(&[entry("usr/sbin/apppot-init", empty_file())]),
        &scene.root,
    )
    .unwrap();
    assert!(anywhere(&scene.forged(&[entry("var", empty_file())]), &scene.root).is_err());
    let agent = std::fs::read(scene.root.join("usr/sbin/apppot-init")).unwrap();
    assert_eq!(agent, b"agent\n");
    assert!(scene.root.join("var/lib/apppot/x").exists());
}

#[test]
fn entries_out_of_order_or_twice_are_refused() {
    let scene = Scene::new();
    for (first, second) in [("a", "a"), ("b", "a"), ("a/b", "a")] {
        let archive = scene.forged(&[entry(first, empty_file()), entry(second, empty_file())]);
        let error = anywhere(&archive, &scene.root).unwrap_err();
        assert!(error.to_string().contains("out of order"), "{error}");
    }
}

fn honest(scene: &Scene) -> PathBuf {
    let before = base(&scene.root);
    sh(
        &scene.root,
        "echo content >file; mkdir dir; echo other >dir/file",
    );
    let archive = scene.path("changes.tar.zst");
    changes(&before, &scene.root, &archive);
    sh(&scene.root, "rm -r file dir");
    archive
}

#[test]
fn truncated_and_damaged_archives_are_told_apart() {
    let scene = Scene::new();
    let archive = honest(&scene);
    let whole = std::fs::read(&archive).unwrap();
    let open = |bytes: &[u8]| Archive::open(File::open(scene.archive(bytes)).unwrap()).err();
    assert!(open(&whole).is_none());
    for len in [100, 511, whole.len() - 1, whole.len() - 512] {
        assert!(
            matches!(open(&whole[..len]), Some(Error::Truncated)),
            "{len}"
        );
    }
    for at in [8, whole.len() / 2, whole.len() - 1, whole.len() - 40] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let error = open(&bytes);
        assert!(
            matches!(error, Some(Error::Checksum | Error::Truncated)),
            "{at} {error:?}"
        );
    }
    assert!(matches!(open(b""), Some(Error::NotArchive(_))));
    assert!(matches!(open(&[b'x'; 4096]), Some(Error::NotArchive(_))));
    let other = packed(&vec![0; 10240]);
    assert!(matches!(open(&other), Some(Error::NotArchive(_))));
}

#[test]
fn a_streamed_archive_is_damaged_at_its_end_at_the_latest() {
    let scene = Scene::new();
    let whole = std::fs::read(honest(&scene)).unwrap();
    let merged = |bytes: &[u8]| {
        let archive = Archive::stream(File::open(scene.archive(bytes)).unwrap())?;
        merge(archive, &scene.root, &Options::default())
    };
    merged(&whole).unwrap();
    for at in (0..whole.len()).step_by(11) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        assert!(merged(&bytes).is_err(), "{at}");
    }
}

#[test]
fn members_must_be_what_the_manifest_says() {
    let scene = Scene::new();
    let tar = unpacked(&honest(&scene));
    // Every byte after the manifest matters; a sample of them is enough to know.
    let start = tar.len() - 10 * 512;
    for at in (start..tar.len()).step_by(37) {
        let mut forged = tar.clone();
        forged[at] ^= 0x40;
        let error = anywhere(&scene.archive(&packed(&forged)), &scene.root);
        assert!(matches!(error, Err(Error::Malformed(_))), "{at} {error:?}");
    }
    for more in [1, 512, 10240] {
        let forged = [&tar[..], &vec![0; more]].concat();
        assert!(anywhere(&scene.archive(&packed(&forged)), &scene.root).is_err());
    }
    let short = &tar[..tar.len() - 1536];
    assert!(anywhere(&scene.archive(&packed(short)), &scene.root).is_err());
}

#[test]
fn bombs_hit_limits_before_anything_is_written() {
    let scene = Scene::new();
    let bomb = Kind::File(Content {
        size: 1 << 50,
        ..Content::default()
    });
    let error = anywhere(&scene.forged(&[entry("bomb", bomb)]), &scene.root);
    assert!(matches!(error, Err(Error::Limit(_))), "{error:?}");
    assert_eq!(state(&scene.root).len(), 1);
    // More changes than are kept in memory.
    let mut manifest = Manifest::new(identify([], Source::Image), Vec::new());
    manifest.header.records = 3 << 20;
    let tar = apppot_snapshot::archive::forge(&manifest);
    let error = anywhere(&scene.archive(&packed(&tar)), &scene.root).unwrap_err();
    assert!(error.to_string().contains("too many changes"), "{error}");
    // A manifest of a terabyte that is not there.
    let tar = unpacked(&honest(&scene));
    let mut forged = tar;
    forged[124..135].copy_from_slice(b"77777777777");
    assert!(anywhere(&scene.archive(&packed(&forged)), &scene.root).is_err());
}

#[test]
fn another_base_is_noticed_before_anything_is_changed() {
    let scene = Scene::new();
    sh(&scene.root, "echo one >one; echo two >two; mkdir d");
    let before = base(&scene.root);
    sh(&scene.root, "echo ONE >one; echo new >d/new; rm two");
    let archive = scene.path("changes.tar.zst");
    changes(&before, &scene.root, &archive);
    for script in [
        "echo other >one; rm d/new; echo two >two",
        "rm -r d one two; mkdir d; echo two >two",
        "echo ONE >one; rm -r d; echo x >d",
    ] {
        let other = fresh(scene.directory.path(), "base2");
        sh(
            &other,
            "echo one >one; echo two >two; mkdir d; mkdir d/new; rmdir d/new",
        );
        sh(&other, &script.replace("rm d/new;", ""));
        let unchanged = state(&other);
        let error = merge_file(&archive, &other);
        assert!(
            matches!(error, Err(Error::OtherBase(_))),
            "{script} {error:?}"
        );
        assert_eq!(state(&other), unchanged);
        std::fs::remove_dir_all(other).unwrap();
    }
}

#[test]
fn an_unprivileged_merge_makes_nothing_privileged() {
    let scene = Scene::new();
    let mut file = entry("su", empty_file());
    file.meta.mode = 0o6755;
    let archive = scene.forged(&[file]);
    let options = Options {
        check_base: false,
        privileged: false,
        ..Options::default()
    };
    let archive = Archive::open(File::open(archive).unwrap()).unwrap();
    merge(archive, &scene.root, &options).unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&scene.root.join("su").metadata().unwrap());
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn a_tree_remembers_what_was_merged() {
    let scene = Scene::new();
    let id = [7; 32];
    assert!(!is_merged(&scene.root, &id).unwrap());
    remember(&scene.root, &id).unwrap();
    assert!(is_merged(&scene.root, &id).unwrap());
    assert!(!is_merged(&scene.root, &[8; 32]).unwrap());
}
