//! Any manifest is decoded without a panic; what is decoded is encoded to the same bytes.
#![no_main]

use apppot_snapshot::archive::{forge, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(manifest) = Manifest::decode(input) {
        let tar = forge(&manifest);
        assert_eq!(&tar[512..512 + input.len()], input);
    }
});
