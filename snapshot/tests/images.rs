//! Raw images, read directly, look as their trees do, and give the same archives.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use apppot_snapshot::entry::Kind;
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{Blocks, Directory, Ext4, Tree};
use apppot_snapshot::Entry;
use common::{assert_same, changes_of, entries, fresh, listing, sh, skip};

/// Times are whole seconds: older mke2fs versions keep no more.
const TREE: &str = r"
    mkdir -p etc usr/bin many deep/er
    echo x >etc/file; chmod 4755 etc/file; ln etc/file hard; ln -s etc/file short
    ln -s $(printf 'x%.0s' $(seq 200)) long; mkfifo pipe
    truncate -s 20M sparse; echo end >>sparse; dd if=/dev/urandom of=dense bs=1k count=3000 status=none
    printf x | dd of=sparse bs=1 seek=5000000 conv=notrunc status=none
    i=0; while [ $i -lt 600 ]; do echo $i >many/a-rather-long-name-to-fill-the-blocks-$i; i=$((i+1)); done
    : >empty
    : >$(printf '\377\001')
";
const ROOT_TREE: &str = r"
    mknod null c 1 3; mknod disk b 259 1000; chown 1000:100 etc/file; chown -h 70000:4000000000 short
    cp /bin/true cap; setcap cap_net_raw+ep cap
";
const WHOLE_SECONDS: &str =
    "find . -exec touch -h -d @1700000000 {} +; touch -d @1234567890 etc/file many deep";

/// Makes an image of a directory; false when there is no mke2fs.
fn image(root: &Path, options: &str) -> Option<PathBuf> {
    let path = root.with_extension("img");
    let _ = std::fs::remove_file(&path);
    let found = std::process::Command::new("/usr/sbin/mke2fs")
        .arg("-V")
        .output();
    if found.is_err() {
        skip("there is no mke2fs");
        return None;
    }
    let script = format!(
        "mke2fs -q -F {options} -d {} {} 96M",
        root.display(),
        path.display()
    );
    sh(root, &script);
    Some(path)
}

fn rules() -> Rules {
    let mut rules = Rules::everything();
    rules.add("/lost+found").unwrap();
    rules
}

fn open(image: &Path) -> Ext4 {
    Ext4::open(Box::new(File::open(image).unwrap()), 0).unwrap()
}

/// Everything but the root, whose metadata are mke2fs's own.
fn of_image(image: &Path) -> Vec<Entry> {
    entries(&listing(&open(image), &rules())).split_off(1)
}

fn of_directory(root: &Path) -> Vec<Entry> {
    let tree = Directory::open(root, false).unwrap();
    entries(&listing(&tree, &rules())).split_off(1)
}

fn make(directory: &Path) -> PathBuf {
    let root = fresh(directory, "root");
    sh(&root, TREE);
    if common::is_root() {
        sh(&root, ROOT_TREE);
    }
    sh(&root, WHOLE_SECONDS);
    root
}

#[test]
fn images_of_every_generation_read_as_their_tree() {
    let directory = tempfile::tempdir().unwrap();
    let root = make(directory.path());
    let wanted = of_directory(&root);
    for options in [
        "-t ext4",
        "-t ext4 -b 1024",
        "-t ext4 -O 64bit,meta_bg,^resize_inode -b 1024",
        "-t ext4 -O inline_data -I 256",
        "-t ext4 -O ea_inode,^metadata_csum",
        "-t ext4 -O bigalloc -C 16384",
    ] {
        let Some(image) = image(&root, options) else {
            return;
        };
        eprintln!("{options}");
        assert_same(&of_image(&image), &wanted);
    }
    for options in ["-t ext3", "-t ext2 -I 128 -b 1024", "-t ext2 -b 4096"] {
        let Some(image) = image(&root, options) else {
            return;
        };
        eprintln!("{options}");
        assert_same(&of_image(&image), &wanted);
    }
}

