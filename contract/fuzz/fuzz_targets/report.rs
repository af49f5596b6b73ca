//! Any report is decoded without a panic and is read the same again after it has been written,
//! unless its texts are longer than a written report carries.
#![no_main]

use apppot_contract::link::MAX_PAYLOAD;
use apppot_contract::Report;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(report) = Report::decode(text) {
        let written = report.encode();
        assert!(written.len() <= MAX_PAYLOAD);
        let again = Report::decode(&written).expect("what was read can be written");
        if text.len() < 4096 {
            assert_eq!(again, report);
        }
    }
});
