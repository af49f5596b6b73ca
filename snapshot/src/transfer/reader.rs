//! A stream, read by somebody who trusts nothing in it.

use std::cmp::Ordering;
use std::io::{self, Read};

use super::{FILES, RESULTS};
use crate::codec::{check_path, MAX_PATH};
use crate::entry::{order, Content, Entry, Kind, Meta, Time};
use crate::tar::{padding, BLOCK};
use crate::{Error, Result};

/// Bytes of pax records in one header; room for two paths, or for a header of deleted ones.
const MAX_RECORDS: u64 = 128 << 10;
/// Stretches of data in one file.
const MAX_RUNS: usize = 1 << 16;
/// Bytes of content handed over at once.
const CHUNK: usize = 256 << 10;

/// What stands in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// The start, once.
    Start {
        /// Whether these are results.
        results: bool,
        /// Members that follow, as the sender says.
        entries: u64,
        /// Bytes in them, as the sender says.
        bytes: u64,
        /// Permissions of the directory.
        mode: Option<u16>,
    },
    /// Paths that are gone.
    Deleted(Vec<Vec<u8>>),
    /// A file of any kind; the content of a regular one comes next.
    Entry(Entry),
    /// The end: the stream is whole.
    End,
}

/// Reads a stream member by member.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    buffer: Vec<u8>,
    /// The path before, which the next one must come after.
    last: Vec<u8>,
    /// Bytes of content and padding that have not been read.
    left: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    Started,
    Ended,
}

/// What pax records say.
#[derive(Debug, Default)]
struct Records {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<Time>,
    real_size: Option<u64>,
    sparse: bool,
    files: bool,
    entries: u64,
    bytes: u64,
    mode: Option<u16>,
    deleted: Vec<Vec<u8>>,
    end: bool,
}

impl<R: Read> Reader<R> {
    /// Reads from `input`, in pieces of any size.
    pub fn new(input: R) -> Self {
        Reader {
            input,
            buffer: vec![0; CHUNK],
            last: Vec::new(),
            left: 0,
            state: State::Fresh,
        }
    }

    /// Where the stream comes from.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next member. Content that was not asked for is passed over.
    ///
    /// # Errors
    /// The stream ends early, cannot be read, or breaks a rule.
    #[allow(clippy::should_implement_trait)] // It can fail, and the end is a member.
    pub fn next(&mut self) -> Result<Member> {
        self.pass_over()?;
        if self.state == State::Ended {
            return Ok(Member::End);
        }
        let header = self.header()?;
        match header.kind {
            b'g' => self.global(&header),
            b'x' => {
                let records = self.records(&header)?;
                let header = self.header()?;
                self.entry(&header, records).map(Member::Entry)
            }
            _ => self.entry(&header, Records::default()).map(Member::Entry),
        }
    }

    /// The content of the regular file that came last, as (offset, bytes).
    ///
    /// # Errors
    /// As [`Reader::next`], or what `sink` says.
    pub fn content(
        &mut self,
        content: &Content,
        sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        for (start, len) in content.stretches() {
            let (mut at, end) = (start, start + len);
            while at < end {
                let want = (end - at).min(CHUNK as u64) as usize;
                read_exact(&mut self.input, &mut self.buffer[..want])?;
                self.left = self.left.saturating_sub(want as u64);
                sink(at, &self.buffer[..want])?;
                at += want as u64;
            }
        }
        Ok(())
    }

    fn pass_over(&mut self) -> Result<()> {
        while self.left > 0 {
            let want = self.left.min(CHUNK as u64) as usize;
            read_exact(&mut self.input, &mut self.buffer[..want])?;
            self.left -= want as u64;
        }
        Ok(())
    }

    fn header(&mut self) -> Result<Header> {
        let mut block = [0; BLOCK];
        read_exact(&mut self.input, &mut block)?;
        Header::parse(&block)
    }

    fn records(&mut self, header: &Header) -> Result<Records> {
        if header.size > MAX_RECORDS {
            return Err(malformed("a header is too long"));
        }
        let len = header.size as usize;
        let mut text = vec![0; len + padding(header.size)];
        read_exact(&mut self.input, &mut text)?;
        Records::parse(&text[..len])
    }

