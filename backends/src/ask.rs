//! A short question to a program, such as `--version`. The program may be anything: it is given little
//! time and room.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{self, wait_readable};

/// A program answers in milliseconds; one that takes this long does not know the question.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer is a kernel's configuration, below 200 KiB.
const LONGEST: usize = 4 << 20;

/// What the program at `path` prints when it is called with `argument`.
///
/// # Errors
/// It cannot be started, or does not answer soon: in words.
pub(crate) fn program(path: &Path, argument: &str) -> Result<String, String> {
    let mut child = Command::new(path)
        .arg(argument)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| error.to_string())?;
    let text = child.stdout.take().map(read_soon);
    // It has printed all or will be asked no more; either way it is of no further use.
    process::kill_group(child.id() as libc::pid_t);
    let _ = child.wait();
    match text.transpose() {
        Ok(text) => Ok(String::from_utf8_lossy(&text.unwrap_or_default()).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            Err(format!("it does not answer to {argument}"))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Reads to the end, within [`PATIENCE`] and [`LONGEST`].
fn read_soon(mut pipe: impl Read + AsFd) -> std::io::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let mut text = Vec::new();
    let mut buffer = [0; 64 << 10];
    while text.len() < LONGEST {
        if !wait_readable(pipe.as_fd(), Some(deadline))? {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        match pipe.read(&mut buffer)? {
            0 => break,
            len => text.extend_from_slice(&buffer[..len]),
        }
    }
    Ok(text)
}
