//! Partition tables: GPT (UEFI specification, 5.3) and MBR.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SECTOR: u64 = 512;

/// More entries than this are not looked at; the UEFI specification asks for 128.
const MAX_ENTRIES: u32 = 128;

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Number, as Linux counts: from 1, empty slots counted.
    pub(crate) number: u32,
    /// First byte.
    pub(crate) start: u64,
    /// Length, bytes.
    pub(crate) len: u64,
    /// MBR's active flag, or GPT's legacy BIOS bootable attribute.
    pub(crate) active: bool,
    /// Whether the table says that it is the root filesystem (Discoverable Partitions, x86-64).
    pub(crate) is_root: bool,
    /// The name that the table gives it; MBR has none.
    pub(crate) name: String,
}

/// `4f68bce3-e8cd-4db1-96e7-fbcaf984b709` as GPT stores it.
const ROOT_X86_64: [u8; 16] = [
    0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
];

/// Reads the table of a whole disk; `None` when there is none.
pub(crate) fn read(file: &File) -> io::Result<Option<Vec<Entry>>> {
    let mut start = [0; 1024];
    match file.read_exact_at(&mut start, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    if &start[512..520] == b"EFI PART" {
        return gpt(file, &start[512..]);
    }
    if start[510..512] == *b"\x55\xaa" {
        return Ok(Some(mbr(&start)));
    }
    Ok(None)
}

fn gpt(file: &File, header: &[u8]) -> io::Result<Option<Vec<Entry>>> {
    let first = le64(header, 72);
    let count = le32(header, 80).min(MAX_ENTRIES);
    let size = u64::from(le32(header, 84));
    if !(128..=4096).contains(&size) {
        return Ok(None);
    }
    let mut entries = Vec::new();
    for index in 0..count {
        let mut bytes = [0; 128];
        let at = first
            .checked_mul(SECTOR)
            .and_then(|at| at.checked_add(u64::from(index) * size));
        let Some(at) = at else { break };
        if file.read_exact_at(&mut bytes, at).is_err() {
            break;
        }
        entries.extend(gpt_entry(index + 1, &bytes));
    }
    Ok(Some(entries))
}

fn gpt_entry(number: u32, bytes: &[u8; 128]) -> Option<Entry> {
    let (first, last) = (le64(bytes, 32), le64(bytes, 40));
    if bytes[..16] == [0; 16] || last < first {
        return None;
    }
    Some(Entry {
        number,
        start: first.checked_mul(SECTOR)?,
        len: (last - first).checked_add(1)?.checked_mul(SECTOR)?,
        active: le64(bytes, 48) & 4 != 0,
        is_root: bytes[..16] == ROOT_X86_64,
        name: name(&bytes[56..]),
    })
}

/// A name, up to its first NUL.
fn name(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units = units.take_while(|unit| *unit != 0);
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

fn mbr(sector: &[u8]) -> Vec<Entry> {
    (0u32..4)
        .filter_map(|slot| {
            let entry = &sector[446 + slot as usize * 16..][..16];
            let (start, len) = (le32(entry, 8), le32(entry, 12));
            (entry[4] != 0 && len != 0).then(|| Entry {
                number: slot + 1,
                start: u64::from(start) * SECTOR,
                len: u64::from(len) * SECTOR,
                active: entry[0] == 0x80,
                is_root: false,
                name: String::new(),
            })
        })
        .collect()
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(parts: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    fn gpt_header(entries_at: u64, size: u32) -> Vec<u8> {
        let mut header = vec![0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[72..80].copy_from_slice(&entries_at.to_le_bytes());
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&size.to_le_bytes());
        header
    }

    fn gpt_partition(kind: [u8; 16], first: u64, last: u64) -> Vec<u8> {
        let mut entry = vec![0; 128];
        entry[..16].copy_from_slice(&kind);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        entry
    }

    #[test]
    fn gpt_entries_keep_their_numbers() {
        let file = disk(&[
            (512, &gpt_header(2, 128)),
            (1024 + 128, &gpt_partition(ROOT_X86_64, 64, 127)),
        ]);
        let entries = read(&file).unwrap().unwrap();
        assert_eq!(
            entries,
            [Entry {
                number: 2,
                start: 64 * 512,
                len: 64 * 512,
                active: false,
                is_root: true,
                name: String::new(),
            }]
        );
    }

    #[test]
    fn hostile_tables_are_survived() {
        for header in [
            gpt_header(u64::MAX, 128),
            gpt_header(2, 0),
            gpt_header(2, u32::MAX),
        ] {
            let _ = read(&disk(&[(512, &header)])).unwrap();
        }
        let huge = gpt_partition([1; 16], 1, u64::MAX);
        let file = disk(&[(512, &gpt_header(2, 128)), (1024, &huge)]);
        assert_eq!(read(&file).unwrap().unwrap(), []);
    }

    #[test]
    fn no_table_is_none() {
        assert_eq!(read(&disk(&[])).unwrap(), None);
        assert_eq!(read(&tempfile::tempfile().unwrap()).unwrap(), None);
    }
}
