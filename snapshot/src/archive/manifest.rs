//! The archive's first member: which base, and every change, in the tree's order.

use super::MAGIC;
use crate::base::{Identity, Source, MAX_RECORD};
use crate::codec::{put_bytes, put_entry, put_number, Decoder, Flaw};
use crate::diff::{Action, Change, Prior};
use crate::entry::{order, Entry, Kind};
use crate::{Error, Result};

/// What an archive says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The base that it was made for.
    pub base: Identity,
    /// Number of records: changes, and files that tell one base from another.
    pub records: usize,
    /// Bytes of content in it, before compression.
    pub stored: u64,
}

/// An archive's first member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What it says about itself.
    pub header: Header,
    /// The changes, in the tree's order, a path at most once.
    pub changes: Vec<Change>,
}

/// Most changes of an archive. A few bytes can claim to be a change, which is hundreds when read.
pub(crate) const MAX_CHANGES: usize = 2 << 20;

const PUT: u8 = b'+';
const META: u8 = b'~';
const DELETE: u8 = b'-';
const WITNESS: u8 = b'=';

impl Manifest {
    /// The manifest of changes to a base.
    #[must_use]
    pub fn new(base: Identity, changes: Vec<Change>) -> Self {
        let header = Header {
            base,
            records: changes.len(),
            stored: changes.iter().map(stored).sum(),
        };
        Manifest { header, changes }
    }

    /// The changes without the witnesses.
    pub fn real_changes(&self) -> impl Iterator<Item = &Change> {
        let real = |change: &&Change| change.action != Action::Witness;
        self.changes.iter().filter(real)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let Header {
            base,
            records,
            stored,
        } = &self.header;
        out.push(base.source.code());
        out.extend_from_slice(&base.tree);
        out.extend_from_slice(&base.fingerprint);
        put_number(&mut out, *records as u64);
        put_number(&mut out, *stored);
        let mut record = Vec::new();
        for change in &self.changes {
            record.clear();
            put_change(&mut record, change);
            put_bytes(&mut out, &record);
        }
        out
    }

    /// Reads what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    /// It is of another version or breaks a rule.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| Error::NotArchive(String::from("its manifest is of another version")))?;
        Self::decode_rest(rest).map_err(|flaw| Error::Malformed(flaw.to_owned()))
    }

    fn decode_rest(rest: &[u8]) -> std::result::Result<Self, Flaw> {
        let mut decoder = Decoder(rest);
        let source = Source::decode(decoder.byte()?)?;
        let base = Identity {
            tree: decoder.hash()?,
            fingerprint: decoder.hash()?,
            source,
        };
        let records = decoder.number()?;
        let declared = decoder.number()?;
        if records > MAX_CHANGES as u64 {
            return Err("it has too many changes");
        }
        let mut changes: Vec<Change> = Vec::new();
        let mut total = 0u64;
        for _ in 0..records {
            let change = take_change(decoder.bytes(MAX_RECORD as usize)?)?;
            let last = changes.last();
            if !last.is_none_or(|last| order(&last.path, &change.path).is_lt()) {
                return Err("its changes are out of order");
            }
            total = total
                .checked_add(stored(&change))
                .ok_or("it holds too much")?;
            changes.push(change);
        }
        if !decoder.is_empty() || total != declared {
            return Err("its manifest does not add up");
        }
        Ok(Self::new(base, changes))
    }
}

/// Bytes of content that a change brings.
fn stored(change: &Change) -> u64 {
    match &change.action {
        Action::Put(Entry {
            kind: Kind::File(file),
            ..
        }) => file.stored(),
        _ => 0,
    }
}

fn put_change(out: &mut Vec<u8>, change: &Change) {
    out.push(match change.action {
        Action::Put(_) => PUT,
        Action::Meta(_) => META,
        Action::Delete => DELETE,
        Action::Witness => WITNESS,
    });
    match &change.prior {
        None => out.push(0),
        Some(prior) => {
            out.push(1);
            out.extend_from_slice(prior);
        }
    }
    match &change.action {
        Action::Put(entry) | Action::Meta(entry) => put_entry(out, entry, true),
        Action::Delete | Action::Witness => put_bytes(out, &change.path),
    }
}

fn take_change(record: &[u8]) -> std::result::Result<Change, Flaw> {
    let mut decoder = Decoder(record);
    let tag = decoder.byte()?;
    let prior = match decoder.byte()? {
        0 => None,
        1 => {
            let mut prior: Prior = [0; 16];
            prior.copy_from_slice(decoder.take(16)?);
            Some(prior)
        }
        _ => return Err("a change has no past"),
    };
    let (path, action) = match tag {
        PUT => {
            let entry = decoder.entry()?;
            (entry.path.clone(), Action::Put(entry))
        }
        META => {
            let entry = decoder.entry()?;
            if matches!(entry.kind, Kind::Link(_)) {
                return Err("a hard link has no metadata of its own");
            }
            (entry.path.clone(), Action::Meta(entry))
        }
        DELETE => (decoder.path()?, Action::Delete),
        WITNESS => (decoder.path()?, Action::Witness),
        _ => return Err("there is no such kind of change"),
    };
    let makes_or_removes_root = path.is_empty() && !matches!(action, Action::Meta(_));
    if !decoder.is_empty() || makes_or_removes_root {
        return Err("a change does not add up");
    }
    Ok(Change {
        path,
        prior,
        action,
    })
}
