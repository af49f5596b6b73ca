//! What the superblock of a filesystem says about it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use apppot_snapshot::uuid;

/// Facts for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bytes that are in use.
    pub used: u64,
    /// Its inodes, where the filesystem counts them.
    pub inodes: Option<u64>,
    /// UUID, as it is written; empty where the filesystem has none.
    pub uuid: String,
    /// Label; may be empty.
    pub label: String,
}

impl Facts {
    /// Reads the superblock of the filesystem of that type which begins at byte `start`. Of types that are not
    /// known here it has nothing to say.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(file: &File, start: u64, filesystem: &str) -> io::Result<Self> {
        let mut block = [0; 2048];
        file.read_exact_at(&mut block, start)?;
        Ok(match filesystem {
            "ext4" => ext4(&block[1024..]),
            "squashfs" => squashfs(&block),
            "erofs" => erofs(&block[1024..]),
            _ => Facts::default(),
        })
    }
}

fn u32_at(block: &[u8], at: usize) -> u64 {
    let word = block[at..].first_chunk().copied().unwrap_or_default();
    u64::from(u32::from_le_bytes(word))
}

fn u64_at(block: &[u8], at: usize) -> u64 {
    u32_at(block, at) | u32_at(block, at + 4) << 32
}

fn text(padded: &[u8]) -> String {
    let end = padded.iter().position(|byte| *byte == 0);
    crate::error::shown(&padded[..end.unwrap_or(padded.len())])
}

/// `Documentation/filesystems/ext4/super.rst`.
fn ext4(block: &[u8]) -> Facts {
    let large = u32_at(block, 96) & 0x80 != 0;
    let high = |at: usize| if large { u32_at(block, at) << 32 } else { 0 };
    let block_size = 1024u64 << u32_at(block, 24).min(6);
    let (blocks, free) = (u32_at(block, 4) | high(336), u32_at(block, 12) | high(344));
    Facts {
        used: blocks.saturating_sub(free).saturating_mul(block_size),
        inodes: Some(u32_at(block, 0).saturating_sub(u32_at(block, 16))),
        uuid: uuid(&block[104..120]),
        label: text(&block[120..136]),
    }
}

/// `struct squashfs_super_block` of Linux: `inodes`, `bytes_used`.
fn squashfs(block: &[u8]) -> Facts {
    Facts {
        used: u64_at(block, 40),
        inodes: Some(u32_at(block, 4)),
        ..Facts::default()
    }
}

/// `struct erofs_super_block` of Linux: `inos`, `blocks`, `uuid`, `volume_name`.
fn erofs(block: &[u8]) -> Facts {
    let block_size = 1u64 << block[12].min(16);
    Facts {
        used: u32_at(block, 36).saturating_mul(block_size),
        inodes: Some(u64_at(block, 16)),
        uuid: uuid(&block[48..64]),
        label: text(&block[64..80]),
    }
}
