//! base → modify → changes → merge onto the base gives the modified tree, also twice.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use apppot_snapshot::base::Base;
use apppot_snapshot::diff::Action;
use common::{assert_same, base, changes, copy, fresh, merge_file, sh, skip, state};

/// The tree that is changed, as any user can make it.
const BASE: &str = r"
    mkdir -p etc usr/bin home/user var/log var/cache dir/sub 'odd names'
    echo root:x:0:0 >etc/passwd; echo 1234 >etc/machine-id
    echo same >same; echo kept >kept; echo first >content; touch -d @1000 content
    echo x >usr/bin/tool; chmod 755 usr/bin/tool
    echo one >dir/one; echo two >dir/sub/two; echo three >file-to-dir
    ln -s same link; ln -s loop loop; ln same hard; echo pair >pair; ln pair pair2
    mkfifo pipe; truncate -s 3M holes; echo end >>holes
    echo log >var/log/messages
    touch -d @12345.678901234 kept
";

/// What a user does to it.
const CHANGES: &str = r"
    echo new >new; mkdir newdir; echo deep >newdir/deep; touch empty
    printf 'othEr' >content; printf '\n' >>content; touch -d @1000 content
    chmod 4711 usr/bin/tool; rm -r dir; echo 'now a file' >dir
    rm file-to-dir; mkdir file-to-dir; echo in >file-to-dir/in
    rm link; ln -s /etc/passwd link; ln -s b a; ln -s a b
    echo changed >>pair; ln kept kept2; rm pipe; mkfifo -m 600 pipe2
    echo more >>holes; truncate -s 5M holes; echo logged >var/log/messages
    touch -d @-5.25 same; echo 99 >etc/machine-id; mkdir -m 1777 sticky
    mkdir -p usr/lib/apppot; echo agent >usr/lib/apppot/agent
    touch 'odd names/ two
lines'
";

/// What only root can do, beforehand and then.
const ROOT_BASE: &str = r"
    cp /bin/true cap; setcap cap_net_raw+ep cap; mknod null c 1 3; mkdir owned
    cp cap cap2; setcap cap_chown+ep cap2
";
const ROOT_CHANGES: &str = r"
    chown 1000:4000000000 etc/passwd; setcap cap_chown+ep cap; rm null; mknod null c 1 5
    mknod sda b 8 0; chown 77:88 owned; chown -h 5:6 link; setcap -r cap2
    cp /bin/true newcap; setcap cap_sys_admin+ep newcap
";

fn round_trip(base_script: &str, changes_script: &str) {
    let directory = tempfile::tempdir().unwrap();
    let root = fresh(directory.path(), "root");
    sh(&root, base_script);
    let odd = OsStr::from_bytes(b"odd names/\xff\xfe\x01'\"*");
    std::fs::write(root.join(odd), "x").unwrap();
    let copied = directory.path().join("copy");
    copy(&root, &copied);
    let base = base(&root);

    sh(&root, changes_script);
    std::fs::rename(root.join(odd), root.join(OsStr::from_bytes(b"\x80"))).unwrap();
    let archive = directory.path().join("changes.tar.zst");
    let written = changes(&base, &root, &archive);
    assert_eq!(std::fs::metadata(&archive).unwrap().len(), written.len);

    merge_file(&archive, &copied).unwrap();
    equal_but_for_exclusions(&root, &copied);
    merge_file(&archive, &copied).unwrap();
    equal_but_for_exclusions(&root, &copied);
    let again = directory.path().join("again.tar.zst");
    changes(&base, &copied, &again);
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    assert!(
        bytes(&archive) == bytes(&again),
        "the archive depends on the place"
    );
    no_leftovers(&copied);
}

fn equal_but_for_exclusions(modified: &Path, merged: &Path) {
    let read = |root: &Path, path: &str| std::fs::read(root.join(path)).unwrap();
    assert_eq!(read(merged, "etc/machine-id"), b"1234\n");
    assert_eq!(read(merged, "var/log/messages"), b"log\n");
    assert!(!merged.join("usr/lib/apppot").exists());
    let excluded = ["etc/machine-id", "var/log/messages"];
    let kept = |root| {
        let mut state = state(root);
        state.retain(|entry| !excluded.contains(&&*String::from_utf8_lossy(&entry.path)));
        state
    };
    assert_same(&kept(merged), &kept(modified));
}

fn no_leftovers(root: &Path) {
    let temporary = |name: &[u8]| name.windows(14).any(|part| part == b".apppot-merge-");
    assert!(!state(root).iter().any(|entry| temporary(&entry.path)));
}