    fn global(&mut self, header: &Header) -> Result<Member> {
        let records = self.records(header)?;
        let results = header.name == RESULTS;
        match self.state {
            State::Fresh if records.files && (results || header.name == FILES) => {
                self.state = State::Started;
                Ok(Member::Start {
                    results,
                    entries: records.entries,
                    bytes: records.bytes,
                    mode: records.mode,
                })
            }
            State::Started if records.end => {
                // The archive's own end.
                read_exact(&mut self.input, &mut self.buffer[..2 * BLOCK])?;
                self.state = State::Ended;
                Ok(Member::End)
            }
            State::Started if !records.deleted.is_empty() && self.last.is_empty() => {
                let paths = records.deleted;
                match paths.iter().all(|path| is_path(path)) {
                    true => Ok(Member::Deleted(paths)),
                    false => Err(malformed("a deleted path is none")),
                }
            }
            _ => Err(malformed("a header is out of place")),
        }
    }

    fn entry(&mut self, header: &Header, records: Records) -> Result<Entry> {
        if self.state != State::Started {
            return Err(malformed("it does not begin with its start"));
        }
        let mut path = records.path.unwrap_or_else(|| header.name.clone());
        let size = records.size.unwrap_or(header.size);
        let target = records.link.unwrap_or_else(|| header.link.clone());
        if header.kind == b'5' && path.last() == Some(&b'/') {
            path.pop();
        }
        if !is_path(&path) {
            return Err(malformed("a path leads out of its place, or is none"));
        }
        if order(&self.last, &path) != Ordering::Less {
            return Err(malformed("the members are not in order"));
        }
        let kind = match header.kind {
            b'0' => Kind::File(self.start_file(size, records.sparse, records.real_size)?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'2' if !target.is_empty() && target.len() <= MAX_PATH => Kind::Symlink(target),
            b'1' if is_path(&target) && order(&target, &path) == Ordering::Less => {
                Kind::Link(target)
            }
            _ => return Err(malformed("a member is of a kind that does not travel")),
        };
        self.last.clone_from(&path);
        let mtime = records.mtime.unwrap_or(Time {
            seconds: header.seconds as i64,
            nanoseconds: 0,
        });
        let meta = Meta {
            mode: header.mode,
            mtime,
            ..Meta::default()
        };
        Ok(Entry { path, kind, meta })
    }

    /// Reads what stands before a file's content.
    fn start_file(&mut self, stored: u64, sparse: bool, real: Option<u64>) -> Result<Content> {
        let padded = stored.checked_add(padding(stored) as u64);
        self.left = padded.ok_or(malformed("a file is too large"))?;
        let content = match (sparse, real) {
            (false, None) => Content {
                size: stored,
                ..Content::default()
            },
            (true, Some(size)) => {
                let runs = self.sparse_map(size)?;
                let content = Content {
                    size,
                    runs: Some(runs),
                    ..Content::default()
                };
                let rest = content.stored();
                if self.left != rest + padding(rest) as u64 {
                    return Err(malformed("a sparse file has another size than its parts"));
                }
                content
            }
            _ => return Err(malformed("a sparse file is not described whole")),
        };
        match i64::try_from(content.size) {
            Ok(_) => Ok(content),
            Err(_) => Err(malformed("a file is too large")),
        }
    }

    /// The map of a sparse file: numbers, a line each, in whole blocks.
    fn sparse_map(&mut self, size: u64) -> Result<Vec<(u64, u64)>> {
        let mut lines = Lines {
            block: [0; BLOCK],
            at: BLOCK,
        };
        let count = self.map_number(&mut lines)?;
        if count > MAX_RUNS as u64 {
            return Err(malformed("a file has too many holes"));
        }
        let (mut runs, mut end) = (Vec::new(), 0);
        for _ in 0..count {
            let (offset, len) = (self.map_number(&mut lines)?, self.map_number(&mut lines)?);
            let next = offset.checked_add(len).filter(|next| *next <= size);
            let next = next.filter(|_| offset >= end);
            end = next.ok_or(malformed("a hole is out of place"))?;
            if len > 0 {
                runs.push((offset, len));
            }
        }
        Ok(runs)
    }

    fn map_number(&mut self, lines: &mut Lines) -> Result<u64> {
        let mut number = 0u64;
        for digits in 0.. {
            if lines.at == BLOCK {
                self.left = self
                    .left
                    .checked_sub(BLOCK as u64)
                    .ok_or(malformed("a map of holes is cut off"))?;
                read_exact(&mut self.input, &mut lines.block)?;
                lines.at = 0;
            }
            let byte = lines.block[lines.at];
            lines.at += 1;
            match byte {
                b'\n' if digits > 0 => return Ok(number),
                b'0'..=b'9' => {
                    let more = number.checked_mul(10);
                    number = more
                        .and_then(|number| number.checked_add(u64::from(byte - b'0')))
                        .ok_or(malformed("a hole is out of place"))?;
                }
                _ => break,
            }
        }
        Err(malformed("a map of holes has something else than numbers"))
    }
}

/// A map of holes on its way.
struct Lines {
    block: [u8; BLOCK],
    at: usize,
}

/// The fields of a ustar header.
struct Header {
    name: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
    mode: u16,
    size: u64,
    seconds: u64,
}

impl Header {
    fn parse(block: &[u8; BLOCK]) -> Result<Self> {
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        let field: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
        let blank = 8 * u64::from(b' ');
        if octal(&block[148..156]) != Some(sum - field + blank) || &block[257..262] != b"ustar" {
            return Err(malformed("there is no header where one belongs"));
        }
        let number = |range: std::ops::Range<usize>| {
            octal(&block[range]).ok_or(malformed("a header has something else than numbers"))
        };
        Ok(Header {
            name: text(&block[..100]).to_owned(),
            link: text(&block[157..257]).to_owned(),
            kind: if block[156] == 0 { b'0' } else { block[156] },
            mode: (number(100..108)? & 0o7777) as u16,
            size: number(124..136)?,
            seconds: number(136..148)?,
        })
    }
}

/// What stands before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text(field)).ok()?.trim_matches(' ');
    match digits {
        "" => Some(0),
        _ if digits.starts_with('+') => None,
        _ => u64::from_str_radix(digits, 8).ok(),
    }
}

