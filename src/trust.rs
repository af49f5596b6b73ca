//! What may be remembered of a file by its stamp, and whose memories are believed.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::getegid;

use crate::caller;

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

/// Whether stamps of the files in a directory can be relied on.
pub(crate) fn has_true_stamps(directory: &Path) -> bool {
    let found = nix::sys::statfs::statfs(directory);
    #[allow(clippy::unnecessary_cast)] // It is another type elsewhere.
    found.is_ok_and(|found| found.filesystem_type().0 as i64 != FUSE)
}

/// Whether it is a real directory, which nobody but this user can write into.
pub(crate) fn is_directory_of(path: &Path, uid: u32) -> bool {
    is_owners(path, uid, true)
}

/// Whether nobody but this user and root can put something else in the place of a directory of theirs: `path` is
/// absolute and has no links in it.
pub(crate) fn stays(path: &Path, uid: u32) -> bool {
    let open_to_group = |metadata: &Metadata| {
        // Where every user has a group of their own, the umask lets it write.
        let is_own = || metadata.gid() == getegid().as_raw() && caller::has_private_group();
        metadata.mode() & 0o020 != 0 && metadata.gid() != 0 && !is_own()
    };
    path.ancestors().skip(1).all(|directory| {
        std::fs::symlink_metadata(directory).is_ok_and(|metadata| {
            // In a sticky directory, names are their owners'.
            let is_closed = metadata.mode() & libc::S_ISVTX != 0
                || (metadata.mode() & 0o002 == 0 && !open_to_group(&metadata));
            [uid, 0].contains(&metadata.uid()) && is_closed
        })
    })
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
    fn a_directory_stays_where_others_cannot_move_it() {
        let place = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(place.path()).unwrap().join("a/b");
        fs::create_dir_all(&path).unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        let above = path.parent().unwrap();
        let set = |mode| fs::set_permissions(above, fs::Permissions::from_mode(mode)).unwrap();
        for (mode, expected) in [(0o755, true), (0o757, false), (0o1777, true), (0o700, true)] {
            set(mode);
            assert_eq!(stays(&path, uid), expected, "{mode:o}");
        }
        // Its own mode is another question.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(stays(&path, uid));
        if uid == 0 {
            std::os::unix::fs::chown(above, Some(12345), None).unwrap();
            assert!(!stays(&path, uid) && stays(&path, 12345));
        }
        set(0o770);
        std::os::unix::fs::chown(above, Some(uid), None).unwrap();
        if uid == 0 {
            std::os::unix::fs::chown(above, None, Some(12345)).unwrap();
            assert!(!stays(&path, uid));
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
        assert!(has_true_stamps(Path::new("/proc")) && !has_true_stamps(Path::new("/missing")));
    }
}