#[test]
fn what_a_user_changes_is_merged_exactly() {
    round_trip(BASE, CHANGES);
}

#[test]
fn what_only_root_can_change_is_merged_exactly() {
    if !common::is_root() {
        return skip("owners, devices and capabilities need root");
    }
    round_trip(
        &format!("{BASE}{ROOT_BASE}"),
        &format!("{CHANGES}{ROOT_CHANGES}"),
    );
}

#[test]
fn nothing_changed_is_an_archive_without_changes() {
    let directory = tempfile::tempdir().unwrap();
    let root = fresh(directory.path(), "root");
    sh(&root, BASE);
    let base = base(&root);
    let archive = directory.path().join("changes.tar.zst");
    let written = changes(&base, &root, &archive);
    assert_eq!(written.manifest.real_changes().count(), 0);
    merge_file(&archive, &root).unwrap();
}

#[test]
fn changes_are_only_what_changed() {
    let directory = tempfile::tempdir().unwrap();
    let root = fresh(directory.path(), "root");
    sh(&root, BASE);
    let base = base(&root);
    sh(
        &root,
        "printf 'wirst\\n' >content; touch -d @1000 content; chmod 600 kept; rm -r dir",
    );
    let written = changes(&base, &root, &directory.path().join("c"));
    let shown: Vec<String> = written
        .manifest
        .real_changes()
        .map(|change| {
            let sign = match change.action {
                Action::Put(_) => '+',
                Action::Meta(_) => '~',
                _ => '-',
            };
            format!("{sign}{}", String::from_utf8_lossy(&change.path))
        })
        .collect();
    assert_eq!(shown, ["~", "+content", "-dir", "~kept"]);
}

#[test]
fn a_sparse_file_of_4_gib_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let root = fresh(directory.path(), "root");
    let copied = directory.path().join("copy");
    copy(&root, &copied);
    let base = base(&root);
    sh(
        &root,
        "truncate -s 4G big; printf x | dd of=big bs=1 seek=3000000000 conv=notrunc status=none",
    );
    let archive = directory.path().join("changes.tar.zst");
    let written = changes(&base, &root, &archive);
    assert!(written.len < 4096, "{}", written.len);
    merge_file(&archive, &copied).unwrap();
    assert_same(&state(&copied), &state(&root));
    let blocks = std::os::unix::fs::MetadataExt::blocks;
    assert!(blocks(&std::fs::metadata(copied.join("big")).unwrap()) < 8192);
}

#[test]
fn tar_reads_what_is_new() {
    let directory = tempfile::tempdir().unwrap();
    let root = fresh(directory.path(), "root");
    let base = base(&root);
    let long = "d".repeat(120);
    sh(
        &root,
        &format!("{BASE}\nmkdir -p {long}; echo x >{long}/{long}; touch -d @7.5 {long}/{long}"),
    );
    changes(&base, &root, &directory.path().join("c.tar.zst"));
    if std::process::Command::new("zstd")
        .arg("-V")
        .output()
        .is_err()
    {
        return skip("there is no zstd program");
    }
    let out = fresh(directory.path(), "out");
    sh(&out, "zstd -dqc ../c.tar.zst | tar -xp; rm .apppot-changes");
    sh(&root, "rm etc/machine-id var/log/messages; touch -r ../out/etc etc; touch -r ../out/var/log var/log; touch -r ../out .");
    let names_and_data = |root: &Path| state(root);
    assert_same(&names_and_data(&out), &names_and_data(&root));
}

#[test]
fn a_base_is_read_as_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let root = fresh(directory.path(), "root");
    sh(&root, BASE);
    let base = base(&root);
    let mut bytes = Vec::new();
    base.write(&mut bytes).unwrap();
    assert_eq!(Base::read(&bytes[..]).unwrap(), base);
    for len in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        assert!(Base::read(&bytes[..len]).is_err());
    }
}

#[test]
fn a_hundred_thousand_files() {
    let directory = common::in_memory();
    let root = fresh(directory.path(), "root");
    let copied = directory.path().join("copy");
    copy(&root, &copied);
    let base = base(&root);
    for at in 0..100 {
        let sub = fresh(&root, &format!("d{at}"));
        for file in 0..1000 {
            std::fs::write(sub.join(format!("f{file}")), format!("{at} {file}")).unwrap();
        }
    }
    let archive = directory.path().join("changes.tar.zst");
    changes(&base, &root, &archive);
    for _ in 0..2 {
        merge_file(&archive, &copied).unwrap();
        assert_same(&state(&copied), &state(&root));
    }
}
