//! Results of commands: complete under their name or not there, whatever ends the launcher.

use std::fs::{File, Metadata, Permissions};
use std::io::{BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_backends::process::{at_end, AtEnd};
use apppot_snapshot::output::{Place, Unfinished};

use crate::failure::hinted;

/// A file on its way to its name.
pub(crate) struct Output {
    file: Unfinished,
    target: PathBuf,
    must_be_new: bool,
    _watch: AtEnd,
}

impl Output {
    /// Begins a file that is to be `path`, which is none of `inputs` and is not open to anybody whom they are
    /// not open to. To be called before there is a second thread.
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
        let output = Output {
            file: place.begin()?,
            target: path.to_owned(),
            must_be_new: false,
            _watch: watch,
        };
        let inputs = inputs.iter().filter_map(|input| input.metadata().ok());
        output.narrow(inputs).with_context(|| output.failed())?;
        Ok(output)
    }

    /// As [`Output::begin`], for a name that nothing may have yet.
    ///
    /// # Errors
    /// As there, or something has the name.
    pub(crate) fn begin_new(path: &Path, inputs: &[&Path]) -> Result<Self> {
        // A source is a source first.
        Place::find(path, inputs)?;
        if path.symlink_metadata().is_ok() {
            return Err(hinted(
                format!("'{}' exists", path.display()),
                "give another name, or --force to replace it",
            ));
        }
        Ok(Output {
            must_be_new: true,
            ..Self::begin(path, inputs)?
        })
    }

    /// Takes away what the inputs do not give to group and others.
    fn narrow(&self, inputs: impl Iterator<Item = Metadata>) -> std::io::Result<()> {
        let own = self.file().metadata()?;
        let before = own.mode() & 0o777;
        let mode = inputs.fold(before, |mode, input| mode & open_to(&input, own.gid()));
        match mode == before {
            true => Ok(()),
            false => self.file().set_permissions(Permissions::from_mode(mode)),
        }
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        self.file.file()
    }

    /// The file as another process of ours finds it.
    pub(crate) fn path(&self) -> PathBuf {
        let (process, number) = (std::process::id(), self.file().as_raw_fd());
        PathBuf::from(format!("/proc/{process}/fd/{number}"))
    }

    /// Fills it.
    ///
    /// # Errors
    /// `write` fails, or the disk is full.
    pub(crate) fn write(
        &self,
        write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
    ) -> Result<()> {
        let mut file = BufWriter::with_capacity(1 << 18, self.file());
        write(&mut file)?;
        file.flush().with_context(|| self.failed())
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// The disk does not take it, or the name cannot be had.
    pub(crate) fn keep(self) -> Result<()> {
        match self.must_be_new {
            true => self.file.keep_new()?,
            false => self.file.keep()?,
        }
        Ok(())
    }

    fn failed(&self) -> String {
        format!("cannot write '{}'", self.target.display())
    }
}

/// The mode of a file of that group which is open to whom `input` is, and to its owner.
fn open_to(input: &Metadata, group: u32) -> u32 {
    let others = input.mode() & 0o006;
    let members = match input.gid() == group {
        true => input.mode() & 0o060,
        false => others << 3,
    };
    0o600 | members | others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_open_to_no_more_than_what_it_is_made_of() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        for (modes, expected) in [
            ([0o644, 0o600], 0o600),
            ([0o640, 0o755], 0o640),
            ([0o440, 0o444], 0o640),
            ([0o604, 0o666], 0o604),
        ] {
            for (name, mode) in ["a", "b"].iter().zip(modes) {
                std::fs::write(path(name), "").unwrap();
                std::fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
            }
            let (a, b, result) = (path("a"), path("b"), path("result"));
            let output = Output::begin(&result, &[&a, &b]).unwrap();
            output.keep().unwrap();
            let mode = std::fs::metadata(&result).unwrap().mode() & 0o777;
            // The umask takes from it, too.
            assert_eq!(mode & 0o600, 0o600, "{modes:?}");
            assert_eq!(mode & !expected, 0, "{modes:?}");
        }
        std::fs::set_permissions(path("a"), Permissions::from_mode(0o640)).unwrap();
        let input = std::fs::metadata(path("a")).unwrap();
        assert_eq!(open_to(&input, input.gid()), 0o640);
        assert_eq!(open_to(&input, input.gid() + 1), 0o600);
    }
}
