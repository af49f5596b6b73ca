//! Images equal what they were made from, file by file, and are filesystems that e2fsck finds sound.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use apppot_image::{decompress, Archive, Options};
use apppot_snapshot::tree::Directory;
use common::{
    all, assert_same, check, contents, directory, fresh, image, import, is_root, sh, skip, varied,
};

fn tar(root: &Path, options: &str) -> Vec<u8> {
    let work = root.parent().unwrap();
    let command = format!("tar -C '{}' {options} -cf out.tar .", root.display());
    sh(work, &command);
    std::fs::read(work.join("out.tar")).unwrap()
}

#[test]
fn a_directory() {
    let work = tempfile::tempdir().unwrap();
    let root = fresh(work.path(), "root");
    varied(&root);
    let path = work.path().join("image");
    let mut filesystem = image(&path, Options::default());
    filesystem
        .add_tree(&Directory::open(&root, false).unwrap())
        .unwrap();
    let summary = filesystem.finish().unwrap();
    assert_same(&contents(&path), &directory(&root));
    assert_eq!(summary.size, std::fs::metadata(&path).unwrap().len());
    if !is_root() {
        skip("owners, devices and attributes of a directory need root to be made");
    }
}

/// Whoever writes an archive into a pipe fails when nobody reads its last record to the end.
#[test]
fn an_archive_s_last_record_is_read() {
    let work = tempfile::tempdir().unwrap();
    let root = fresh(work.path(), "root");
    std::fs::write(root.join("file"), "content").unwrap();
    let archive = tar(&root, "--blocking-factor=200");
    let mut rest = &archive[..];
    let mut filesystem = image(&work.path().join("image"), Options::default());
    filesystem.add_tar(&mut rest, Archive::Plain).unwrap();
    assert_eq!(rest.len(), 0);
}

#[test]
fn archives_of_every_format() {
    let work = tempfile::tempdir().unwrap();
    let root = fresh(work.path(), "root");
    varied(&root);
    let wanted = directory(&root);
    for options in [
        "--format=posix --xattrs --xattrs-include=* --sparse --sparse-version=1.0",
        "--format=posix --xattrs --xattrs-include=* --sparse --sparse-version=0.1",
        "--format=posix --xattrs --xattrs-include=* --sparse --sparse-version=0.0",
        "--format=posix --xattrs --xattrs-include=*",
    ] {
        let path = work.path().join("image");
        import(&path, &[&tar(&root, options)], Archive::Plain).unwrap();
        assert_same(&contents(&path), &wanted);
    }
    // GNU's own format has neither nanoseconds nor attributes.
    let reduced = |mut entries: Vec<apppot_snapshot::Entry>| {
        for entry in &mut entries {
            entry.meta.xattrs.clear();
            entry.meta.mtime.nanoseconds = 0;
        }
        entries
    };
    for options in ["--format=gnu --sparse", "--format=gnu"] {
        let path = work.path().join("image");
        import(&path, &[&tar(&root, options)], Archive::Plain).unwrap();
        assert_same(&reduced(contents(&path)), &reduced(wanted.clone()));
    }
}

#[test]
fn a_file_that_is_larger_than_the_image() {
    let work = tempfile::tempdir().unwrap();
    let root = fresh(work.path(), "root");
    sh(
        &root,
        "truncate -s 5T huge; printf x | dd of=huge bs=1 seek=4000000000000 conv=notrunc 2>&1",
    );
    let path = work.path().join("image");
    let archive = tar(&root, "--sparse --format=posix");
    let summary = import(&path, &[&archive], Archive::Plain).unwrap();
    assert!(summary.size < 1 << 30);
    check(&path);
    let found = sh(work.path(), "debugfs -R 'stat huge' image 2>&1");
    assert!(found.contains("Size: 5497558138880"), "{found}");
    assert!(found.contains("(976562500):"), "{found}");
}

