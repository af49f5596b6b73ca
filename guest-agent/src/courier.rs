//! The courier: the other end of the link in a machine that only an object store reaches. A program of its own,
//! installed beside the agent; it has what HTTP and TLS need, which the agent would carry through every boot.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::link::Link;

/// Where images of layout disk have it.
const PROGRAM: &str = "/usr/lib/apppot/courier";

/// The process.
pub(crate) struct Courier(Child);

/// What it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errand {
    /// The whole job.
    Job,
    /// The report of a job that does not run: nothing that is stored of it is touched.
    Report,
}

impl Courier {
    /// Starts it with the document that names the objects, or names where that is. `metadata` are the
    /// addresses of EC2's metadata service, in its machines.
    ///
    /// # Errors
    /// The image has none, or it cannot be started.
    pub(crate) fn start(
        document: &str,
        errand: Errand,
        metadata: &[SocketAddr],
    ) -> io::Result<(Self, Link)> {
        if !Path::new(PROGRAM).exists() {
            let reason = format!("the image has no {PROGRAM}: it is in images of layout disk");
            return Err(io::Error::other(reason));
        }
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(PROGRAM);
        if errand == Errand::Report {
            command.arg("--report-only");
        }
        for address in metadata {
            command.arg("--metadata").arg(address.to_string());
        }
        // URLs are secrets: they are not where ps shows them.
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(OwnedFd::from(theirs))
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(document.as_bytes())?;
        }
        // It has our other end otherwise.
        drop(command);
        let link = Link::over(File::from(OwnedFd::from(ours)))?;
        Ok((Courier(child), link))
    }

    /// Waits until it has stored everything, and the report last.
    pub(crate) fn wait(mut self) {
        // It may have been waited for, as any child that has ended.
        let _ = self.0.wait();
    }
}
