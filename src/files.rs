//! Files that the user names, which may be anything: opening one waits for nobody, and what is read
//! is bounded.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::statfs::{fstatfs, FsType};

/// The filesystem of pipes that have no name (PIPEFS_MAGIC of linux/magic.h).
const PIPEFS: FsType = FsType(0x5049_5045);

/// How long the reader of a pipe may take.
const PATIENCE: Duration = Duration::from_secs(5);

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

/// Opens a regular file.
///
/// # Errors
/// As open(2), or it is something else.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let file = options().read(true).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// Reads TOML that is in `path`.
///
/// # Errors
/// It is none, or has other keys and values than `T`; file and line are named.
pub(crate) fn toml<T: serde::de::DeserializeOwned>(
    text: &str,
    path: &Path,
    hint: &str,
) -> anyhow::Result<T> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        let message = format!("{}:{line}: {}", path.display(), error.message().trim());
        crate::failure::hinted(message, hint)
    })
}

/// Opens a file or a pipe, such as a shell makes of `<(command)`.
///
/// # Errors
/// As open(2), or it is a pipe with a name and nobody writes to it for a while.
pub(crate) fn open_stream(path: &Path) -> io::Result<File> {
    let file = options().read(true).open(path)?;
    let is_pipe = file.metadata()?.file_type().is_fifo();
    if is_pipe && fstatfs(&file)?.filesystem_type() != PIPEFS {
        wait_for(&file, PollFlags::POLLIN, Instant::now() + PATIENCE)
            .map_err(|_| io::Error::other("it is a named pipe, and nobody writes to it"))?;
    }
    // Whoever writes takes their time.
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
    Ok(file)
}

/// Reads to the end, which must come within `most` bytes.
///
/// # Errors
/// As read(2), or there is more.
pub(crate) fn read_bounded(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::other(format!(
            "it is larger than {} MiB",
            most >> 20
        ))),
        false => Ok(bytes),
    }
}

/// Whether the disk below a file is full, as far as can be known.
pub(crate) fn lacks_space(path: &Path) -> bool {
    let stat = nix::sys::statvfs::statvfs(path);
    stat.is_ok_and(|stat| stat.blocks_available() * stat.fragment_size() < 1 << 20)
}

/// Writes to something that is no regular file, such as `/dev/stderr` or a named pipe.
///
/// # Errors
/// As open(2) and write(2), or a reader does not read for a while.
pub(crate) fn write_special(path: &Path, mut bytes: &[u8]) -> io::Result<()> {
    let mut file = options().write(true).open(path).map_err(|error| {
        match error.raw_os_error() == Some(libc::ENXIO) {
            true => io::Error::other("nobody reads from it"),
            false => error,
        }
    })?;
    let until = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_for(&file, PollFlags::POLLOUT, until)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_for(file: &File, event: PollFlags, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(file.as_fd(), event)], left)? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fifo(place: &tempfile::TempDir) -> std::path::PathBuf {
        let path = place.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let place = tempfile::tempdir().unwrap();
        for path in [&fifo(&place), place.path(), Path::new("/dev/zero")] {
            assert!(open_regular(path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn what_has_no_end_is_refused() {
        let error = read_bounded(open_stream(Path::new("/dev/zero")).unwrap(), 1 << 20);
        assert!(error.unwrap_err().to_string().contains("1 MiB"));
        assert_eq!(
            read_bounded(open_stream(Path::new("/dev/null")).unwrap(), 0).unwrap(),
            b""
        );
    }

    #[test]
    fn named_pipes_have_somebody_at_the_other_end_or_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = fifo(&place);
        let error = write_special(&path, b"lost").unwrap_err();
        assert!(error.to_string().contains("nobody reads"), "{error}");
        let error = open_stream(&path).unwrap_err();
        assert!(error.to_string().contains("nobody writes"), "{error}");
        let writer = std::thread::spawn({
            let path = path.clone();
            move || std::fs::write(path, "A=1").unwrap()
        });
        assert_eq!(
            read_bounded(open_stream(&path).unwrap(), 10).unwrap(),
            b"A=1"
        );
        writer.join().unwrap();
    }

    #[test]
    fn a_pipe_without_a_name_may_be_empty() {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(write);
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&read));
        assert_eq!(
            read_bounded(open_stream(Path::new(&path)).unwrap(), 10).unwrap(),
            b""
        );
    }
}