#[test]
fn every_compression() {
    let work = tempfile::tempdir().unwrap();
    let root = fresh(work.path(), "root");
    sh(&root, "mkdir a; seq 100000 >a/b");
    let plain = tar(&root, "--format=posix");
    std::fs::write(work.path().join("plain.tar"), &plain).unwrap();
    for command in ["cat", "gzip", "zstd -q", "xz", "bzip2"] {
        sh(work.path(), &format!("{command} <plain.tar >packed"));
        let packed = std::fs::File::open(work.path().join("packed")).unwrap();
        let (_, reader) = decompress::open(packed).unwrap();
        assert!(all(reader) == plain, "{command}");
    }
}

#[test]
fn the_same_source_gives_the_same_image() {
    let work = tempfile::tempdir().unwrap();
    let root = fresh(work.path(), "root");
    sh(&root, "mkdir a b; seq 100000 >a/b; echo x >b/c");
    let archive = tar(&root, "--format=posix");
    let image = |name: &str| {
        let path = work.path().join(name);
        import(&path, &[&archive], Archive::Plain).unwrap();
        std::fs::read(path).unwrap()
    };
    assert!(image("one") == image("two"));
}

#[test]
fn sizes_and_offsets() {
    let work = tempfile::tempdir().unwrap();
    let root = fresh(work.path(), "root");
    sh(&root, "mkdir a; seq 100000 >a/b");
    let archive = tar(&root, "--format=posix");
    for mebibytes in [32, 64, 127, 128, 129, 300, 1100, 17_000] {
        let path = work.path().join("image");
        let size = mebibytes << 20;
        let options = Options {
            size: Some(size),
            label: String::from("sixteen bytes ok"),
            ..Options::default()
        };
        let mut filesystem = image(&path, options);
        filesystem.add_tar(&archive[..], Archive::Plain).unwrap();
        let summary = filesystem.finish().unwrap();
        assert!(
            summary.size <= size && size - summary.size < 1 << 20,
            "{mebibytes} MiB"
        );
        assert_same(&contents(&path), &directory(&root));
    }
    let path = work.path().join("disk");
    let options = Options {
        start: 1 << 20,
        size: Some(64 << 20),
        ..Options::default()
    };
    let mut filesystem = image(&path, options);
    filesystem.add_tar(&archive[..], Archive::Plain).unwrap();
    filesystem.finish().unwrap();
    sh(
        work.path(),
        "dd if=disk of=partition bs=1M skip=1 2>/dev/null",
    );
    assert_same(&contents(&work.path().join("partition")), &directory(&root));
}

#[test]
fn what_does_not_fit_is_an_error_that_says_what_would() {
    let work = tempfile::tempdir().unwrap();
    let root = fresh(work.path(), "root");
    sh(&root, "head -c 40000000 /dev/urandom >big");
    let archive = tar(&root, "--format=posix");
    let with = |size| {
        let options = Options {
            size: Some(size),
            ..Options::default()
        };
        let mut filesystem = image(&work.path().join("image"), options);
        filesystem.add_tar(&archive[..], Archive::Plain)?;
        filesystem.finish()
    };
    for size in [4096, 1 << 20, 39_000_000, 40_500_000] {
        assert!(
            matches!(with(size), Err(apppot_image::Error::Size { .. })),
            "{size}"
        );
    }
    let Err(apppot_image::Error::Size { needed, .. }) = with(40_500_000) else {
        panic!("it does not fit");
    };
    with(needed).unwrap();
}

#[test]
fn resize2fs_grows_it() {
    let work = tempfile::tempdir().unwrap();
    let root = fresh(work.path(), "root");
    sh(&root, "mkdir a; seq 100000 >a/b");
    let path = work.path().join("image");
    import(&path, &[&tar(&root, "--format=posix")], Archive::Plain).unwrap();
    for size in ["1G", "17G", "150M"] {
        sh(
            work.path(),
            &format!("e2fsck -fp image; resize2fs image {size} 2>&1"),
        );
        assert_same(&contents(&path), &directory(&root));
    }
    sh(
        work.path(),
        "tune2fs -O metadata_csum image 2>&1; e2fsck -fD image -y 2>&1 || [ $? = 1 ]",
    );
    check(&path);
}
