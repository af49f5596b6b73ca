//! The connection to libvirt's daemon.

use std::fmt;

use virt::connect::Connect;

use crate::qemu::kvm::{self, Accelerator};
use crate::{Error, Result};

const START_HINT: &str =
    "install the packages libvirt-daemon-driver-qemu and qemu-system-x86; 'apppot doctor' says more";
const SESSION_HINT: &str = "use qemu:///session";

/// A connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) connect: Connect,
    /// Where to, as libvirt says it.
    pub uri: String,
    /// The daemon's version, such as `9.0.0`.
    pub version: String,
}

/// The URI that is used: the caller's, `LIBVIRT_DEFAULT_URI`, else the caller's own daemon.
#[must_use]
pub fn uri(chosen: Option<&str>) -> String {
    let variable = || std::env::var("LIBVIRT_DEFAULT_URI").ok();
    let chosen = chosen.map(str::to_owned).or_else(variable);
    let chosen = chosen.filter(|uri| !uri.is_empty());
    chosen.unwrap_or_else(|| String::from("qemu:///session"))
}

impl Connection {
    /// Connects to the daemon of [`uri`], which for a session is started where it does not run.
    ///
    /// # Errors
    /// It cannot be reached, is another machine's, or manages no machines of QEMU's.
    pub fn open(chosen: Option<&str>) -> Result<Self> {
        let uri = uri(chosen);
        refuse_remote(&uri)?;
        refuse_system(&uri)?;
        let connection = Self::to(&uri)?;
        let driver = connection
            .connect
            .get_type()
            .map_err(failed("ask libvirt for its driver"))?;
        match driver.as_str() {
            "QEMU" => Ok(connection),
            _ => Err(refused(
                &uri,
                &format!("its machines are of {driver}, not of QEMU"),
                SESSION_HINT,
            )),
        }
    }

    /// Connects to `uri`, whatever it manages.
    pub(super) fn to(uri: &str) -> Result<Self> {
        // Else errors are printed, too.
        virt::error::clear_error_callback();
        let connect =
            Connect::open(Some(uri)).map_err(|error| refused(uri, error.message(), START_HINT))?;
        let version = connect
            .get_lib_version()
            .map_err(failed("ask libvirt for its version"))?;
        let (major, minor, release) = (version / 1_000_000, version / 1000 % 1000, version % 1000);
        Ok(Connection {
            uri: connect
                .get_uri()
                .map_err(failed("ask libvirt for its URI"))?,
            version: format!("{major}.{minor}.{release}"),
            connect,
        })
    }

    /// What executes guests: KVM where it really does, and libvirt has it, too.
    ///
    /// # Errors
    /// libvirt has no QEMU for PCs.
    pub fn accelerator(&self) -> Result<Accelerator> {
        let has = |kind: &str| {
            self.connect
                .get_domain_capabilities(None, Some("x86_64"), Some("q35"), Some(kind), 0)
        };
        match kvm::accelerator() {
            Accelerator::Kvm => match has("kvm") {
                Ok(_) => Ok(Accelerator::Kvm),
                Err(error) => Ok(Accelerator::Tcg {
                    reason: format!("libvirt has no KVM: {}", error.message()),
                }),
            },
            software => match has("qemu") {
                Ok(_) => Ok(software),
                Err(error) => Err(refused(
                    &self.uri,
                    error.message(),
                    "install the package qemu-system-x86",
                )),
            },
        }
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libvirt {} at {}", self.version, self.uri)
    }
}

/// QEMU runs as a user of its own there, and cannot be the caller: libvirt's directories are closed to others.
fn refuse_system(uri: &str) -> Result<()> {
    let path = uri.split('?').next().unwrap_or_default();
    match path.ends_with("/system") {
        false => Ok(()),
        true => Err(refused(
            uri,
            "QEMU would run there as another user, who does not reach the job's files",
            SESSION_HINT,
        )),
    }
}

/// `qemu+ssh://host/system` and the like: files and sockets of this host are not there.
fn refuse_remote(uri: &str) -> Result<()> {
    let (scheme, rest) = uri.split_once("://").unwrap_or((uri, "/"));
    let transport = scheme.split_once('+').map(|(_, transport)| transport);
    let is_local = rest.starts_with('/') && matches!(transport, None | Some("unix"));
    match is_local {
        true => Ok(()),
        false => Err(refused(
            uri,
            "it is another host's, where the job's files are not",
            SESSION_HINT,
        )),
    }
}

fn refused(uri: &str, reason: &str, hint: &'static str) -> Error {
    Error::Libvirt {
        what: format!("use libvirt at '{uri}'"),
        reason: reason.to_owned(),
        hint: Some(hint),
    }
}

/// An [`Error::Libvirt`] from libvirt's own, for `map_err`.
pub(super) fn failed(what: &'static str) -> impl FnOnce(virt::error::Error) -> Error {
    move |error| Error::Libvirt {
        what: what.to_owned(),
        reason: error.message().to_owned(),
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_s_daemons_will_do() {
        for local in [
            "qemu:///session",
            "qemu:///system?socket=/run/x",
            "qemu+unix:///system",
        ] {
            assert!(refuse_remote(local).is_ok(), "{local}");
        }
        for remote in [
            "qemu+ssh://host/system",
            "qemu://host/system",
            "qemu+tls:///system",
            "qemu+ssh:///system",
        ] {
            let error = refuse_remote(remote).unwrap_err();
            assert!(error.to_string().contains(remote), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn the_system_s_daemon_is_refused() {
        for uri in ["qemu:///system", "qemu:///system?socket=/x"] {
            let error = Connection::open(Some(uri)).unwrap_err();
            assert!(error.to_string().contains("another user"), "{error}");
            assert_eq!(error.hint().unwrap(), SESSION_HINT);
        }
    }

    #[test]
    fn what_manages_no_qemu_is_refused() {
        let error = Connection::open(Some("test:///default")).unwrap_err();
        let text = format!("{error}, {:?}", error.hint());
        assert!(text.contains("not of QEMU"), "{text}");
        assert!(text.contains("qemu:///session"), "{text}");
    }

    #[test]
    fn what_cannot_be_reached_says_why() {
        let error = Connection::open(Some("qemu:///nonsense")).unwrap_err();
        assert!(error.to_string().contains("qemu:///nonsense"), "{error}");
    }
}
