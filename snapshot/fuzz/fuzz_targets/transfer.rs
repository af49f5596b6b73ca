//! Any bytes as a stream of results: unpacking them ends, leaves what is beside the directory alone, and
//! no temporary files.
#![no_main]

use std::fs;

use apppot_snapshot::transfer::{
    list, unpack, Limits, Listing, Options, Patterns, Reader, Unpacked,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("root");
    fs::create_dir(&root).expect("a directory");
    fs::write(directory.path().join("outside"), "x").expect("a file");
    std::os::unix::fs::symlink("..", root.join("up")).expect("a link");
    let options = Options {
        limits: Limits {
            bytes: 1 << 20,
            entries: 100,
        },
        owner: None,
        sent: Some(&Listing::default()),
        patterns: &Patterns::default(),
        delete: true,
        rest: None,
        told: &mut |_| {},
    };
    // Checksums stand in the way of every other input.
    let sound = with_checksums(input);
    let _ = unpack(&root, &mut Reader::new(&sound[..]), options, &mut Unpacked::default());
    assert_eq!(fs::read(directory.path().join("outside")).expect("it is there"), b"x");
    assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 2);
    for item in list(&root, true).expect("it is there").items {
        assert!(!item.path.starts_with(b".apppot-new"));
        assert_eq!(item.stamp.mode & 0o6000, 0);
    }
});

/// Mends the checksum of every block that looks like a header.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut sound = input.to_vec();
    for block in sound.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    sound
}
