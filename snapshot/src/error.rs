//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a base, an archive or a merge is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation on a file failed.
    #[error("cannot {what} '{path}'", path = .path.display())]
    File {
        /// The operation, such as `open`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading or writing a stream failed.
    #[error("cannot {what}")]
    Stream {
        /// The operation.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The image's filesystem cannot be read.
    #[error("the filesystem cannot be read: {0}")]
    Filesystem(String),
    /// The copy-on-write file cannot be read.
    #[error("the overlay file cannot be read: {0}")]
    Overlay(&'static str),
    /// The file is no recorded base.
    #[error("it is no recorded base: {0}")]
    NotBase(String),
    /// The file is no changes archive, or not one that this version reads.
    #[error("it is no changes archive: {0}")]
    NotArchive(String),
    /// The archive ends early.
    #[error("the archive is truncated")]
    Truncated,
    /// The archive's bytes are not those that were written.
    #[error("the archive is damaged: its checksum does not match")]
    Checksum,
    /// The archive breaks a rule of its format.
    #[error("the archive is malformed: {0}")]
    Malformed(String),
    /// The archive was made for something else.
    #[error("the archive was made for another base: {0}")]
    OtherBase(String),
    /// A limit is exceeded.
    #[error("too large: {0}")]
    Limit(String),
    /// A file of a live tree changed under the reader.
    #[error("'{path}' changed while it was read", path = .0.display())]
    Moving(PathBuf),
    /// A pattern cannot be understood.
    #[error("'{pattern}' is no pattern: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why.
        reason: String,
    },
}

impl Error {
    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Error::OtherBase(_) => {
                "use the image that the archive was made for, or --changes-any-base to merge it anyway"
            }
            Error::Truncated | Error::Checksum => "copy the archive again, or make it again",
            Error::Moving(_) => "try again when nothing writes to it, or leave it out with --exclude",
            _ => return None,
        })
    }

    /// The error with its cause, on one line.
    #[must_use]
    pub fn in_full(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }

    /// The error with its cause, and the hint on a line of its own: how the guest's side tells it.
    #[must_use]
    pub fn with_hint(&self) -> String {
        match self.hint() {
            Some(hint) => format!("{}\nhint: {hint}", self.in_full()),
            None => self.in_full(),
        }
    }

    /// An [`Error::File`] from an I/O error or errno, for `map_err`.
    pub fn file<E: Into<io::Error>>(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Error::File {
            what,
            path,
            source: source.into(),
        }
    }

    /// An [`Error::Stream`] from an I/O error or errno, for `map_err`.
    pub fn stream<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Error::Stream {
            what,
            source: source.into(),
        }
    }
}
