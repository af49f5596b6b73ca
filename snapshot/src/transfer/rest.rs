//! What could not be put into its place, kept as a tar.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::reader::Reader;
use crate::entry::{Entry, Kind};
use crate::{tar, Error, Result};

/// A tar being written.
#[derive(Debug)]
pub(super) struct Rest {
    file: File,
    pub(super) path: PathBuf,
    pub(super) entries: u64,
}

impl Rest {
    pub(super) fn new((file, path): (File, PathBuf)) -> Self {
        Rest {
            file,
            path,
            entries: 0,
        }
    }

    /// Keeps `entry`, whose content comes next.
    pub(super) fn keep<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<()> {
        let path = self.path.clone();
        let failed = || Error::file("write", &path);
        self.file.write_all(&tar::header(entry)).map_err(failed())?;
        if let Kind::File(content) = &entry.kind {
            let file = &mut self.file;
            reader.content(content, &mut |_, bytes| {
                file.write_all(bytes).map_err(failed())
            })?;
            let padding = [0; tar::BLOCK];
            self.file
                .write_all(&padding[..tar::padding(content.stored())])
                .map_err(failed())?;
        }
        self.entries += 1;
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.file.write_all(&[0; 2 * tar::BLOCK])
    }
}
