//! Writing an archive.

use std::collections::HashMap;
use std::io::{self, Write};

use super::{Manifest, SECTOR, SKIPPED, TRAILER, TRAILER_MAGIC};
use crate::base::Base;
use crate::content::{Buffer, BLOCK};
use crate::diff::{compare, Action};
use crate::entry::{Content, Entry, Hash, Kind};
use crate::rules::Rules;
use crate::tree::{Found, Listing, Tree};
use crate::{tar, Error, Result};

/// The same level always: the same changes are to give the same bytes.
const LEVEL: i32 = 3;
/// 1 MiB: the guest has to have it in memory, page by page.
const WINDOW: u32 = 20;

/// What was written.
#[derive(Debug, Clone)]
pub struct Written {
    /// The archive's checksum, by which it is known.
    pub id: Hash,
    /// Its length, bytes.
    pub len: u64,
    /// What is in it.
    pub manifest: Manifest,
}

/// Writes what `listing`, recorded from `tree` under `rules`, has changed relative to `base`.
///
/// # Errors
/// A file cannot be read or changed after it was recorded, or writing fails.
pub fn write(
    out: impl Write,
    base: &Base,
    tree: &dyn Tree,
    listing: &Listing,
    rules: &Rules,
) -> Result<Written> {
    let manifest = Manifest::new(base.identity, compare(base, listing, rules));
    let failed = Error::stream::<io::Error>;
    let what = "write the archive";
    let out = Summing {
        out,
        hasher: blake3::Hasher::new(),
        len: 0,
    };
    let mut encoder = zstd::Encoder::new(out, LEVEL).map_err(failed(what))?;
    encoder
        .set_parameter(zstd::zstd_safe::CParameter::WindowLog(WINDOW))
        .map_err(failed(what))?;
    write_tar(&mut encoder, &manifest, tree, listing)?;
    let out = encoder.finish().map_err(failed(what))?;
    let (id, len) = finish(out).map_err(failed(what))?;
    Ok(Written { id, len, manifest })
}

fn write_tar(
    out: &mut impl Write,
    manifest: &Manifest,
    tree: &dyn Tree,
    listing: &Listing,
) -> Result<()> {
    let failed = Error::stream::<io::Error>;
    let what = "write the archive";
    let bytes = manifest.encode();
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(failed(what));
    put(&tar::manifest_header(bytes.len() as u64))?;
    put(&bytes)?;
    put(&vec![0; tar::padding(bytes.len() as u64)])?;
    let found: HashMap<&[u8], &Found> = listing
        .found
        .iter()
        .map(|found| (&found.entry.path[..], found))
        .collect();
    let mut buffer = Buffer::default();
    for change in &manifest.changes {
        let Some(entry) = member(&change.action) else {
            continue;
        };
        put(&tar::header(entry))?;
        if let (Kind::File(content), Some(found)) = (&entry.kind, found.get(&entry.path[..])) {
            copy(tree, found, content, &mut buffer, &mut put)?;
            put(&vec![0; tar::padding(content.stored())])?;
        }
    }
    put(&[0; 2 * tar::BLOCK])
}

/// The tar of an archive whose files are all empty, whatever its manifest says of them: for tests of
/// what a merge refuses.
#[doc(hidden)]
#[must_use]
pub fn forge(manifest: &Manifest) -> Vec<u8> {
    let bytes = manifest.encode();
    let mut tar = tar::manifest_header(bytes.len() as u64);
    tar.extend_from_slice(&bytes);
    tar.resize(tar.len() + tar::padding(bytes.len() as u64), 0);
    for entry in manifest
        .changes
        .iter()
        .filter_map(|change| member(&change.action))
    {
        tar.extend(tar::header(entry));
    }
    tar.resize(tar.len() + 2 * tar::BLOCK, 0);
    tar
}

/// The entry that has a member in the tar: everything new, and directories whatever is new of them.
pub(super) fn member(action: &Action) -> Option<&Entry> {
    match action {
        Action::Put(entry) => Some(entry),
        Action::Meta(entry) if entry.is_directory() => Some(entry),
        Action::Meta(_) | Action::Delete | Action::Witness => None,
    }
}

fn copy(
    tree: &dyn Tree,
    found: &Found,
    content: &Content,
    buffer: &mut Buffer,
    put: &mut impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let file = tree.open(found)?;
    let moving = || Error::Moving(found.entry.shown());
    if file.size() != content.size {
        return Err(moving());
    }
    let mut hasher = blake3::Hasher::new();
    for (start, len) in content.stretches() {
        let mut done = 0;
        while done < len {
            let part = &mut buffer.0[..BLOCK.min(len - done) as usize];
            file.read_at(part, start + done)
                .map_err(Error::file("read", found.entry.shown()))?;
            hasher.update(part);
            put(part)?;
            done += part.len() as u64;
        }
    }
    match *hasher.finalize().as_bytes() == content.hash {
        true => Ok(()),
        false => Err(moving()),
    }
}

/// Hashes and counts what goes through.
struct Summing<W: Write> {
    out: W,
    hasher: blake3::Hasher,
    len: u64,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes the last frame.
fn finish<W: Write>(mut out: Summing<W>) -> io::Result<(Hash, u64)> {
    let len = (out.len + TRAILER as u64).next_multiple_of(SECTOR) - out.len;
    let inside = len as usize - 8;
    let mut frame = SKIPPED.to_le_bytes().to_vec();
    frame.extend_from_slice(&(inside as u32).to_le_bytes());
    frame.resize(len as usize - TRAILER + 8, 0);
    frame.extend_from_slice(TRAILER_MAGIC);
    out.write_all(&frame)?;
    let id = *out.hasher.finalize().as_bytes();
    out.out.write_all(&id)?;
    out.out.flush()?;
    Ok((id, out.len + id.len() as u64))
}
