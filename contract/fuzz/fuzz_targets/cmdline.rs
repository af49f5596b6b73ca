//! Any command line is decoded without a panic; a contract found on it can be written, and is read
//! the same again, from a command line and by the other carrier.
#![no_main]

use apppot_contract::cmdline::{decode, encode, Carrier, Found};
use apppot_contract::document;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let Ok(Found::Here(contract)) = decode(line) else {
        return;
    };
    let encoded = encode(&contract, usize::MAX, None).expect("what was read can be written");
    let again = decode(encoded.words.join(" ").as_bytes());
    assert_eq!(again, Ok(Found::Here(contract.clone())));
    if let Ok(encoded) = encode(&contract, 100, Some(Carrier::Link)) {
        if let Some(text) = encoded.document {
            assert_eq!(document::decode(text.as_bytes()), Ok(*contract));
        }
    }
});
