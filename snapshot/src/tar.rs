//! Headers of tar members, POSIX.1-2001 (pax): one entry, one spelling. A reader does not parse
//! them; it makes the header that it expects and compares.
//!
//! Sparse files are in GNU's format 1.0, extended attributes in star's; GNU tar reads both.

use std::io::Write as _;

use crate::entry::{Content, Entry, Hash, Kind, Time};

/// Bytes in a block; headers and contents begin on a block.
pub const BLOCK: usize = 512;
/// Name of the first member.
pub(crate) const MANIFEST: &[u8] = b".apppot-changes";

/// Largest number in a field of eight and of twelve bytes, octal.
const MAX_SMALL: u64 = 0o777_7777;
const MAX_LARGE: u64 = 0o777_7777_7777;

/// Bytes that follow a member to fill its last block.
#[must_use]
pub fn padding(len: u64) -> usize {
    (len.next_multiple_of(BLOCK as u64) - len) as usize
}

/// The header of the first member.
pub(crate) fn manifest_header(len: u64) -> Vec<u8> {
    let mut fields = Fields::new(MANIFEST, b'0');
    fields.mode = 0o600;
    fields.size = len;
    fields.finish()
}

/// The size that a header of a manifest gives; to be checked by making it again.
pub(crate) fn manifest_size(header: &[u8; BLOCK]) -> Option<u64> {
    let digits = std::str::from_utf8(&header[124..135]).ok()?;
    u64::from_str_radix(digits, 8).ok()
}

/// What stands before an entry's content: the header, and the map of a sparse file.
#[must_use]
pub fn header(entry: &Entry) -> Vec<u8> {
    let mut fields = match &entry.kind {
        Kind::Directory if entry.path.is_empty() => Fields::new(b"./", b'5'),
        Kind::Directory => Fields::new(&[&entry.path[..], b"/"].concat(), b'5'),
        Kind::File(_) => Fields::new(&entry.path, b'0'),
        Kind::Symlink(_) => Fields::new(&entry.path, b'2'),
        Kind::Fifo => Fields::new(&entry.path, b'6'),
        Kind::Character(..) => Fields::new(&entry.path, b'3'),
        Kind::Block(..) => Fields::new(&entry.path, b'4'),
        Kind::Link(_) => Fields::new(&entry.path, b'1'),
    };
    let mut map = Vec::new();
    match &entry.kind {
        Kind::Symlink(target) | Kind::Link(target) => fields.link(target),
        Kind::Character(major, minor) | Kind::Block(major, minor) => {
            fields.device = (*major, *minor);
        }
        Kind::File(content) => {
            if let Some(runs) = &content.runs {
                map = sparse_map(content, runs);
                fields.sparse(&entry.path, content.size);
            }
            fields.size = content.stored() + map.len() as u64;
        }
        Kind::Directory | Kind::Fifo => {}
    }
    fields.meta(entry);
    let mut out = fields.finish();
    out.extend(map);
    out
}

