//! What is known of a program or kernel, kept in the user's cache: asking it takes longer than its
//! first milliseconds.
//!
//! A file each, named after what changes when the program is replaced. Whatever goes wrong here
//! only costs time, so nothing is reported.

use std::fs::{self, File, Metadata};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, AT_FDCWD};

/// What is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Configurations of User-Mode Linux kernels.
    UmlConfig,
    /// Releases of x86 kernels.
    Release,
    /// Versions of QEMU.
    QemuVersion,
    /// Versions of virtiofsd.
    VirtiofsdVersion,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            // Another folder whenever other options are kept.
            Kind::UmlConfig => "kernels-3",
            Kind::Release => "releases",
            Kind::QemuVersion => "qemu",
            Kind::VirtiofsdVersion => "virtiofsd",
        }
    }
}

/// The text that was kept for the file with this metadata.
pub(crate) fn get(kind: Kind, file: &Metadata) -> Option<String> {
    fs::read_to_string(place(kind, file)?).ok()
}

/// Keeps `text` for the file with this metadata.
pub(crate) fn put(kind: Kind, file: &Metadata, text: &str) {
    if let Some(path) = place(kind, file) {
        let _ = write(&path, text);
    }
}

/// The directory of everything that is kept.
pub(crate) fn directory() -> Option<PathBuf> {
    let cache = absolute_variable("XDG_CACHE_HOME")
        .or_else(|| Some(absolute_variable("HOME")?.join(".cache")))?;
    Some(cache.join("apppot"))
}

/// The path that an environment variable holds, when it is an absolute one.
pub(crate) fn absolute_variable(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(name)?);
    path.is_absolute().then_some(path)
}

/// A smaller file is perhaps a script that starts the real one, and says nothing of when that
/// changes.
const SMALLEST: u64 = 1 << 20;

fn place(kind: Kind, file: &Metadata) -> Option<PathBuf> {
    if file.len() < SMALLEST {
        return None;
    }
    let name = format!(
        "{:x}-{:x}-{:x}-{:x}.{:09}",
        file.dev(),
        file.ino(),
        file.len(),
        file.mtime(),
        file.mtime_nsec()
    );
    Some(directory()?.join(kind.folder()).join(name))
}

/// The file gets its name when it is whole: nobody reads half of it, and nothing is left of one
/// that is not finished.
pub(crate) fn write(path: &Path, text: &str) -> std::io::Result<()> {
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
