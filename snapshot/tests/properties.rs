//! Any two trees: the changes from one to the other, merged into the one, give the other.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::Path;
use std::process::Command;

use apppot_snapshot::rules::Rules;
use common::{assert_same, base, changes, copy, fresh, merge_file, state};
use proptest::prelude::*;

/// What a path stands for in the model.
#[derive(Debug, Clone)]
enum Item {
    File {
        content: Vec<u8>,
        mode: u32,
    },
    Directory {
        mode: u32,
    },
    Symlink(String),
    Fifo,
    /// Another name of the first file of the tree that is there.
    Link(String),
}

/// A tree: paths with items and times. What lies below something that is no directory is not made.
type Model = BTreeMap<String, (Item, i32)>;

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "a-b", "c"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn item() -> impl Strategy<Value = Item> {
    let mode = prop::sample::select(vec![0o700u32, 0o755, 0o1777, 0o2750]);
    let content = prop::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        3 => (content, mode.clone()).prop_map(|(content, mode)| Item::File { content, mode }),
        3 => mode.prop_map(|mode| Item::Directory { mode }),
        1 => "[a-c]{1,3}".prop_map(Item::Symlink),
        1 => Just(Item::Fifo),
        2 => path().prop_map(Item::Link),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    // Few different times, so that files often change without them.
    prop::collection::btree_map(path(), (item(), 0..3i32), 0..12)
}

/// The second tree has much of the first.
fn pair() -> impl Strategy<Value = (Model, Model)> {
    (model(), model(), any::<u64>()).prop_map(|(first, new, keep)| {
        let kept = first.iter().enumerate();
        let kept = kept.filter(|(at, _)| keep >> (at % 64) & 1 == 1);
        let mut second: Model = kept
            .map(|(_, (path, item))| (path.clone(), item.clone()))
            .collect();
        second.extend(new);
        (first, second)
    })
}

fn build(root: &Path, model: &Model) {
    for (path, (item, _)) in model {
        let place = root.join(path);
        let above = place.parent().unwrap().symlink_metadata();
        if !above.is_ok_and(|above| above.is_dir()) {
            continue;
        }
        let mode =
            |mode| std::fs::set_permissions(&place, PermissionsExt::from_mode(mode)).unwrap();
        match item {
            Item::File {
                content,
                mode: bits,
            } => {
                std::fs::write(&place, content).unwrap();
                mode(*bits);
            }
            Item::Directory { mode: bits } => {
                std::fs::create_dir(&place).unwrap();
                mode(*bits);
            }
            Item::Symlink(target) => symlink(target, &place).unwrap(),
            Item::Fifo => {
                let made = Command::new("mkfifo").arg(&place).status().unwrap();
                assert!(made.success());
            }
            Item::Link(to) => {
                let _ = std::fs::hard_link(root.join(to), &place);
            }
        }
    }
    // Backwards: children before their directories.
    for (path, (_, time)) in model.iter().rev() {
        let place = root.join(path);
        if place.symlink_metadata().is_ok() {
            set_time(&place, *time);
        }
    }
    set_time(root, 7);
}

fn set_time(place: &Path, time: i32) {
    use rustix::fs::{utimensat, AtFlags, Timespec, Timestamps, CWD};
    let stamp = Timespec {
        tv_sec: i64::from(time) * 1000,
        tv_nsec: i64::from(time) * 7,
    };
    let times = Timestamps {
        last_access: stamp,
        last_modification: stamp,
    };
    utimensat(CWD, place, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn merging_the_changes_gives_the_other_tree((first, second) in pair()) {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (fresh(directory.path(), "old"), fresh(directory.path(), "new"));
        build(&old, &first);
        build(&new, &second);
        let merged = directory.path().join("merged");
        copy(&old, &merged);
        let archive = directory.path().join("changes.tar.zst");
        changes(&base(&old), &new, &archive);
        for _ in 0..2 {
            merge_file(&archive, &merged).unwrap();
            assert_same(&state(&merged), &state(&new));
        }
    }

    #[test]
    fn judging_a_path_is_judging_its_names_one_by_one(
        patterns in prop::collection::vec("!?/?[a-c*]{1,3}(/[a-c*]{1,2})?/?", 0..5),
        path in path(),
    ) {
        let mut rules = Rules::everything();
        let valid = patterns.iter().all(|pattern| rules.add(pattern).is_ok());
        prop_assume!(valid);
        let mut verdict = apppot_snapshot::rules::Verdict::Keep;
        for (at, _) in path.match_indices('/') {
            verdict = rules.judge(&path.as_bytes()[..at], true, verdict);
        }
        verdict = rules.judge(path.as_bytes(), false, verdict);
        prop_assert_eq!(verdict, rules.judge_whole(path.as_bytes(), false));
    }
}
