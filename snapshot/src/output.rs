//! Files that are written whole or not at all: a result never has its name before it is complete.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file on its way to its name, gone when that is not reached.
#[derive(Debug)]
pub struct Unfinished {
    file: File,
    path: PathBuf,
    target: PathBuf,
    kept: bool,
}

impl Unfinished {
    /// Begins a file that is to be `target`, which may exist, or be a symbolic link to what is to be
    /// replaced. None of `inputs` is replaced: they are still to be read.
    ///
    /// # Errors
    /// The file cannot be made, or `target` is one of the inputs or no regular file.
    pub fn beside(target: &Path, inputs: &[&Path]) -> Result<Self> {
        Place::find(target, inputs)?.begin()
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its name until it is complete.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// The disk does not take it, or the name cannot be had.
    pub fn keep(mut self) -> Result<()> {
        // Some filesystems say only now that they are full.
        self.file
            .sync_data()
            .and_then(|()| std::fs::rename(&self.path, &self.target))
            .map_err(Error::file("write", &self.target))?;
        self.kept = true;
        Ok(())
    }
}

/// Where a file will be made: known before there is one, so that a watch over it can be there first.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    target: PathBuf,
}

impl Place {
    /// Examines `target` as [`Unfinished::beside`] does, and makes nothing.
    ///
    /// # Errors
    /// `target` is one of the inputs or no regular file.
    pub fn find(target: &Path, inputs: &[&Path]) -> Result<Self> {
        let failed = |path: &Path| Error::file::<io::Error>("write", path.to_owned());
        let target = match std::fs::canonicalize(target) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => target.to_owned(),
            Err(error) => return Err(failed(target)(error)),
        };
        if let Ok(there) = std::fs::metadata(&target) {
            let refused = match there.is_file() {
                false => Some("it is no regular file"),
                true if is_one_of(&there, inputs) => Some("it is what is to be read"),
                true => None,
            };
            if let Some(reason) = refused {
                return Err(failed(&target)(io::Error::other(reason)));
            }
        }
        let mut path = target.clone().into_os_string();
        path.push(format!(".apppot-new-{}", std::process::id()));
        let path = PathBuf::from(path);
        Ok(Place { path, target })
    }

    /// The file's name until it is complete.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file.
    ///
    /// # Errors
    /// As open(2).
    pub fn begin(self) -> Result<Unfinished> {
        let Place { path, target } = self;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::file("write", &target))?;
        Ok(Unfinished {
            file,
            path,
            target,
            kept: false,
        })
    }
}

fn is_one_of(there: &Metadata, inputs: &[&Path]) -> bool {
    let same = |input: &&Path| {
        std::fs::metadata(input)
            .is_ok_and(|input| (input.dev(), input.ino()) == (there.dev(), there.ino()))
    };
    inputs.iter().any(same)
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    fn names(directory: &Path) -> Vec<String> {
        let names = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_not_kept_is_gone_and_the_old_file_stays() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("result");
        std::fs::write(&target, "old").unwrap();
        let new = Unfinished::beside(&target, &[]).unwrap();
        new.file().write_all(b"half").unwrap();
        drop(new);
        assert_eq!(names(place.path()), ["result"]);
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        let new = Unfinished::beside(&target, &[]).unwrap();
        new.file().write_all(b"new").unwrap();
        new.keep().unwrap();
        assert_eq!(names(place.path()), ["result"]);
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn links_are_followed_and_what_is_no_result_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        std::fs::write(path("image"), "image").unwrap();
        symlink("image", path("link")).unwrap();
        let refused = |target: &Path, inputs: &[&Path]| {
            let error = Unfinished::beside(target, inputs).unwrap_err();
            error.in_full()
        };
        assert!(refused(&path("link"), &[&path("image")]).contains("to be read"));
        assert!(refused(place.path(), &[]).contains("no regular file"));
        assert!(refused(Path::new("/dev/null"), &[]).contains("no regular file"));
        assert!(refused(&path("missing/x"), &[]).contains("No such file"));
        let new = Unfinished::beside(&path("link"), &[]).unwrap();
        new.file().write_all(b"result").unwrap();
        new.keep().unwrap();
        assert_eq!(std::fs::read(path("image")).unwrap(), b"result");
        assert_eq!(names(place.path()), ["image", "link"]);
    }
}