impl Records {
    fn parse(mut text: &[u8]) -> Result<Self> {
        let mut records = Records::default();
        while !text.is_empty() {
            let (record, rest) = split_record(text).ok_or(malformed("a record is none"))?;
            records.take(record)?;
            text = rest;
        }
        Ok(records)
    }

    fn take(&mut self, record: &[u8]) -> Result<()> {
        let bad = || malformed("a record has another value than its kind");
        let at = record.iter().position(|byte| *byte == b'=');
        let (key, value) = record.split_at(at.ok_or_else(bad)?);
        let value = &value[1..];
        let number = || decimal(value).ok_or_else(bad);
        match key {
            b"path" | b"GNU.sparse.name" => self.path = Some(value.to_owned()),
            b"linkpath" => self.link = Some(value.to_owned()),
            b"size" => self.size = Some(number()?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(bad)?),
            b"GNU.sparse.realsize" => self.real_size = Some(number()?),
            b"GNU.sparse.major" if value == b"1" => self.sparse = true,
            b"GNU.sparse.minor" if value == b"0" => {}
            b"APPPOT.files" if value == b"1" => self.files = true,
            b"APPPOT.entries" => self.entries = number()?,
            b"APPPOT.bytes" => self.bytes = number()?,
            b"APPPOT.mode" => {
                let mode = octal(value).filter(|mode| *mode <= 0o7777);
                self.mode = Some(mode.ok_or_else(bad)? as u16);
            }
            b"APPPOT.deleted" => self.deleted.push(value.to_owned()),
            b"APPPOT.end" if value == b"1" => self.end = true,
            _ if key.starts_with(b"GNU.sparse.") || key.starts_with(b"APPPOT.") => {
                return Err(malformed("a record is of an unknown kind"));
            }
            // Of another tar: owners, other times, attributes.
            _ => {}
        }
        Ok(())
    }
}

/// `LEN KEY=VALUE\n`: the part after the length, and what follows.
fn split_record(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().take(8).position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(&text[..space])?).ok()?;
    let record = text.get(space + 1..len)?;
    Some((record.strip_suffix(b"\n")?, &text[len..]))
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok()?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

/// Seconds with a fraction, also before 1970.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|byte| *byte == b'.');
    let seconds = i64::try_from(decimal(&text[..dot.unwrap_or(text.len())])?).ok()?;
    let mut nanoseconds = 0;
    if let Some(dot) = dot {
        let mut digits = text[dot + 1..].to_vec();
        digits.resize(9, b'0');
        nanoseconds = u32::try_from(decimal(&digits)?).ok()?;
    }
    Some(match (negative, nanoseconds) {
        (false, _) => Time {
            seconds,
            nanoseconds,
        },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

/// Whether it names something below a directory.
fn is_path(path: &[u8]) -> bool {
    !path.is_empty() && path.len() <= MAX_PATH && check_path(path).is_ok()
}

pub(super) fn malformed(what: &str) -> Error {
    Error::Malformed(what.to_owned())
}

fn read_exact(input: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
    input
        .read_exact(buffer)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated,
            _ => Error::stream("read files")(error),
        })
}
