//! What the superblock of an ext4 filesystem says about it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Facts for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Size, bytes.
    pub size: u64,
    /// Bytes that are free.
    pub free: u64,
    /// UUID, as it is written.
    pub uuid: String,
    /// Label; may be empty.
    pub label: String,
}

impl Facts {
    /// Reads the superblock of the filesystem that begins at byte `start`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(file: &File, start: u64) -> io::Result<Self> {
        let mut block = [0; 1024];
        file.read_exact_at(&mut block, start + 1024)?;
        let word = |at: usize| {
            u64::from(u32::from_le_bytes([
                block[at],
                block[at + 1],
                block[at + 2],
                block[at + 3],
            ]))
        };
        let large = word(96) & 0x80 != 0;
        let high = |at: usize| if large { word(at) << 32 } else { 0 };
        let block_size = 1024u64 << word(24).min(6);
        let label: Vec<u8> = block[120..136]
            .iter()
            .copied()
            .take_while(|byte| *byte != 0)
            .collect();
        let hex: String = block[104..120]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let parts = [
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        ];
        Ok(Facts {
            size: (word(4) | high(336)).saturating_mul(block_size),
            free: (word(12) | high(344)).saturating_mul(block_size),
            uuid: parts.join("-"),
            label: crate::error::shown(&label),
        })
    }
}
