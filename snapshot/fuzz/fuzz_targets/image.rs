//! Any image is read without a panic and without end. The input is laid over a sound filesystem:
//! pairs of an offset (three bytes) and a byte.
#![no_main]

use std::io;
use std::sync::OnceLock;

use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{Blocks, Ext4, Tree};
use libfuzzer_sys::fuzz_target;

const SOUND: &[u8] = include_bytes!("../seeds/sound.img.zst");

/// The sound image, with some bytes changed.
struct Damaged(Vec<(usize, u8)>);

fn sound() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| zstd::decode_all(SOUND).expect("it is sound"))
}

impl Blocks for Damaged {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let part = sound()
            .get(start..)
            .and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        for (at, byte) in &self.0 {
            let place = at.checked_sub(start).and_then(|at| buffer.get_mut(at));
            if let Some(place) = place {
                *place = *byte;
            }
        }
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let changes = input.chunks_exact(4).map(|change| {
        let at = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        (at % sound().len(), change[3])
    });
    if let Ok(ext4) = Ext4::open(Box::new(Damaged(changes.collect())), 0) {
        if let Ok(listing) = ext4.walk(&Rules::everything()) {
            for found in &listing.found {
                if let Ok(file) = ext4.open(found) {
                    let mut byte = [0];
                    let _ = file.data_after(0);
                    let _ = file.read_at(&mut byte, 0);
                }
            }
        }
    }
});
