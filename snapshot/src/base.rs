//! A recorded base: what an archive of changes is relative to.
//!
//! The file is one zstd stream: the line `apppot-base 1`, a byte for how it was recorded, the entries,
//! each after its length, a zero, and the two hashes. Entries are in the tree's order.

use std::io::{BufWriter, Read, Write};

use crate::codec::{put_entry, put_number, Decoder};
use crate::entry::{order, Entry, Hash, HASH_LEN};
use crate::{rules, Error, Result};

pub(crate) const MAGIC: &[u8] = b"apppot-base 1\n";
/// Longest encoded entry; one with [`MAX_RUNS`](crate::codec::MAX_RUNS) holes fits.
pub(crate) const MAX_RECORD: u64 = 8 << 20;
/// Most entries of a base.
const MAX_ENTRIES: usize = 1 << 23;
/// Most bytes that the entries may take.
const MAX_BYTES: u64 = 4 << 30;
/// A larger window than this is refused: it is memory.
pub(crate) const WINDOW_LOG: u32 = 23;

/// What a base is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Hash of all that is recorded.
    pub tree: Hash,
    /// Hash of all that is recorded but the contents of files: it can be had without reading them.
    pub fingerprint: Hash,
    /// Where it was recorded.
    pub source: Source,
}

/// Where a base was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From an image or a directory that nothing was running in.
    Image,
    /// In a running guest, where accounts and mount points of a job have been added: the image is
    /// not expected to look the same in everything.
    Guest,
}

impl Source {
    pub(crate) fn code(self) -> u8 {
        match self {
            Source::Image => b'i',
            Source::Guest => b'g',
        }
    }

    pub(crate) fn decode(code: u8) -> std::result::Result<Self, &'static str> {
        match code {
            b'i' => Ok(Source::Image),
            b'g' => Ok(Source::Guest),
            _ => Err("it was recorded in no known way"),
        }
    }
}

/// A recorded base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// What it is known by.
    pub identity: Identity,
    /// The entries, in the tree's order.
    pub entries: Vec<Entry>,
}

impl Base {
    /// A base of entries that were recorded under the default rules.
    #[must_use]
    pub fn new(entries: Vec<Entry>, source: Source) -> Self {
        let identity = identify(&entries, source);
        Base { identity, entries }
    }

    /// Writes it.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write(&self, out: impl Write) -> Result<()> {
        let failed = Error::stream::<std::io::Error>;
        let what = "write the base";
        let encoder = zstd::Encoder::new(out, 3).map_err(failed(what))?;
        let mut out = BufWriter::new(encoder);
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(failed(what));
        put(MAGIC)?;
        put(&[self.identity.source.code()])?;
        let (mut record, mut len) = (Vec::new(), Vec::new());
        for entry in &self.entries {
            record.clear();
            len.clear();
            put_entry(&mut record, entry, true);
            put_number(&mut len, record.len() as u64);
            put(&len)?;
            put(&record)?;
        }
        put(&[0])?;
        put(&self.identity.tree)?;
        put(&self.identity.fingerprint)?;
        let encoder = out
            .into_inner()
            .map_err(|error| failed(what)(error.into_error()))?;
        encoder
            .finish()
            .map_err(failed(what))?
            .flush()
            .map_err(failed(what))
    }

    /// Reads one.
    ///
    /// # Errors
    /// Reading fails, or it is no base, is damaged, or exceeds a limit.
    pub fn read(input: impl Read) -> Result<Self> {
        let mut input = Records::open(input, MAGIC).map_err(|error| match error {
            Error::NotArchive(reason) => Error::NotBase(reason),
            error => error,
        })?;
        let source = Source::decode(input.byte()?).map_err(not_base)?;
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(record) = input.next()? {
            let mut decoder = Decoder(record);
            let entry = decoder.entry().map_err(not_base)?;
            let last = entries.last();
            let ordered = last.is_none_or(|last| order(&last.path, &entry.path).is_lt());
            if !decoder.is_empty() || !ordered {
                return Err(not_base("its entries are out of order"));
            }
            entries.push(entry);
        }
        let (tree, fingerprint) = (input.hash()?, input.hash()?);
        let base = Base::new(entries, source);
        match (base.identity.tree, base.identity.fingerprint) == (tree, fingerprint) {
            true => Ok(base),
            false => Err(not_base("it is damaged: its checksum does not match")),
        }
    }

    /// The entry of a path.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        let index = self
            .entries
            .binary_search_by(|entry| order(&entry.path, path));
        index.ok().map(|index| &self.entries[index])
    }
}

fn not_base(reason: &'static str) -> Error {
    Error::NotBase(reason.to_owned())
}

/// What entries under the default rules are known by.
#[must_use]
pub fn identify<'a>(entries: impl IntoIterator<Item = &'a Entry>, source: Source) -> Identity {
    let (mut tree, mut fingerprint) = (blake3::Hasher::new(), blake3::Hasher::new());
    let mut bytes = Vec::new();
    put_number(&mut bytes, rules::VERSION);
    tree.update(&bytes);
    fingerprint.update(&bytes);
    for entry in entries {
        for (hasher, content) in [(&mut tree, true), (&mut fingerprint, false)] {
            bytes.clear();
            put_entry(&mut bytes, entry, content);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
        }
    }
    Identity {
        tree: *tree.finalize().as_bytes(),
        fingerprint: *fingerprint.finalize().as_bytes(),
        source,
    }
}

/// A zstd stream of records, each after its length, bounded in every way.
struct Records<R: Read> {
    input: std::io::BufReader<zstd::Decoder<'static, std::io::BufReader<R>>>,
    record: Vec<u8>,
    count: usize,
    left: u64,
}

impl<R: Read> Records<R> {
    fn open(input: R, magic: &[u8]) -> Result<Self> {
        let failed = Error::stream::<std::io::Error>;
        let mut decoder = zstd::Decoder::new(input).map_err(failed("read the base"))?;
        decoder
            .window_log_max(WINDOW_LOG)
            .map_err(failed("read the base"))?;
        let mut records = Records {
            input: std::io::BufReader::new(decoder),
            record: Vec::new(),
            count: 0,
            left: MAX_BYTES,
        };
        let mut head = vec![0; magic.len()];
        match records.input.read_exact(&mut head) {
            Ok(()) if head == magic => Ok(records),
            _ => Err(Error::NotArchive(String::from(
                "it does not begin as one of this version",
            ))),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.exactly(&mut byte)?;
        Ok(byte[0])
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input
            .read_exact(buffer)
            .map_err(|_| not_base("it is truncated or damaged"))
    }

    fn hash(&mut self) -> Result<Hash> {
        let mut hash = [0; HASH_LEN];
        self.exactly(&mut hash)?;
        Ok(hash)
    }

    /// The next record; none at their end.
    fn next(&mut self) -> Result<Option<&[u8]>> {
        let (mut len, mut shift) = (0u64, 0);
        loop {
            let byte = self.byte()?;
            len |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 28 {
                return Err(not_base("a record is too long"));
            }
        }
        if len == 0 {
            return Ok(None);
        }
        self.count += 1;
        self.left = self.left.saturating_sub(len);
        if len > MAX_RECORD || self.count > MAX_ENTRIES || self.left == 0 {
            return Err(Error::Limit(String::from("the recorded base")));
        }
        let mut record = std::mem::take(&mut self.record);
        record.resize(len as usize, 0);
        self.exactly(&mut record)?;
        self.record = record;
        Ok(Some(&self.record))
    }
}
