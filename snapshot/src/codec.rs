//! Entries as bytes: numbers as LEB128, byte strings with their length, everything in a fixed order,
//! so that equal entries are equal bytes. Decoders trust nothing.

use crate::entry::{Content, Entry, Hash, Kind, Meta, Time, Xattrs, HASH_LEN};

/// Longest path, bytes (`PATH_MAX` of Linux).
pub(crate) const MAX_PATH: usize = 4096;
/// Most names in a path: each is an open directory while merging.
pub(crate) const MAX_DEPTH: usize = 256;
/// Most extended attributes of one file.
const MAX_XATTRS: u64 = 1024;
/// Longest value of one (`XATTR_SIZE_MAX` of Linux).
const MAX_XATTR: usize = 65536;
/// Most stretches of data in one file.
pub(crate) const MAX_RUNS: usize = 1 << 18;

/// Why bytes are no entry.
pub(crate) type Flaw = &'static str;

/// Appends a number.
pub(crate) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a byte string.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends an entry; `content` says whether with the content of a file, or with its size only.
pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry, content: bool) {
    put_bytes(out, &entry.path);
    match &entry.kind {
        Kind::Directory => out.push(b'd'),
        Kind::File(file) => {
            out.push(b'f');
            put_number(out, file.size);
            if content {
                put_content(out, file);
            }
        }
        Kind::Symlink(target) => put_tagged(out, b'l', target),
        Kind::Fifo => out.push(b'p'),
        Kind::Character(major, minor) => put_device(out, b'c', *major, *minor),
        Kind::Block(major, minor) => put_device(out, b'b', *major, *minor),
        Kind::Link(leader) => return put_tagged(out, b'h', leader),
    }
    put_meta(out, &entry.meta);
}

fn put_tagged(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_bytes(out, bytes);
}

fn put_device(out: &mut Vec<u8>, tag: u8, major: u32, minor: u32) {
    out.push(tag);
    put_number(out, major.into());
    put_number(out, minor.into());
}

fn put_content(out: &mut Vec<u8>, file: &Content) {
    match &file.runs {
        None => out.push(0),
        Some(runs) => {
            out.push(1);
            put_number(out, runs.len() as u64);
            for (offset, len) in runs {
                put_number(out, *offset);
                put_number(out, *len);
            }
        }
    }
    out.extend_from_slice(&file.hash);
}

fn put_meta(out: &mut Vec<u8>, meta: &Meta) {
    put_number(out, meta.mode.into());
    put_number(out, meta.uid.into());
    put_number(out, meta.gid.into());
    out.extend_from_slice(&meta.mtime.seconds.to_le_bytes());
    put_number(out, meta.mtime.nanoseconds.into());
    put_number(out, meta.xattrs.len() as u64);
    for (name, value) in &meta.xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
}

/// Reads what the functions above write.
pub(crate) struct Decoder<'a>(pub(crate) &'a [u8]);

