//! One header block.

use apppot_snapshot::entry::Time;

use super::{sparse, Kind, BLOCK};
use crate::{error::shown, Error, Result};

/// A block whose checksum is right.
pub(super) struct Header([u8; BLOCK]);

impl Header {
    pub(super) fn new(block: [u8; BLOCK]) -> Result<Self> {
        let header = Header(block);
        let said = number(&block[148..156]).ok_or_else(|| header.bad("checksum"))?;
        // The field itself counts as spaces. Some old archives add up signed characters.
        let own = |at: usize| (148..156).contains(&at);
        let bytes = block.iter().enumerate();
        let sum: i64 = bytes
            .clone()
            .map(|(at, byte)| if own(at) { 32 } else { i64::from(*byte) })
            .sum();
        let signed: i64 = bytes
            .map(|(at, byte)| if own(at) { 32 } else { i64::from(*byte as i8) })
            .sum();
        match said == sum || said == signed {
            true => Ok(header),
            false => Err(Error::Malformed(String::from(
                "a header's checksum is wrong",
            ))),
        }
    }

    fn bad(&self, field: &str) -> Error {
        Error::Malformed(format!(
            "'{}': its {field} is no number",
            shown(&self.name())
        ))
    }

    fn unsigned(&self, range: std::ops::Range<usize>, what: &str) -> Result<u64> {
        let found = number(&self.0[range]).and_then(|number| u64::try_from(number).ok());
        found.ok_or_else(|| self.bad(what))
    }

    fn small(&self, range: std::ops::Range<usize>, what: &str) -> Result<u32> {
        u32::try_from(self.unsigned(range, what)?).map_err(|_| self.bad(what))
    }

    /// The kind of header.
    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// What kind of member it is.
    pub(super) fn member_kind(&self, path: &[u8], link: Vec<u8>) -> Result<Kind> {
        Ok(match self.kind() {
            // Before there was a kind for them, directories were files whose names end so.
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::Link(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::Character(
                self.small(329..337, "device")?,
                self.small(337..345, "device")?,
            ),
            b'4' => Kind::Block(
                self.small(329..337, "device")?,
                self.small(337..345, "device")?,
            ),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let kind = shown(&[other]);
                let what = format!("'{}' is of the unknown kind '{kind}'", shown(path));
                return Err(Error::Malformed(what));
            }
        })
    }

    /// The name; a POSIX header has its first part elsewhere.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = text(&self.0[345..500]);
        match &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            true => [prefix, b"/", name].concat(),
            false => name.to_owned(),
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_owned()
    }

    pub(super) fn mode(&self) -> Result<u16> {
        Ok((self.unsigned(100..108, "mode")? & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u32> {
        self.small(108..116, "owner")
    }

    pub(super) fn gid(&self) -> Result<u32> {
        self.small(116..124, "group")
    }

    pub(super) fn size(&self) -> Result<u64> {
        self.unsigned(124..136, "size")
    }

    pub(super) fn mtime(&self) -> Result<Time> {
        let seconds = number(&self.0[136..148]).ok_or_else(|| self.bad("time"))?;
        Ok(Time {
            seconds,
            nanoseconds: 0,
        })
    }

    /// The first runs of a sparse file, in GNU's old format.
    pub(super) fn sparse_runs(&self) -> Result<Vec<(u64, u64)>> {
        let mut runs = Vec::new();
        sparse::entries(&self.0[386..482], &mut runs)?;
        Ok(runs)
    }

    pub(super) fn has_more_runs(&self) -> bool {
        self.0[482] != 0
    }

    pub(super) fn real_size(&self) -> Result<u64> {
        self.unsigned(483..495, "real size")
    }
}

/// Up to the first zero byte.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// An octal number between spaces and zero bytes, or GNU's form for large ones: a bit, then binary.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = match negative {
            true => i128::from(field[0] as i8),
            false => i128::from(field[0] & 0x3f),
        };
        let value = field[1..]
            .iter()
            .fold(first, |value, byte| value << 8 | i128::from(*byte));
        return i64::try_from(value).ok();
    }
    let digits = text(field).trim_ascii();
    let octal = |value: i64, byte: &u8| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    };
    digits.iter().try_fold(0, octal)
}
