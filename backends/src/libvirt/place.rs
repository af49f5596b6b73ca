//! What a machine needs by name while it is started.
//!
//! libvirt's daemon and QEMU open files and sockets by their names. They are in a directory that only the
//! caller enters, and once QEMU runs it has opened all of them: then the directory goes, and whatever ends the
//! launcher leaves no file.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{symlink, DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

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
}

/// The directory; it goes when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
}

impl Place {
    /// A path that nothing has yet, in the directory for temporary files.
    ///
    /// # Errors
    /// There is no randomness.
    pub(super) fn choose() -> Result<PathBuf> {
        let random = uuid()?;
        let name = format!(
            ".apppot-{}",
            random.split('-').next_back().unwrap_or(&random)
        );
        let base = std::env::temp_dir();
        // XML carries neither other bytes nor control characters.
        let base = match base.to_str() {
            Some(text) if base.is_absolute() && !text.contains(char::is_control) => base,
            _ => PathBuf::from("/tmp"),
        };
        Ok(base.join(name))
    }

    /// Makes it.
    ///
    /// # Errors
    /// There is no room, or it exists.
    pub(super) fn make(path: &Path) -> Result<Self> {
        let made = DirBuilder::new().mode(0o700).create(path);
        made.map_err(Error::file("make directory", path))?;
        Ok(Place {
            path: path.to_owned(),
        })
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

    /// Listens at a socket.
    ///
    /// # Errors
    /// The path is too long for one, or there is no room.
    pub(super) fn listen(&self, name: &str) -> Result<UnixListener> {
        let path = self.path.join(name);
        let listener = UnixListener::bind(&path).map_err(Error::file("listen at", path))?;
        let quick = listener.set_nonblocking(true);
        quick.map_err(Error::system("listen for the machine"))?;
        Ok(listener)
    }
}

/// Who has connected; QEMU does that before libvirt says that it runs.
///
/// # Errors
/// Nobody has.
pub(super) fn connected(listener: &UnixListener) -> Result<UnixStream> {
    let failed = "hear of the machine, which libvirt says is running";
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_the_caller_enters_and_nothing_stays() {
        let path = Place::choose().unwrap();
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
        drop(place);
        assert!(!path.exists());
        assert!(Path::new("/usr").exists());
    }
}
