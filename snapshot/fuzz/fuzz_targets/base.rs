//! Any recorded base is read without a panic, and one that is read is written the same again.
#![no_main]

use apppot_snapshot::base::Base;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let packed = zstd::encode_all(input, 1).expect("memory");
    for bytes in [input, &packed] {
        if let Ok(base) = Base::read(bytes) {
            let mut written = Vec::new();
            base.write(&mut written).expect("memory");
            assert_eq!(
                Base::read(&written[..]).expect("what was read can be written"),
                base
            );
        }
    }
});
