//! Who uses an image: flock(2) on the file, held by the machine's own process.
//!
//! The descriptor is inherited, so the lock ends with the machine however that ends.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::{Error, Result};

/// How an image is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// By many at once.
    Reading,
    /// By one alone.
    Writing,
}

/// Takes the lock, or says that the image is in use.
///
/// # Errors
/// [`Error::InUse`], or for writing that the filesystem has no locks.
pub fn take(file: &File, path: &Path, used: Use) -> Result<()> {
    let operation = match used {
        Use::Reading => libc::LOCK_SH,
        Use::Writing => libc::LOCK_EX,
    };
    // SAFETY: flock takes no pointers, the descriptor is open.
    if unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EWOULDBLOCK) => Err(Error::InUse {
            path: path.to_owned(),
        }),
        // Some cluster filesystems have no locks: readers do not need any.
        _ if used == Use::Reading => Ok(()),
        _ => Err(Error::file("lock", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_excludes_everyone_and_readers_only_writers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let (a, b, c) = (open(), open(), open());
        take(&a, file.path(), Use::Reading).unwrap();
        take(&b, file.path(), Use::Reading).unwrap();
        assert!(matches!(
            take(&c, file.path(), Use::Writing),
            Err(Error::InUse { .. })
        ));
        drop((a, b));
        // What another test starts has copies of the descriptors until it executes its program.
        let written = (0..200).any(|_| {
            let taken = take(&c, file.path(), Use::Writing).is_ok();
            if !taken {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            taken
        });
        assert!(written, "readers that are gone still exclude a writer");
        assert!(matches!(
            take(&open(), file.path(), Use::Reading),
            Err(Error::InUse { .. })
        ));
    }
}
