//! passt, the helper that has the sockets.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, socketpair, sockopt, AddressFamily, SockFlag, SockType};

use super::{ethernet, mac, pump, ADDRESS, GATEWAY, GATEWAY_MAC, NAMESERVER, PREFIX};
use crate::process::{self, Process, Spawn};
use crate::spec::Network;
use crate::{Error, Result};

/// passt's number for its end of the stream.
const STREAM: i32 = process::FIRST_DESCRIPTOR;
/// Bytes that a socket is to hold: passt drops frames that its own does not take. Systems grant
/// 416 KiB where nobody has raised the limit (`net.core.wmem_max`).
const BUFFER: usize = 1 << 20;
/// A passt that works answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// What passt is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passt {
    program: PathBuf,
    args: Vec<OsString>,
}

/// passt at work. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Running {
    process: Process,
    /// What it says, and until it is [`Running::ready`] the streams of the pump.
    words: File,
    waiting: Option<(OwnedFd, UnixStream)>,
}

impl Passt {
    /// What `network` takes on this host; `None` when it takes nothing.
    ///
    /// # Errors
    /// passt is not installed.
    pub(crate) fn plan(network: Network) -> Result<Option<Self>> {
        let Network::User { host_loopback } = network else {
            return Ok(None);
        };
        let program = Self::find()?;
        Ok(Some(Passt {
            program,
            args: arguments(host_loopback),
        }))
    }

    /// The program.
    ///
    /// # Errors
    /// It is not installed.
    pub(super) fn find() -> Result<PathBuf> {
        find().ok_or_else(|| Error::Network {
            reason: String::from("the program passt is not installed"),
            hint: Some(String::from("install the package passt")),
        })
    }

    /// Its command line, for people.
    pub(crate) fn shown(&self) -> Vec<String> {
        process::shown(self.program.as_os_str(), &self.args)
    }

    /// Starts it, and makes the socket for the guest, of which each packet is an Ethernet frame. Must
    /// be called while this process has one thread.
    ///
    /// # Errors
    /// The process cannot be started. That it does not work shows in [`Running::ready`].
    pub(crate) fn start(&self) -> Result<(Running, OwnedFd)> {
        let failed = "connect the guest's network";
        let flags = SockFlag::SOCK_CLOEXEC;
        let (host_end, guest_end) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
                .map_err(Error::system(failed))?;
        let (ours, theirs) = UnixStream::pair().map_err(Error::system(failed))?;
        for end in [
            theirs.as_fd(),
            ours.as_fd(),
            guest_end.as_fd(),
            host_end.as_fd(),
        ] {
            // Less than asked for is granted, and costs speed only.
            let _ = setsockopt(&end, sockopt::SndBuf, &BUFFER);
        }
        let (words, console) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(Error::system(failed))?;
        let at_end = process::at_end(|| {}).map_err(Error::system("start the watch over passt"))?;
        let process = Spawn {
            program: self.program.clone().into(),
            args: self.args.clone(),
            env: Vec::new(),
            descriptors: vec![(STREAM, theirs.into())],
            console,
            cpu: None,
            fixed_addresses: false,
            // It confines itself: namespaces, seccomp, no capabilities (passt(1)).
            confinement: None,
            at_end,
        }
        .start()
        .map_err(Error::file("start", &self.program))?;
        let running = Running {
            process,
            words: words.into(),
            waiting: Some((host_end, ours)),
        };
        Ok((running, guest_end))
    }
}

impl Running {
    /// Waits until passt works, and lets frames pass from then on.
    ///
    /// # Errors
    /// passt has ended: what it said about that.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let Some((guest, stream)) = self.waiting.take() else {
            return Ok(());
        };
        let started = self.ask(&stream).and_then(|()| pump::start(guest, stream));
        started.map_err(|error| self.explain(&error))
    }

    fn ask(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        pump::ask(stream, &ethernet::arp_request())?;
        stream.set_read_timeout(None)
    }

    fn explain(&mut self, error: &io::Error) -> Error {
        let ended = self
            .process
            .wait(Some(Instant::now() + Duration::from_secs(1)));
        let said = match ended {
            Ok(Some(_)) => last_words(&mut self.words),
            _ => None,
        };
        Error::Network {
            reason: said.map_or_else(
                || format!("passt does not answer: {error}"),
                |said| format!("passt: {said}"),
            ),
            hint: None,
        }
    }
}

/// What a process that has ended said, on one line; without its complaints about a missing syslog.
fn last_words(words: &mut File) -> Option<String> {
    const ENOUGH: u64 = 16 << 10;
    let mut text = Vec::new();
    words.take(ENOUGH).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Failed to send "))
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// passt's arguments (passt(1)); those that Debian 12's version has.
fn arguments(host_loopback: bool) -> Vec<OsString> {
    let mut words: Vec<String> = ["--foreground", "--quiet", "--stderr", "--ipv4-only"]
        .map(String::from)
        .into();
    let mut option = |name: &str, value: String| {
        words.push(format!("--{name}"));
        words.push(value);
    };
    option("fd", STREAM.to_string());
    // Nothing listens on the host.
    option("tcp-ports", String::from("none"));
    option("udp-ports", String::from("none"));
    option("address", ADDRESS.to_string());
    option("netmask", PREFIX.to_string());
    option("gateway", GATEWAY.to_string());
    option("mac-addr", mac(GATEWAY_MAC));
    option("dns-forward", NAMESERVER.to_string());
    words.push(String::from("--no-dhcp"));
    if !host_loopback {
        words.push(String::from("--no-map-gw"));
    }
    words.into_iter().map(OsString::from).collect()
}

/// `passt` on PATH, or where distributions have it.
fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(["/usr/local/bin", "/usr/bin"].map(PathBuf::from))
        .map(|directory| directory.join("passt"))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use nix::unistd::{access, AccessFlags};
    file.is_file() && access(file, AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_loopback_is_mapped_when_asked_only() {
        let has = |args: &[OsString], word: &str| args.iter().any(|arg| arg == word);
        assert!(has(&arguments(false), "--no-map-gw"));
        assert!(!has(&arguments(true), "--no-map-gw"));
    }

    #[test]
    fn words_about_syslog_are_left_out() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let text = "Failed to send 9 bytes to syslog\n\nNo routable interface\n";
        nix::unistd::write(&write, text.as_bytes()).unwrap();
        drop(write);
        let said = last_words(&mut read.into());
        assert_eq!(said.as_deref(), Some("No routable interface"));
    }
}
