//! Any copy-on-write file is read without a panic and without end. The input is laid over a sound one: a
//! byte that says of which format, then an offset (three bytes) and a byte each.
#![no_main]

use std::io;

use apppot_snapshot::tree::{Blocks, Overlay};
use libfuzzer_sys::fuzz_target;

const CLUSTER: usize = 1 << 16;
const SIZE: u64 = 3 * CLUSTER as u64 + 700;

struct Bytes(Vec<u8>);

impl Blocks for Bytes {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let part = self
            .0
            .get(start..)
            .and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, part: &[u8]) {
    bytes.resize(bytes.len().max(at + part.len()), 0);
    bytes[at..at + part.len()].copy_from_slice(part);
}

/// User-Mode Linux's: the second and the tenth sector are written.
fn cow() -> Vec<u8> {
    let mut bytes = b"OOOM".to_vec();
    for number in [3, 0, 0, SIZE as u32, 512, 4096, 0] {
        bytes.extend(number.to_be_bytes());
    }
    put(&mut bytes, 8192, &[0b10, 0b10]);
    put(&mut bytes, 12288 + SIZE as usize + 512, &[0]);
    bytes
}

/// QEMU's: the second cluster is written, the third zeros.
fn qcow2() -> Vec<u8> {
    let mut bytes = b"QFI\xfb".to_vec();
    let cluster = CLUSTER as u64;
    for (at, number) in [(4, 3), (20, 16), (36, 1), (100, 104), (108, 12)] {
        put(&mut bytes, at, &u32::to_be_bytes(number));
    }
    put(&mut bytes, 104, b"ApPt");
    for (at, number) in [
        (24, SIZE.next_multiple_of(512)),
        (40, cluster),
        (112, SIZE),
        (CLUSTER, 2 * cluster),
        (2 * CLUSTER + 8, 3 * cluster),
        (2 * CLUSTER + 16, 1),
    ] {
        put(&mut bytes, at, &u64::to_be_bytes(number));
    }
    put(&mut bytes, 3 * CLUSTER, &[0xee; 1000]);
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some((format, changes)) = input.split_first() else {
        return;
    };
    let mut bytes = if format & 1 == 0 { cow() } else { qcow2() };
    for change in changes.chunks_exact(4) {
        let at = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        let at = at % bytes.len();
        bytes[at] = change[3];
    }
    let len = bytes.len() as u64;
    let image = Bytes(vec![1; SIZE as usize]);
    if let Ok(overlay) = Overlay::above((Box::new(Bytes(bytes)), len), (Box::new(image), SIZE)) {
        for at in (0..=SIZE).step_by(CLUSTER / 4) {
            let _ = overlay.read_at(&mut [0; 600], at);
        }
        let _ = overlay.read_at(&mut vec![0; SIZE as usize], 0);
        let _ = overlay.read_at(&mut [0; 2], u64::MAX - 1);
    }
});
