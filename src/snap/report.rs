//! What `apppot snap` says: lines for people, JSON for programs.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use apppot_snapshot::archive::{Archive, Manifest, Written};
use apppot_snapshot::base::Base;
use apppot_snapshot::hex;
use apppot_snapshot::show::{sign, Line};
use serde_json::{json, Value};

use crate::cli::General;

/// A base was recorded.
pub(super) fn base(base: &Base, path: &Path, general: &General) {
    let id = hex(&base.identity.tree);
    if general.json {
        let files = base.entries.len();
        println!("{}", json!({ "file": path, "base": id, "files": files }));
    } else if !general.quiet {
        eprintln!(
            "{}: {} files, base {id}",
            path.display(),
            base.entries.len()
        );
    }
}

/// An archive was written.
pub(super) fn written(written: &Written, path: &Path, general: &General) {
    let id = hex(&written.id);
    let count = written.manifest.real_changes().count();
    if general.json {
        let value = json!({
            "file": path, "archive": id, "bytes": written.len, "changes": count,
            "base": hex(&written.manifest.header.base.tree),
        });
        println!("{value}");
    } else if !general.quiet {
        eprintln!("{}: {count} changes, {} bytes", path.display(), written.len);
    }
}

/// What is in an archive.
pub(super) fn archive(archive: &Archive, general: &General) -> Result<()> {
    let header = &archive.manifest.header;
    if general.json {
        let value = json!({
            "archive": hex(&archive.id), "bytes": archive.len,
            "base": hex(&header.base.tree), "stored": header.stored,
            "changes": list(&archive.manifest),
        });
        return Ok(writeln!(io::stdout(), "{value}")?);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "archive  {}", hex(&archive.id))?;
    writeln!(out, "base     {}", hex(&header.base.tree))?;
    writeln!(
        out,
        "size     {} bytes, {} unpacked",
        archive.len, header.stored
    )?;
    lines(&archive.manifest)
}

/// Changes that are in no archive.
pub(super) fn changes(manifest: &Manifest, general: &General) -> Result<()> {
    match general.json {
        true => Ok(writeln!(io::stdout(), "{}", list(manifest))?),
        false => lines(manifest),
    }
}

fn lines(manifest: &Manifest) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for change in manifest.real_changes() {
        writeln!(out, "{}", Line(change))?;
    }
    Ok(out.flush()?)
}

fn list(manifest: &Manifest) -> Value {
    let changes = manifest.real_changes().map(|change| {
        let path = apppot_snapshot::entry::shown(&change.path);
        json!({ "change": sign(change).to_string(), "path": path.to_string_lossy() })
    });
    changes.collect()
}
