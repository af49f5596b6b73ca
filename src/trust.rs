//! What may be remembered of a file by its stamp, and whose memories are believed.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What fstatfs(2) says of filesystems whose times a user makes up.
const FUSE: i64 = 0x6573_5546;

/// The kind of filesystem that a regular file is on, if its stamp can be relied on: writes to a block device
/// leave the stamp as it is.
pub(crate) fn filesystem(file: &File) -> Option<i64> {
    let filesystem = nix::sys::statfs::fstatfs(file).ok()?.filesystem_type().0;
    #[allow(clippy::unnecessary_cast)] // It is another type elsewhere.
    let filesystem = filesystem as i64;
    let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
    (is_regular && filesystem != FUSE).then_some(filesystem)
}

/// Whether the stamp of the file at `path` can be relied on.
pub(crate) fn has_true_stamp(path: &Path) -> bool {
    // Opening a FIFO would wait for a writer.
    let is_regular = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    is_regular && File::open(path).is_ok_and(|file| filesystem(&file).is_some())
}

/// Whether it is a real directory, which nobody but this user can write into.
pub(crate) fn is_directory_of(path: &Path, uid: u32) -> bool {
    is_owners(path, uid, true)
}

/// Whether it is a real file, which nobody but this user can write into.
pub(crate) fn is_file_of(path: &Path, uid: u32) -> bool {
    is_owners(path, uid, false)
}

fn is_owners(path: &Path, uid: u32, directory: bool) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| {
        (match directory {
            true => metadata.is_dir(),
            false => metadata.is_file(),
        }) && metadata.uid() == uid
            && metadata.mode() & 0o022 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{symlink, PermissionsExt};

    #[test]
    fn memories_are_the_owners_and_no_links() {
        let place = tempfile::tempdir().unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        let path = |name: &str| place.path().join(name);
        let set = |name: &str, mode| {
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir(path("d")).unwrap();
        set("d", 0o755);
        fs::write(path("f"), "").unwrap();
        set("f", 0o644);
        symlink("d", path("to-d")).unwrap();
        symlink("f", path("to-f")).unwrap();
        assert!(is_directory_of(&path("d"), uid) && is_file_of(&path("f"), uid));
        assert!(!is_directory_of(&path("d"), uid + 1) && !is_file_of(&path("f"), uid + 1));
        assert!(!is_directory_of(&path("to-d"), uid) && !is_file_of(&path("to-f"), uid));
        assert!(!is_directory_of(&path("f"), uid) && !is_file_of(&path("d"), uid));
        for mode in [0o775, 0o757] {
            set("d", mode);
            assert!(!is_directory_of(&path("d"), uid));
        }
    }

    #[test]
    fn only_regular_files_have_stamps_to_rely_on() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(has_true_stamp(file.path()));
        for path in ["/dev/null", "/", "/missing"] {
            assert!(!has_true_stamp(Path::new(path)));
        }
        assert!(filesystem(&File::open("/dev/null").unwrap()).is_none());
    }
}