/// A pax global header with these records.
pub(crate) fn global(name: &[u8], records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut fields = Fields::new(name, b'g');
    fields.mode = 0o644;
    for (name, value) in records {
        fields.record(name, value);
    }
    let records = std::mem::take(&mut fields.records);
    fields.size = records.len() as u64;
    let mut out = fields.block().to_vec();
    out.extend(records);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

fn sparse_map(content: &Content, runs: &[(u64, u64)]) -> Vec<u8> {
    let ends_in_hole = runs.last().is_none_or(|(at, len)| at + len < content.size);
    let last = ends_in_hole.then_some((content.size, 0));
    let mut map = format!("{}\n", runs.len() + usize::from(ends_in_hole)).into_bytes();
    for (offset, len) in runs.iter().copied().chain(last) {
        let _ = write!(map, "{offset}\n{len}\n");
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// The fields of a header, and the records of the pax header before it.
struct Fields {
    name: Vec<u8>,
    kind: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    size: u64,
    seconds: i64,
    link: Vec<u8>,
    device: (u32, u32),
    records: Vec<u8>,
}

impl Fields {
    fn new(name: &[u8], kind: u8) -> Self {
        let mut fields = Fields {
            name: name.to_owned(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            seconds: 0,
            link: Vec::new(),
            device: (0, 0),
            records: Vec::new(),
        };
        if name.len() > 100 {
            fields.record(b"path", name);
        }
        fields
    }

    fn link(&mut self, target: &[u8]) {
        self.link = target.to_owned();
        if target.len() > 100 {
            self.record(b"linkpath", target);
        }
    }

    fn sparse(&mut self, path: &[u8], size: u64) {
        self.record(b"GNU.sparse.major", b"1");
        self.record(b"GNU.sparse.minor", b"0");
        self.record(b"GNU.sparse.name", path);
        self.record(b"GNU.sparse.realsize", size.to_string().as_bytes());
    }

    fn meta(&mut self, entry: &Entry) {
        let meta = &entry.meta;
        self.mode = meta.mode;
        self.uid = meta.uid;
        self.gid = meta.gid;
        self.seconds = meta.mtime.seconds;
        if meta.mtime.nanoseconds != 0 || !(0..=MAX_LARGE as i64).contains(&self.seconds) {
            self.record(b"mtime", decimal(meta.mtime).as_bytes());
        }
        for (name, value) in &meta.xattrs {
            // The name of a record ends at the first '='.
            if !name.contains(&b'=') {
                self.record(&[b"SCHILY.xattr.", &name[..]].concat(), value);
            }
        }
    }

    /// A record begins with its own length, which counts its own digits.
    fn record(&mut self, name: &[u8], value: &[u8]) {
        let rest = name.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + digits(len) {
            len = rest + digits(len);
        }
        self.records.extend_from_slice(len.to_string().as_bytes());
        self.records.push(b' ');
        self.records.extend_from_slice(name);
        self.records.push(b'=');
        self.records.extend_from_slice(value);
        self.records.push(b'\n');
    }

    fn finish(mut self) -> Vec<u8> {
        for (name, number) in [("uid", self.uid), ("gid", self.gid)] {
            if u64::from(number) > MAX_SMALL {
                self.record(name.as_bytes(), number.to_string().as_bytes());
            }
        }
        if self.size > MAX_LARGE {
            self.record(b"size", self.size.to_string().as_bytes());
        }
        let mut out = Vec::new();
        if !self.records.is_empty() {
            let mut pax = Fields::new(b"./PaxHeaders/apppot", b'x');
            pax.mode = 0o644;
            pax.size = self.records.len() as u64;
            out.extend_from_slice(&pax.block());
            out.extend_from_slice(&self.records);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.extend_from_slice(&self.block());
        out
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let name = &self.name[..self.name.len().min(100)];
        block[..name.len()].copy_from_slice(name);
        octal(&mut block[100..108], self.mode.into(), MAX_SMALL);
        octal(&mut block[108..116], self.uid.into(), MAX_SMALL);
        octal(&mut block[116..124], self.gid.into(), MAX_SMALL);
        octal(&mut block[124..136], self.size, MAX_LARGE);
        octal(&mut block[136..148], self.seconds.max(0) as u64, MAX_LARGE);
        block[156] = self.kind;
        let link = &self.link[..self.link.len().min(100)];
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], self.device.0.into(), MAX_SMALL);
        octal(&mut block[337..345], self.device.1.into(), MAX_SMALL);
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut block[148..155], sum, MAX_SMALL);
        block
    }
}

fn octal(field: &mut [u8], number: u64, largest: u64) {
    let width = field.len() - 1;
    let digits = format!("{:0width$o}", number.min(largest));
    field[..width].copy_from_slice(&digits.as_bytes()[digits.len() - width..]);
    field[width] = 0;
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Seconds with a fraction, also before 1970.
fn decimal(time: Time) -> String {
    let Time {
        seconds,
        nanoseconds,
    } = time;
    match (seconds < 0, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (false, _) => format!("{seconds}.{nanoseconds:09}"),
        (true, _) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

/// A UUID's 16 bytes as it is written, with hyphens.
#[must_use]
pub fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A hash for people.
#[must_use]
pub fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        let mut fields = Fields::new(b"x", b'0');
        for len in 0..200 {
            fields.records.clear();
            fields.record(b"path", &vec![b'a'; len]);
            let space = fields
                .records
                .iter()
                .position(|byte| *byte == b' ')
                .unwrap();
            let said = std::str::from_utf8(&fields.records[..space]).unwrap();
            assert_eq!(said.parse(), Ok(fields.records.len()), "{len}");
        }
    }

    #[test]
    fn times_are_decimal_on_both_sides_of_the_epoch() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (1, 5, "1.000000005"),
            (-1, 500_000_000, "-0.500000000"),
            (-2, 250_000_000, "-1.750000000"),
            (-3, 0, "-3"),
        ] {
            let time = Time {
                seconds,
                nanoseconds,
            };
            assert_eq!(decimal(time), text);
        }
    }
}
