//! Results of commands: complete under their name or not there, whatever ends the launcher.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use apppot_backends::process::{at_end, AtEnd};
use apppot_snapshot::output::{Place, Unfinished};

/// A file on its way to its name.
pub(crate) struct Output {
    file: Unfinished,
    _watch: AtEnd,
}

impl Output {
    /// Begins a file that is to be `path`, which is none of `inputs`. To be called before there is a
    /// second thread.
    ///
    /// # Errors
    /// It cannot be made, or is no regular file or one of the inputs.
    pub(crate) fn begin(path: &Path, inputs: &[&Path]) -> Result<Self> {
        let place = Place::find(path, inputs)?;
        let unfinished = place.path().to_owned();
        let watch = at_end(move || {
            let _ = std::fs::remove_file(unfinished);
        });
        let watch = watch.context("cannot start the watch over an unfinished file")?;
        let file = place.begin()?;
        Ok(Output {
            file,
            _watch: watch,
        })
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        self.file.file()
    }

    /// Its name until it is complete.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Fills it.
    ///
    /// # Errors
    /// `write` fails, or the disk is full.
    pub(crate) fn write(
        &self,
        write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
    ) -> Result<()> {
        let mut file = BufWriter::new(self.file());
        write(&mut file)?;
        let failed = || format!("cannot write '{}'", self.path().display());
        file.flush().with_context(failed)
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// The disk does not take it, or the name cannot be had.
    pub(crate) fn keep(self) -> Result<()> {
        Ok(self.file.keep()?)
    }
}
