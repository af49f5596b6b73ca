//! What can go wrong before and while a machine runs.

use std::io;
use std::path::{Path, PathBuf};

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a machine cannot be had. [`Error::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation on a file failed.
    #[error("cannot {what} '{}'", path.display())]
    File {
        /// The operation, such as `open`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An operation on no particular file failed.
    #[error("cannot {what}")]
    System {
        /// The operation.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The file is no appliance.
    #[error("'{}' is no appliance image: {reason}", path.display())]
    NoImage {
        /// The file.
        path: PathBuf,
        /// What was found in it.
        reason: String,
    },
    /// The image is used in a way that excludes this one.
    #[error("'{}' is in use by another machine", path.display())]
    InUse {
        /// The image or overlay file.
        path: PathBuf,
    },
    /// The file is not the one that was examined, or has changed since.
    #[error("'{}' was replaced or changed while it was examined", path.display())]
    Replaced {
        /// The image or archive.
        path: PathBuf,
    },
    /// The overlay file does not belong to the image.
    #[error("overlay file '{}' cannot be used: {reason}", path.display())]
    Overlay {
        /// The overlay file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no kernel.
    #[error("no {what} was found (looked for {})", list(searched))]
    NoKernel {
        /// What kind of kernel.
        what: &'static str,
        /// What to do.
        hint: &'static str,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// The kernel cannot be used.
    #[error("'{}' cannot be used as kernel: {reason}", path.display())]
    Kernel {
        /// The kernel.
        path: PathBuf,
        /// Why.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The kernel lacks something that the machine needs.
    #[error("kernel {release} has no {what}")]
    KernelLacks {
        /// The kernel's release.
        release: String,
        /// What is missing.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// The hypervisor cannot be used.
    #[error("{program} cannot be used: {reason}")]
    NoProgram {
        /// Its name or path.
        program: String,
        /// Why.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The backend lacks something that the machine needs.
    #[error("backend '{backend}' cannot {what}")]
    Incapable {
        /// The backend.
        backend: &'static str,
        /// What it cannot do.
        what: String,
        /// What to do, where that is known.
        hint: Option<&'static str>,
    },
    /// The host does not give the memory.
    #[error("guest memory of {} does not fit: {reason}", mib(*memory))]
    Memory {
        /// What was asked for, bytes.
        memory: u64,
        /// What is in the way.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// A limit of this process is too low.
    #[error("this process may have {limit} {name}, and a machine needs {least}")]
    Limit {
        /// What is limited, and the limit's name.
        name: &'static str,
        /// The limit.
        limit: u64,
        /// The least that will do.
        least: u64,
        /// What to do.
        hint: String,
    },
    /// The contract cannot be written.
    #[error("the command cannot be handed to the guest")]
    Contract(#[from] apppot_contract::Error),
    /// A raw kernel argument would end or change the contract.
    #[error("'{word}' cannot be passed as kernel argument: {reason}")]
    Extra {
        /// The word.
        word: String,
        /// Why.
        reason: &'static str,
    },
    /// The guest cannot be connected to the network.
    #[error("the machine cannot have a network: {reason}")]
    Network {
        /// Why.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// libvirt does not do what is wanted of it.
    #[error("cannot {what}: {reason}")]
    Libvirt {
        /// What.
        what: String,
        /// What it says.
        reason: String,
        /// What to do.
        hint: Option<&'static str>,
    },
    /// Confinement was required and cannot be had.
    #[error("the machine cannot be confined: {reason}")]
    Containment {
        /// Why.
        reason: String,
    },
}

impl Error {
    /// An [`Error::File`] from an I/O error, for `map_err`.
    pub fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::File { what, path, source }
    }

    /// An [`Error::System`] from an I/O error or errno, for `map_err`.
    pub fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Error::System {
            what,
            source: source.into(),
        }
    }

    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NoImage { .. } => String::from(
                "an image is a raw ext4, squashfs or erofs filesystem, a raw disk with such a partition, \
                 or a root directory",
            ),
            Error::InUse { path } => format!(
                "wait for the other machine to end; machines share '{}' when none of them writes into it",
                path.display()
            ),
            Error::Replaced { .. } => String::from("try again when nothing writes to it"),
            Error::Overlay { path, .. } => format!(
                "use the image that it was made for, or another overlay file than '{}'",
                path.display()
            ),
            Error::NoKernel { hint, .. }
            | Error::Kernel { hint, .. }
            | Error::KernelLacks { hint, .. }
            | Error::NoProgram { hint, .. } => String::from(*hint),
            Error::Memory { hint, .. } | Error::Limit { hint, .. } => hint.clone(),
            Error::Network { hint, .. } => return hint.clone(),
            Error::Incapable { hint, .. } | Error::Libvirt { hint, .. } => {
                return hint.map(String::from)
            }
            Error::Containment { .. } => {
                String::from("--containment auto runs without confinement where there is none")
            }
            Error::File { source, path, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                format!("check the permissions of '{}'", path.display())
            }
            _ => return None,
        })
    }
}

/// `bytes` in MiB where they are whole MiB, for messages.
fn mib(bytes: u64) -> String {
    if bytes >= 1 << 20 {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{bytes} bytes")
    }
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<_> = paths
        .iter()
        .map(|path: &PathBuf| Path::display(path).to_string())
        .collect();
    shown.join(", ")
}
