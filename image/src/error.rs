//! What can go wrong.

use std::io;

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing failed.
    #[error("cannot {what}")]
    Io {
        /// The operation and what it was done to.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The archive breaks a rule of its format.
    #[error("the archive is malformed: {0}")]
    Malformed(String),
    /// A member of the archive cannot be taken.
    #[error("'{member}' in the archive: {reason}")]
    Member {
        /// The member's path as the archive has it, made printable.
        member: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The archive ends early.
    #[error("the archive is truncated")]
    Truncated,
    /// A limit is exceeded.
    #[error("too large: {0}")]
    Limit(String),
    /// The content needs a larger filesystem.
    #[error("{needed} bytes are needed, the size is {size}")]
    Size {
        /// Least size that would do, bytes.
        needed: u64,
        /// Size that was asked for, bytes.
        size: u64,
    },
    /// Bytes are not those that their digest stands for.
    #[error("{what} is damaged: its digest is {found}, not {expected}")]
    Digest {
        /// What the bytes are.
        what: String,
        /// Digest of the bytes.
        found: String,
        /// Digest that they were named by.
        expected: String,
    },
    /// A container image is not to be had as it is described.
    #[error("{0}")]
    Container(String),
    /// The registry refuses.
    #[error("registry {registry}: {reason}")]
    Registry {
        /// Its host, and port.
        registry: String,
        /// What it says.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A tree that is copied cannot be read.
    #[error(transparent)]
    Tree(#[from] apppot_snapshot::Error),
}

impl Error {
    /// An [`Error::Io`], for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Error::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                String::from("free some space, or write the image to another disk")
            }
            Error::Truncated => String::from("copy the archive again, or make it again"),
            Error::Limit(_) => String::from("if you trust the source, allow more with --max-size"),
            Error::Size { needed, .. } => {
                format!(
                    "give --size {}M or more, or leave it out",
                    needed.div_ceil(1 << 20)
                )
            }
            Error::Digest { .. } => String::from("fetch the image again"),
            Error::Registry { hint, .. } => hint.clone()?,
            Error::Tree(error) => error.hint()?.to_owned(),
            _ => return None,
        })
    }
}

/// A path or name from an archive, for messages: no control characters, not too long.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let mut shown: String = text
        .chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(200).is_some() {
        shown.push('…');
    }
    shown
}