#[test]
fn times_and_attributes_are_read_in_full() {
    let directory = tempfile::tempdir().unwrap();
    let root = make(directory.path());
    let Some(image) = image(&root, "-t ext4") else {
        return;
    };
    // Nanoseconds above two bits of seconds.
    let nanoseconds: u32 = 123_456_789 << 2 | 1;
    let script = format!(
        "debugfs -w -R 'sif etc/file mtime 0x80000000' {0} 2>/dev/null >/dev/null
         debugfs -w -R 'sif etc/file mtime_extra {nanoseconds}' {0} 2>/dev/null >/dev/null
         debugfs -w -R 'ea_set etc/file user.color blue' {0} 2>/dev/null >/dev/null",
        image.display()
    );
    sh(&root, &script);
    let found = of_image(&image);
    let file = found
        .iter()
        .find(|entry| entry.path == b"etc/file")
        .unwrap();
    assert_eq!(file.meta.mtime.nanoseconds, 123_456_789);
    assert_eq!(file.meta.mtime.seconds, (1 << 32) - (1 << 31));
    assert_eq!(
        file.meta.xattrs,
        [(b"user.color".to_vec(), b"blue".to_vec())]
    );
    assert_eq!(
        found
            .iter()
            .find(|entry| entry.path == b"hard")
            .unwrap()
            .kind,
        Kind::Link(b"etc/file".to_vec())
    );
}

#[test]
fn another_reader_finds_the_same_names_and_contents() {
    let directory = tempfile::tempdir().unwrap();
    let root = make(directory.path());
    let Some(image) = image(&root, "-t ext4") else {
        return;
    };
    let other = ext4_view::Ext4::load_from_path(&image).unwrap();
    for entry in of_image(&image) {
        let path = [b"/", &entry.path[..]].concat();
        let path = ext4_view::Path::try_from(&path[..]).unwrap();
        let metadata = other.symlink_metadata(path).unwrap();
        match &entry.kind {
            Kind::File(file) => {
                assert_eq!(metadata.len(), file.size);
                if file.runs.is_none() {
                    let content = other.read(path).unwrap();
                    assert_eq!(*blake3::hash(&content).as_bytes(), file.hash);
                }
            }
            Kind::Symlink(target) => {
                assert_eq!(other.read_link(path).unwrap().as_ref(), &target[..]);
            }
            Kind::Link(_) => continue,
            _ => {}
        }
        assert_eq!(metadata.mode(), entry.meta.mode);
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (entry.meta.uid, entry.meta.gid)
        );
    }
}

#[test]
fn a_tree_and_its_image_give_the_same_archive() {
    let directory = tempfile::tempdir().unwrap();
    let root = make(directory.path());
    let empty = common::base(&fresh(directory.path(), "empty"));
    let Some(image) = image(&root, "-t ext4") else {
        return;
    };
    // The root's own metadata are mke2fs's; everything else is to be the same.
    let metadata = std::fs::metadata(&root).unwrap();
    let seconds = std::os::unix::fs::MetadataExt::mtime(&metadata);
    let script = format!(
        "debugfs -w -f - {} <<. >/dev/null 2>&1\nsif / mtime @{seconds}\nsif / mtime_extra 0\n.",
        image.display()
    );
    sh(&root, &script);
    let (live, raw) = (directory.path().join("live"), directory.path().join("raw"));
    let tree = Directory::open(&root, false).unwrap();
    let live_id = changes_of(&empty, &tree, &live).id;
    let raw_id = changes_of(&empty, &open(&image), &raw).id;
    let of = |path: &Path| {
        let archive = apppot_snapshot::archive::Archive::open(File::open(path).unwrap());
        archive.unwrap().manifest
    };
    let (live_changes, raw_changes) = (of(&live).changes, of(&raw).changes);
    for (live, raw) in live_changes.iter().zip(&raw_changes) {
        assert_eq!(live, raw);
    }
    assert_eq!(live_changes.len(), raw_changes.len());
    assert_eq!(live_id, raw_id);
    assert!(std::fs::read(live).unwrap() == std::fs::read(raw).unwrap());
}

/// An image with some bytes changed.
struct Damaged(File, Vec<(u64, u8)>);

impl Blocks for Damaged {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.read_exact_at(buffer, offset)?;
        for (at, byte) in &self.1 {
            let inside = at
                .checked_sub(offset)
                .and_then(|at| buffer.get_mut(at as usize));
            if let Some(place) = inside {
                *place = *byte;
            }
        }
        Ok(())
    }
}

#[test]
fn damaged_images_are_survived() {
    let directory = tempfile::tempdir().unwrap();
    let root = make(directory.path());
    let Some(path) = image(&root, "-t ext4 -b 1024") else {
        return;
    };
    let mut seed = 1u64;
    for _ in 0..100 {
        let damage = (0..200).map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // The first megabytes hold the tables.
            ((seed >> 33) % (2 << 20), (seed >> 20) as u8)
        });
        let blocks = Damaged(File::open(&path).unwrap(), damage.collect());
        if let Ok(ext4) = Ext4::open(Box::new(blocks), 0) {
            let _ = ext4.walk(&rules());
        }
    }
    assert!(Ext4::open(Box::new(File::open("/dev/null").unwrap()), 0).is_err());
}
