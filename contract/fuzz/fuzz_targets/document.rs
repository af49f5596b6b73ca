//! Any document is decoded without a panic; a contract found in it stands its own check and is read
//! the same again after it has been written.
#![no_main]

use apppot_contract::document::{decode, decode_user_data, encode, encode_pointer, Document};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(Document::Elsewhere(pointer)) = decode_user_data(text) {
        let written = encode_pointer(&pointer);
        let again = decode_user_data(written.as_bytes());
        assert_eq!(again, Ok(Document::Elsewhere(pointer)));
    }
    if let Ok(contract) = decode(text) {
        assert_eq!(contract.check(), Ok(()));
        let written = encode(&contract);
        let again = decode(written.as_bytes()).expect("what was read can be written");
        assert_eq!(again, contract);
        assert_eq!(encode(&again), written);
    }
});
