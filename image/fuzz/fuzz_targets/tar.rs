//! Any archive, and any two layers, give an error or a filesystem, without a panic and without end. Checksums of headers are
//! made right, so that what is behind them is reached.
#![no_main]

use std::fs::File;

use apppot_image::{Archive, Filesystem, Limits, Options};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{memfd_create, MemfdFlags};

/// Gives each block the checksum that it would have as a header.
fn signed(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_owned();
    for block in bytes.chunks_exact_mut(512) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    let file = memfd_create("image", MemfdFlags::CLOEXEC).expect("there is memory");
    let options = Options {
        limits: Limits {
            bytes: 1 << 20,
            names: 200,
        },
        ..Options::default()
    };
    let mut filesystem = Filesystem::new(File::from(file), options).expect("the label is short");
    let archive = if first & 1 == 0 { Archive::Plain } else { Archive::Layer };
    let bytes = signed(rest);
    let (lower, upper) = bytes.split_at(bytes.len() / 1024 * 512);
    let added = filesystem.add_tar(lower, Archive::Layer).and(filesystem.add_tar(upper, archive));
    if added.is_ok() {
        let _ = filesystem.finish();
    }
});
