//! Any tar in an archive with a good checksum: merging it ends, and leaves what is beside the root
//! alone. The manifest is the input; the rest of the tar is what it announces, or is cut short.
#![no_main]

use std::fs::{self, File};

use apppot_snapshot::archive::{forge, Archive, Manifest};
use apppot_snapshot::merge::{merge, Options};
use libfuzzer_sys::fuzz_target;

fn packed(tar: &[u8]) -> Vec<u8> {
    let mut bytes = zstd::encode_all(tar, 1).expect("memory");
    let len = (bytes.len() + 56).next_multiple_of(512) - bytes.len();
    bytes.extend_from_slice(&0x184d_2a5au32.to_le_bytes());
    bytes.extend_from_slice(&(len as u32 - 8).to_le_bytes());
    bytes.resize(bytes.len() + len - 56, 0);
    bytes.extend_from_slice(b"apppot-checksum1");
    let hash = *blake3::hash(&bytes).as_bytes();
    bytes.extend_from_slice(&hash);
    bytes
}

fuzz_target!(|input: &[u8]| {
    let tar = match Manifest::decode(input) {
        Ok(manifest) => forge(&manifest),
        Err(_) => input.to_vec(),
    };
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("root");
    fs::create_dir(&root).expect("a directory");
    fs::write(directory.path().join("outside"), "x").expect("a file");
    let path = directory.path().join("archive");
    fs::write(&path, packed(&tar)).expect("a file");
    let options = Options {
        check_base: false,
        privileged: false,
        max_bytes: 1 << 20,
        ..Options::default()
    };
    if let Ok(archive) = Archive::open(File::open(&path).expect("a file")) {
        let _ = merge(archive, &root, &options);
    }
    assert_eq!(
        fs::read(directory.path().join("outside")).expect("it is there"),
        b"x"
    );
    assert_eq!(
        fs::read_dir(directory.path()).expect("it is there").count(),
        3
    );
});
