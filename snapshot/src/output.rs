//! Files that are written whole or not at all: a result never has its name before it is complete. Where the
//! filesystem can do it, it has no name at all before, so that nothing is left whatever ends us.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, CWD};

use crate::{Error, Result};

/// A file on its way to its name, gone when that is not reached.
#[derive(Debug)]
pub struct Unfinished {
    file: File,
    place: Place,
    /// Whether it has a name on the way, which is to be removed.
    is_named: bool,
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

    /// Its name until it is complete, where it must have one.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Gives it its name, which another file may have had.
    ///
    /// # Errors
    /// The disk does not take it, or the name cannot be had.
    pub fn keep(mut self) -> Result<()> {
        let kept = self.sync().and_then(|()| {
            self.name()?;
            std::fs::rename(&self.place.path, &self.place.target)
        });
        kept.map_err(Error::file("write", &self.place.target))?;
        self.is_named = false;
        Ok(())
    }

    /// Gives it its name, which no other file has.
    ///
    /// # Errors
    /// The disk does not take it, or there is such a file by now.
    pub fn keep_new(self) -> Result<()> {
        let kept = self.sync().and_then(|()| match self.is_named {
            true => self.place.give_new(),
            false => link(&self.file, &self.place.target),
        });
        kept.map_err(Error::file("write", &self.place.target))
    }

    /// Some filesystems say only now that they are full; and a name that outlives a failure of power is to
    /// stand for the whole file.
    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Makes sure that it has a name on the way.
    fn name(&mut self) -> io::Result<()> {
        if !self.is_named {
            link(&self.file, &self.place.path)?;
            self.is_named = true;
        }
        Ok(())
    }
}

/// Gives a file without a name one that nothing has.
fn link(file: &File, name: &Path) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_FOLLOW;
    Ok(rustix::fs::linkat(CWD, descriptor(file), CWD, name, flags)?)
}

/// An open file's path.
fn descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
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

    /// The file's name until it is complete, where it must have one.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives a file that has a name its last one; the other goes with [`Unfinished`].
    fn give_new(&self) -> io::Result<()> {
        use io::ErrorKind::{PermissionDenied, Unsupported};
        match std::fs::hard_link(&self.path, &self.target) {
            // FAT has no hard links.
            Err(error) if matches!(error.kind(), PermissionDenied | Unsupported) => {
                match self.target.symlink_metadata() {
                    Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                    Err(_) => std::fs::rename(&self.path, &self.target),
                }
            }
            result => result,
        }
    }

    /// Makes the file.
    ///
    /// # Errors
    /// As open(2).
    pub fn begin(self) -> Result<Unfinished> {
        match self.without_name() {
            Some(file) => Ok(Unfinished {
                file,
                place: self,
                is_named: false,
            }),
            None => self.begin_named(),
        }
    }

    /// A file without a name, where the filesystem has such files (NFS has none) and one can get a name later.
    fn without_name(&self) -> Option<File> {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(directory, flags, Mode::from_raw_mode(0o666)).ok()?;
        let file = File::from(file);
        descriptor(&file).exists().then_some(file)
    }

    fn begin_named(self) -> Result<Unfinished> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&self.path)
            .map_err(Error::file("write", &self.target))?;
        Ok(Unfinished {
            file,
            place: self,
            is_named: true,
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
        if self.is_named {
            let _ = std::fs::remove_file(&self.place.path);
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

    /// Both kinds of files on their way.
    fn begin(target: &Path, is_named: bool) -> Unfinished {
        let place = Place::find(target, &[]).unwrap();
        match is_named {
            true => place.begin_named().unwrap(),
            false => place.begin().unwrap(),
        }
    }

    #[test]
    fn what_is_not_kept_is_gone_and_the_old_file_stays() {
        for is_named in [true, false] {
            let place = tempfile::tempdir().unwrap();
            let target = place.path().join("result");
            std::fs::write(&target, "old").unwrap();
            let new = begin(&target, is_named);
            new.file().write_all(b"half").unwrap();
            drop(new);
            assert_eq!(names(place.path()), ["result"]);
            assert_eq!(std::fs::read(&target).unwrap(), b"old");
            let new = begin(&target, is_named);
            new.file().write_all(b"new").unwrap();
            new.keep().unwrap();
            assert_eq!(names(place.path()), ["result"]);
            assert_eq!(std::fs::read(&target).unwrap(), b"new");
        }
    }

    #[test]
    fn what_is_to_be_new_replaces_nothing() {
        for is_named in [true, false] {
            let place = tempfile::tempdir().unwrap();
            let target = place.path().join("result");
            begin(&target, is_named).keep_new().unwrap();
            assert_eq!(names(place.path()), ["result"]);
            let late = begin(&target, is_named);
            late.file().write_all(b"late").unwrap();
            let error = late.keep_new().unwrap_err().in_full();
            assert!(error.contains("File exists"), "{error}");
            assert_eq!(names(place.path()), ["result"]);
            assert_eq!(std::fs::read(&target).unwrap(), b"");
        }
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
