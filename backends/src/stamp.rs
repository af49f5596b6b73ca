//! Which file it is, and in which state: what was examined is what is used.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// A file and its state. No write leaves the time of the last change of the inode as it was, and
/// nobody but the kernel sets that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of an open file.
    ///
    /// # Errors
    /// The file cannot be examined.
    pub fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::from(&metadata))
    }

    /// Fails when `file`, which was opened as `path`, is another file or has changed.
    ///
    /// # Errors
    /// [`Error::Replaced`].
    pub fn check(&self, file: &File, path: &Path) -> Result<()> {
        let now = Self::of(file).map_err(Error::file("examine", path))?;
        match now == *self {
            true => Ok(()),
            false => Err(Error::Replaced {
                path: path.to_owned(),
            }),
        }
    }

    /// How long ago the file changed; zero when that is in the future.
    #[must_use]
    pub fn age(&self) -> Duration {
        let (seconds, nanoseconds) = self.changed;
        let since = Duration::new(
            u64::try_from(seconds).unwrap_or(0),
            u32::try_from(nanoseconds).unwrap_or(0),
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.unwrap_or_default().saturating_sub(since)
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// As a name for what is remembered of the file.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stamp {
            device,
            inode,
            size,
            changed: (seconds, nanoseconds),
        } = self;
        write!(
            f,
            "{device:x}-{inode:x}-{size:x}-{seconds}.{nanoseconds:09}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn another_file_and_a_changed_one_are_noticed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        let stamp = Stamp::of(file.as_file()).unwrap();
        stamp.check(file.as_file(), &path).unwrap();
        let other = tempfile::NamedTempFile::new().unwrap();
        assert!(stamp.check(other.as_file(), &path).is_err());
        file.write_all(b"x").unwrap();
        let error = stamp.check(file.as_file(), &path).unwrap_err();
        assert!(matches!(error, Error::Replaced { .. }), "{error}");
    }

    #[test]
    fn a_change_that_keeps_size_and_time_is_noticed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"one").unwrap();
        let time = file.as_file().metadata().unwrap().modified().unwrap();
        let stamp = Stamp::of(file.as_file()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(file.path(), b"two").unwrap();
        file.as_file().set_modified(time).unwrap();
        assert_ne!(Stamp::of(file.as_file()).unwrap(), stamp);
    }
}
