//! Any byte stream gives the same frames and the same error however it is cut, and the frames give
//! the bytes again that they came from.
#![no_main]

use apppot_contract::link::{Decoder, LinkError};
use libfuzzer_sys::fuzz_target;

/// The frames of `pieces`, written again one after the other, and how the stream ended.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Option<LinkError>) {
    let mut decoder = Decoder::default();
    let mut written = Vec::new();
    for piece in pieces {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frame.encode(&mut written),
                Ok(None) => break,
                Err(error) => return (written, Some(error)),
            }
        }
    }
    (written, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((&size, stream)) = data.split_first() else {
        return;
    };
    let whole = read([stream].into_iter());
    assert!(stream.starts_with(&whole.0));
    let size = usize::from(size).max(1);
    assert_eq!(read(stream.chunks(size)), whole);
});
