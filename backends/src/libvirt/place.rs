//! What a machine needs by name while it is started.
//!
//! libvirt's daemon and QEMU open files and sockets by their names. They are in a directory that only the
//! caller enters, and once QEMU runs it has opened all of them: then the directory goes, and whatever ends the
//! launcher leaves no file: it holds a lock on its directory, and what nobody holds a lock on is removed by the
//! next one.

use std::fs::{DirBuilder, DirEntry, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{symlink, DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;

use super::xml::is_carried;
use crate::flock::{self, Use};
use crate::{Error, Result};

/// Names in the directory.
pub(super) mod name {
    /// The socket that the link's port connects to.
    pub(in super::super) const LINK: &str = "link";
    /// The socket that the serial line connects to.
    pub(in super::super) const CONSOLE: &str = "console";
    /// The initramfs.
    pub(in super::super) const INITRAMFS: &str = "initramfs";
    /// The contract for fw_cfg.
    pub(in super::super) const CONTRACT: &str = "contract";
    /// The firmware's variables.
    pub(in super::super) const VARIABLES: &str = "variables";
    /// What a guest writes that firmware starts.
    pub(in super::super) const VANISHING: &str = "writes";
    /// The ring for standard input.
    pub(in super::super) const RING: &str = "stdin";
    /// The ring for the job's files.
    pub(in super::super) const FILES_RING: &str = "files";

    /// A further disk.
    pub(in super::super) fn disk(index: usize) -> String {
        format!("disk{index}")
    }

    /// The socket of who serves a directory.
    pub(in super::super) fn share(index: usize) -> String {
        format!("share{index}")
    }

    /// The longest of these names, bytes.
    pub(in super::super) const LONGEST: usize = "initramfs".len();
}

const PREFIX: &str = ".apppot-libvirt-";

/// The longest name of a socket, bytes (`sun_path` in unix(7), but for the byte that ends it).
const LONGEST_SOCKET: usize = 107;

/// The directory; it goes when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// Taken as long as it is used.
    _lock: Lock,
}

impl Place {
    /// A path that nothing has yet, in the directory for temporary files.
    ///
    /// # Errors
    /// There is no randomness, or the names of sockets would be too long.
    pub(super) fn choose() -> Result<PathBuf> {
        Self::choose_in(std::env::temp_dir())
    }

    fn choose_in(base: PathBuf) -> Result<PathBuf> {
        let random = uuid()?;
        let name = format!(
            "{PREFIX}{}",
            random.split('-').next_back().unwrap_or(&random)
        );
        // XML carries neither other bytes nor every character.
        let base = match base.to_str() {
            Some(text) if base.is_absolute() && is_carried(text) => base,
            _ => PathBuf::from("/tmp"),
        };
        let path = base.join(name);
        match path.as_os_str().len() + 1 + name::LONGEST <= LONGEST_SOCKET {
            true => Ok(path),
            false => Err(Error::Libvirt {
                what: format!("keep a machine's sockets in '{}'", base.display()),
                reason: format!("their names would be longer than {LONGEST_SOCKET} bytes"),
                hint: Some("set TMPDIR to a shorter path, such as /tmp"),
            }),
        }
    }

    /// Makes it, and removes those that launchers and their watches have left that were killed.
    ///
    /// # Errors
    /// There is no room, or it exists.
    pub(super) fn make(path: &Path) -> Result<Self> {
        if let Some(base) = path.parent() {
            sweep(base);
        }
        loop {
            let made = DirBuilder::new().mode(0o700).create(path);
            made.map_err(Error::file("make directory", path))?;
            // Somebody may sweep before it is locked.
            if let Some(lock) = Lock::take(path) {
                let path = path.to_owned();
                return Ok(Place { path, _lock: lock });
            }
        }
    }

    /// Makes a file.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn file(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(&path).map_err(Error::file("make", path))
    }

    /// Makes a file that holds these.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn put<P: AsRef<[u8]>>(&self, name: &str, pieces: &[P]) -> Result<()> {
        let mut file = self.file(name)?;
        pieces
            .iter()
            .try_for_each(|piece| file.write_all(piece.as_ref()))
            .map_err(Error::file("write", self.path.join(name)))
    }

    /// Makes a name for `target` that XML can carry.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn link(&self, name: &str, target: &Path) -> Result<()> {
        let path = self.path.join(name);
        symlink(target, &path).map_err(Error::file("make", path))
    }

    /// Makes a name for a file that has none: a link of its own where that can be, else one to the descriptor,
    /// which whoever runs as the caller can follow.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn name(&self, name: &str, file: &File) -> Result<()> {
        let path = self.path.join(name);
        let number = file.as_raw_fd();
        let own = format!("/proc/self/fd/{number}");
        let here = nix::fcntl::AT_FDCWD;
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        if nix::unistd::linkat(here, own.as_str(), here, &path, follow).is_ok() {
            return Ok(());
        }
        let target = format!("/proc/{}/fd/{number}", std::process::id());
        symlink(target, &path).map_err(Error::file("make", path))
    }

    /// Listens at a socket.
    ///
    /// # Errors
    /// The path is too long for one, or there is no room.
    pub(super) fn listen(&self, name: &str) -> Result<UnixListener> {
        let path = self.path.join(name);
        let listener = UnixListener::bind(&path).map_err(Error::file("listen at", path))?;
        Ok(listener)
    }
}

/// A directory in use.
#[derive(Debug)]
struct Lock {
    _file: File,
    /// Whether others see it; some filesystems have no locks of directories.
    is_seen: bool,
}