impl<'a> Decoder<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Flaw> {
        if len > self.0.len() {
            return Err("it ends early");
        }
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Flaw> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn number(&mut self) -> Result<u64, Flaw> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                // One number, one spelling.
                return match byte == 0 && shift > 0 {
                    true => Err("a number is not in its shortest form"),
                    false => Ok(number),
                };
            }
        }
        Err("a number has more than 64 bits")
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, Flaw> {
        T::try_from(self.number()?).map_err(|_| "a number is too large")
    }

    pub(crate) fn bytes(&mut self, longest: usize) -> Result<&'a [u8], Flaw> {
        let len: usize = self.small()?;
        if len > longest {
            return Err("a byte string is too long");
        }
        self.take(len)
    }

    pub(crate) fn hash(&mut self) -> Result<Hash, Flaw> {
        let mut hash = [0; HASH_LEN];
        hash.copy_from_slice(self.take(HASH_LEN)?);
        Ok(hash)
    }

    /// An entry with its content.
    pub(crate) fn entry(&mut self) -> Result<Entry, Flaw> {
        let path = self.path()?;
        let kind = match self.byte()? {
            b'd' => Kind::Directory,
            b'f' => Kind::File(self.content()?),
            b'l' => Kind::Symlink(self.target()?),
            b'p' => Kind::Fifo,
            b'c' => Kind::Character(self.small()?, self.small()?),
            b'b' => Kind::Block(self.small()?, self.small()?),
            b'h' => {
                let leader = self.path()?;
                if crate::entry::order(&leader, &path).is_ge() {
                    return Err("a hard link comes before its file");
                }
                Kind::Link(leader)
            }
            _ => return Err("there is no such kind of file"),
        };
        let meta = match kind {
            Kind::Link(_) => Meta::default(),
            _ => self.meta()?,
        };
        if path.is_empty() && kind != Kind::Directory {
            return Err("the root is no directory");
        }
        Ok(Entry { path, kind, meta })
    }

    /// A path that stays below the root: names that are neither empty nor `.` nor `..`.
    pub(crate) fn path(&mut self) -> Result<Vec<u8>, Flaw> {
        let path = self.bytes(MAX_PATH)?;
        check_path(path)?;
        Ok(path.to_owned())
    }

    fn target(&mut self) -> Result<Vec<u8>, Flaw> {
        let target = self.bytes(MAX_PATH)?;
        match target.is_empty() || target.contains(&0) {
            true => Err("a symbolic link leads nowhere"),
            false => Ok(target.to_owned()),
        }
    }

    fn content(&mut self) -> Result<Content, Flaw> {
        let size = self.number()?;
        if i64::try_from(size).is_err() {
            return Err("a file is too large");
        }
        let runs = match self.byte()? {
            0 => None,
            1 => Some(self.runs(size)?),
            _ => return Err("a file has no content"),
        };
        let hash = self.hash()?;
        Ok(Content { size, runs, hash })
    }

    fn runs(&mut self, size: u64) -> Result<Vec<(u64, u64)>, Flaw> {
        let count: usize = self.small()?;
        if count > MAX_RUNS {
            return Err("a file has too many holes");
        }
        let mut runs = Vec::new();
        let mut end = 0;
        for _ in 0..count {
            let (offset, len) = (self.number()?, self.number()?);
            let next = offset.checked_add(len).ok_or("a hole is out of place")?;
            let first = runs.is_empty() && offset == 0;
            if len == 0 || next > size || (offset <= end && !first) {
                return Err("a hole is out of place");
            }
            end = next;
            runs.push((offset, len));
        }
        Ok(runs)
    }

    fn meta(&mut self) -> Result<Meta, Flaw> {
        let mode: u16 = self.small()?;
        let (uid, gid) = (self.small()?, self.small()?);
        let mut seconds = [0; 8];
        seconds.copy_from_slice(self.take(8)?);
        let mtime = Time {
            seconds: i64::from_le_bytes(seconds),
            nanoseconds: self.small()?,
        };
        if mode > 0o7777 || mtime.nanoseconds >= 1_000_000_000 {
            return Err("a mode or time is out of range");
        }
        // That number means "leave it" to chown(2).
        if uid == u32::MAX || gid == u32::MAX {
            return Err("an owner is out of range");
        }
        let xattrs = self.xattrs()?;
        Ok(Meta {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        })
    }

    fn xattrs(&mut self) -> Result<Xattrs, Flaw> {
        let count = self.number()?;
        if count > MAX_XATTRS {
            return Err("a file has too many extended attributes");
        }
        let mut xattrs: Xattrs = Vec::new();
        for _ in 0..count {
            let name = self.bytes(255)?;
            let value = self.bytes(MAX_XATTR)?;
            let ordered = xattrs.last().is_none_or(|(last, _)| &last[..] < name);
            if !ordered || !crate::xattrs::is_recorded(name) || name.contains(&0) {
                return Err("an extended attribute is not one that is recorded");
            }
            xattrs.push((name.to_owned(), value.to_owned()));
        }
        Ok(xattrs)
    }
}

/// Refuses what is no path below a root.
pub(crate) fn check_path(path: &[u8]) -> Result<(), Flaw> {
    if path.is_empty() {
        return Ok(());
    }
    let mut depth = 0;
    for name in path.split(|byte| *byte == b'/') {
        depth += 1;
        if matches!(name, b"" | b"." | b"..") || name.contains(&0) || name.len() > 255 {
            return Err("a path leads out of the tree or has a bad name");
        }
    }
    match depth > MAX_DEPTH {
        true => Err("a path is too deep"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_in_one_spelling_only() {
        for number in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::MAX] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            let mut decoder = Decoder(&bytes);
            assert_eq!(decoder.number(), Ok(number));
            assert!(decoder.is_empty());
        }
        assert!(Decoder(&[0x80, 0]).number().is_err());
        assert!(Decoder(&[0xff; 10]).number().is_err());
        assert!(Decoder(&[0x80]).number().is_err());
    }

    #[test]
    fn paths_that_leave_the_tree_are_refused() {
        for bad in ["/etc", "a/../b", "..", ".", "a//b", "a/", "a\0b"] {
            assert!(check_path(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(check_path(&b"a/".repeat(300)[..599]).is_err());
        for good in ["", "a", "a/b", "...", "a\nb", " "] {
            assert!(check_path(good.as_bytes()).is_ok(), "{good:?}");
        }
        assert!(check_path(b"\xff\xfe/\x01").is_ok());
    }
}
