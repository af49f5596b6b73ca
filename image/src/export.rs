//! A tree as a tar archive: pax, with sparse files and extended attributes as GNU tar writes them.

use std::io::Write;

use apppot_snapshot::entry::{Content, Kind};
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tar;
use apppot_snapshot::tree::{Found, Tree};

use crate::{Error, Result};

/// Writes everything that is in `tree` but `lost+found`.
///
/// # Errors
/// The tree cannot be read, or writing fails.
pub fn write_tar(tree: &dyn Tree, out: &mut dyn Write) -> Result<()> {
    let writing = || Error::io("write the archive");
    let mut buffer = vec![0; 1 << 20];
    for mut found in tree.walk(&Rules::everything())?.found {
        if found.entry.path == b"lost+found" {
            continue;
        }
        let is_file = matches!(found.entry.kind, Kind::File(_));
        if is_file {
            write_file(tree, &mut found, &mut buffer, out)?;
        } else {
            out.write_all(&tar::header(&found.entry))
                .map_err(writing())?;
        }
    }
    out.write_all(&[0; 1024]).map_err(writing())?;
    out.flush().map_err(writing())
}

fn write_file(
    tree: &dyn Tree,
    found: &mut Found,
    buffer: &mut [u8],
    out: &mut dyn Write,
) -> Result<()> {
    let reading = || Error::io("read the image");
    let writing = || Error::io("write the archive");
    let file = tree.open(found)?;
    let size = file.size();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut next = file.data_after(0).map_err(reading())?;
    while let Some(run) = next {
        match runs.last_mut() {
            Some((start, len)) if *start + *len == run.start => *len += run.end - run.start,
            _ => runs.push((run.start, run.end - run.start)),
        }
        next = file.data_after(run.end).map_err(reading())?;
    }
    let is_whole = size == 0 || runs == [(0, size)];
    let content = Content {
        size,
        runs: (!is_whole).then(|| runs.clone()),
        ..Content::default()
    };
    let stored = content.stored();
    let entry = apppot_snapshot::Entry {
        kind: Kind::File(content),
        ..found.entry.clone()
    };
    out.write_all(&tar::header(&entry)).map_err(writing())?;
    for (start, len) in runs {
        let mut done = 0;
        while done < len {
            let part = &mut buffer[..(len - done).min(1 << 20) as usize];
            file.read_at(part, start + done).map_err(reading())?;
            out.write_all(part).map_err(writing())?;
            done += part.len() as u64;
        }
    }
    out.write_all(&[0; tar::BLOCK][..tar::padding(stored)])
        .map_err(writing())
}