impl Lock {
    /// `None` when somebody else has it, or the directory is not there any more.
    fn take(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let is_seen = match flock::take(&file, path, Use::Writing) {
            Ok(()) => true,
            Err(Error::InUse { .. }) => return None,
            Err(_) => false,
        };
        let (ours, there) = (file.metadata().ok()?, path.symlink_metadata().ok()?);
        let is_there = ours.dev() == there.dev() && ours.ino() == there.ino();
        is_there.then_some(Lock {
            _file: file,
            is_seen,
        })
    }
}

/// Removes the caller's directories in `base` that nobody uses.
fn sweep(base: &Path) {
    let own = nix::unistd::geteuid().as_raw();
    let is_ours = |entry: &DirEntry| {
        let name = entry.file_name();
        let metadata = entry.path().symlink_metadata();
        name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && metadata.is_ok_and(|it| it.is_dir() && it.uid() == own)
    };
    let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
    for entry in entries.filter(is_ours) {
        let lock = Lock::take(&entry.path());
        if lock.as_ref().is_some_and(|lock| lock.is_seen) {
            // What cannot be removed stays.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Who has connected; QEMU does that before libvirt says that it runs.
///
/// # Errors
/// Nobody has.
pub(super) fn connected(listener: &UnixListener) -> Result<UnixStream> {
    let failed = "hear of the machine, which libvirt says is running";
    let quick = listener.set_nonblocking(true);
    quick.map_err(Error::system(failed))?;
    let (stream, _) = listener.accept().map_err(Error::system(failed))?;
    stream
        .set_nonblocking(false)
        .map_err(Error::system(failed))?;
    Ok(stream)
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing can be done about a failure here.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A UUID that nothing else has.
///
/// # Errors
/// The kernel gives none.
pub(super) fn uuid() -> Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    Ok(text.trim().to_owned())
}

/// Our descriptors as the daemon and QEMU find them: `self` is somebody else there.
pub(super) fn seen_by_others(path: PathBuf) -> PathBuf {
    let ours = ["/proc/self/fd", "/dev/fd"];
    let number = ours.iter().find_map(|place| path.strip_prefix(place).ok());
    match number {
        Some(number) => Path::new("/proc")
            .join(std::process::id().to_string())
            .join("fd")
            .join(number),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_the_caller_enters_and_nothing_stays() {
        let base = tempfile::tempdir().unwrap();
        let path = Place::choose_in(base.path().to_owned()).unwrap();
        let place = Place::make(&path).unwrap();
        assert!(Place::make(&path).is_err());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        place.put("file", &[&b"a"[..], b"b"]).unwrap();
        assert_eq!(std::fs::read(path.join("file")).unwrap(), b"ab");
        place.link("root", Path::new("/")).unwrap();
        let listener = place.listen("socket").unwrap();
        assert!(connected(&listener).is_err());
        let _stream = UnixStream::connect(path.join("socket")).unwrap();
        connected(&listener).unwrap();
        let unnamed = tempfile::tempfile_in(base.path()).unwrap();
        (&unnamed).write_all(b"disk").unwrap();
        place.name("disk0", &unnamed).unwrap();
        assert_eq!(std::fs::read(path.join("disk0")).unwrap(), b"disk");
        drop(place);
        assert!(!path.exists());
        assert!(Path::new("/usr").exists());
    }

    #[test]
    fn what_was_left_is_removed_and_what_is_used_is_not() {
        let base = tempfile::tempdir().unwrap();
        let choose = || Place::choose_in(base.path().to_owned()).unwrap();
        let used = Place::make(&choose()).unwrap();
        used.put("file", &[b"x"]).unwrap();
        let left = choose();
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("initramfs"), "x").unwrap();
        let other = base.path().join(".apppot-other");
        std::fs::create_dir(&other).unwrap();
        let target = base.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let link = base.path().join(format!("{PREFIX}link"));
        symlink(&target, &link).unwrap();
        let next = Place::make(&choose()).unwrap();
        assert!(!left.exists());
        assert!(other.exists() && target.exists() && link.symlink_metadata().is_ok());
        assert_eq!(std::fs::read(used.path.join("file")).unwrap(), b"x");
        drop(next);
    }

    #[test]
    fn what_xml_does_not_carry_is_not_in_the_name() {
        for base in ["/var/\u{1b}", "/var/\u{fffe}", "/var/\u{ffff}", "var"] {
            let path = Place::choose_in(PathBuf::from(base)).unwrap();
            assert_eq!(path.parent(), Some(Path::new("/tmp")), "{base:?}");
        }
        let path = Place::choose_in(PathBuf::from("/var/<ä>&'\"")).unwrap();
        assert_eq!(path.parent(), Some(Path::new("/var/<ä>&'\"")));
    }

    #[test]
    fn a_long_directory_is_refused_before_anything_starts() {
        let base = PathBuf::from("/tmp").join("x".repeat(90));
        let error = Place::choose_in(base).unwrap_err();
        assert!(error.to_string().contains("107 bytes"), "{error}");
        assert!(error.hint().unwrap().contains("TMPDIR"));
    }

    #[test]
    fn descriptors_of_ours_are_not_those_of_others() {
        let ours = format!("/proc/{}/fd/7", std::process::id());
        for path in ["/proc/self/fd/7", "/dev/fd/7"] {
            assert_eq!(seen_by_others(PathBuf::from(path)), Path::new(&ours));
        }
        let other = PathBuf::from("/srv/proc/self/fd/7");
        assert_eq!(seen_by_others(other.clone()), other);
    }
}
