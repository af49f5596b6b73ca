//! What is known of a kernel, kept in the user's cache: asking it takes longer than its boot's
//! first milliseconds.
//!
//! A file a kernel, named after what changes when the kernel is replaced. Whatever goes wrong here
//! only costs time, so nothing is reported.

use std::fs::{self, File, Metadata};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, AT_FDCWD};

/// The text that was kept for the kernel with this metadata.
pub(super) fn get(kernel: &Metadata) -> Option<String> {
    fs::read_to_string(place(kernel)?).ok()
}

/// Keeps `text` for the kernel with this metadata.
pub(super) fn put(kernel: &Metadata, text: &str) {
    if let Some(path) = place(kernel) {
        let _ = write(&path, text);
    }
}

/// A smaller file is no kernel but perhaps a script that starts one, and says nothing of when that
/// changes.
const SMALLEST: u64 = 1 << 20;

fn place(kernel: &Metadata) -> Option<PathBuf> {
    if kernel.len() < SMALLEST {
        return None;
    }
    let cache = super::kernel::absolute_variable("XDG_CACHE_HOME")
        .or_else(|| Some(super::kernel::absolute_variable("HOME")?.join(".cache")))?;
    let name = format!(
        "{:x}-{:x}-{:x}-{:x}.{:09}",
        kernel.dev(),
        kernel.ino(),
        kernel.len(),
        kernel.mtime(),
        kernel.mtime_nsec()
    );
    Some(cache.join("apppot/kernels").join(name))
}

/// The file gets its name when it is whole: nobody reads half of it, and nothing is left of one
/// that is not finished.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let mut file = File::options()
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC)
        .open(directory)?;
    file.write_all(text.as_bytes())?;
    let unnamed = crate::process::descriptor_path(file.as_raw_fd());
    nix::unistd::linkat(
        AT_FDCWD,
        unnamed.as_str(),
        AT_FDCWD,
        path,
        AtFlags::AT_SYMLINK_FOLLOW,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernels/name");
        write(&path, "CONFIG_HZ=100\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "CONFIG_HZ=100\n");
        assert!(write(&path, "other").is_err(), "the first one stays");
        let names = fs::read_dir(directory.path().join("kernels")).unwrap();
        assert_eq!(names.count(), 1);
    }
}
