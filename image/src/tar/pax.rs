//! Records of pax headers.

use apppot_snapshot::entry::{Time, Xattrs};

use super::sparse::Sparse;
use crate::{error::shown, Error, Result};

/// What the records say that is of use here.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) sparse: Sparse,
    pub(super) has_text_acl: bool,
    xattrs: Xattrs,
}

const XATTR: &[u8] = b"SCHILY.xattr.";
const ACL: &[u8] = b"SCHILY.acl.";
const SPARSE: &[u8] = b"GNU.sparse.";

fn bad(keyword: &[u8]) -> Error {
    Error::Malformed(format!("the value of '{}' in a pax header", shown(keyword)))
}

/// A decimal number.
pub(super) fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl Pax {
    /// Takes records; the last of several with the same keyword counts.
    pub(super) fn read(&mut self, mut rest: &[u8]) -> Result<()> {
        while !rest.is_empty() {
            let (keyword, value, after) = record(rest)
                .ok_or_else(|| Error::Malformed(String::from("a record of a pax header")))?;
            self.take(keyword, value)?;
            rest = after;
        }
        Ok(())
    }

    fn take(&mut self, keyword: &[u8], value: &[u8]) -> Result<()> {
        let wrong = || bad(keyword);
        match keyword {
            b"path" => self.path = some(value),
            b"linkpath" => self.link = some(value),
            b"size" => self.size = Some(decimal(value).ok_or_else(wrong)?),
            b"uid" => self.uid = Some(decimal(value).ok_or_else(wrong)?),
            b"gid" => self.gid = Some(decimal(value).ok_or_else(wrong)?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(wrong)?),
            _ => {
                if let Some(name) = keyword.strip_prefix(XATTR) {
                    self.xattrs.retain(|(other, _)| other != name);
                    self.xattrs.push((name.to_owned(), value.to_owned()));
                } else if let Some(name) = keyword.strip_prefix(SPARSE) {
                    self.sparse.take(name, value).ok_or_else(wrong)?;
                } else if keyword.starts_with(ACL) {
                    self.has_text_acl = true;
                }
            }
        }
        Ok(())
    }

    /// Lays `other` over these.
    pub(super) fn add(&mut self, other: Pax) {
        self.path = other.path.or(self.path.take());
        self.link = other.link.or(self.link.take());
        self.size = other.size.or(self.size);
        self.uid = other.uid.or(self.uid);
        self.gid = other.gid.or(self.gid);
        self.mtime = other.mtime.or(self.mtime);
        self.sparse = other.sparse;
        self.has_text_acl |= other.has_text_acl;
        self.xattrs.extend(other.xattrs);
    }

    /// Those attributes that belong to a file's state, sorted.
    pub(super) fn xattrs(&self) -> Xattrs {
        let mut xattrs = self.xattrs.clone();
        xattrs.retain(|(name, _)| apppot_snapshot::is_recorded(name));
        xattrs.sort();
        xattrs.dedup_by(|a, b| a.0 == b.0);
        xattrs
    }
}

/// An empty value takes the keyword back.
fn some(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_owned())
}

/// The first record, which begins with its own length: keyword, value, what comes after.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let len: usize = decimal(&bytes[..space])?;
    let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[len..]))
}

/// Seconds with a fraction, of which nanoseconds are kept.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = format!("{:0<9.9}", fraction);
    let nanoseconds: u32 = digits.parse().ok()?;
    Some(match negative && nanoseconds > 0 {
        true => Time {
            seconds: seconds.checked_sub(1)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
        false => Time {
            seconds,
            nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_on_both_sides_of_the_epoch() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("1.000000005", 1, 5),
            ("1.5", 1, 500_000_000),
            ("1.1234567899", 1, 123_456_789),
            ("-0.5", -1, 500_000_000),
            ("-3", -3, 0),
        ] {
            let wanted = Time {
                seconds,
                nanoseconds,
            };
            assert_eq!(time(text.as_bytes()), Some(wanted), "{text}");
        }
        for text in ["", ".", "1.x", "x", "1.-5"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn records_say_how_long_they_are() {
        assert_eq!(
            record(b"9 a=bcde\nrest"),
            Some((&b"a"[..], &b"bcde"[..], &b"rest"[..]))
        );
        for wrong in [
            &b"8 a=bcde\n"[..],
            b"99 a=b\n",
            b"x a=b\n",
            b"7 abcd\n",
            b"0 a=b\n",
            b" a=b\n",
        ] {
            assert_eq!(record(wrong), None, "{wrong:?}");
        }
    }
}
