//! Whatever a layout holds, there is an image or an error.
#![no_main]

use std::io::Read;

use apppot_image::oci::{Blobs, Descriptor, Digest, Image, Platform, Reference};
use apppot_image::Result;
use libfuzzer_sys::fuzz_target;

/// Every blob is the same bytes.
struct Same(Vec<u8>);

impl Blobs for Same {
    fn open(&self, _: &Descriptor) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(std::io::Cursor::new(self.0.clone())))
    }
}

fuzz_target!(|input: &[u8]| {
    let blobs = Same(input.to_owned());
    let _ = Image::find(&blobs, input, &Digest::of(input), &Platform::default());
    if let Ok(text) = std::str::from_utf8(input) {
        if let Ok(reference) = Reference::parse(text) {
            let again = Reference::parse(&reference.to_string()).expect("it is a name");
            assert_eq!((again.registry, again.digest), (reference.registry, reference.digest));
        }
    }
});
