//! The connection to libvirt's daemon.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use virt::connect::{Connect, ConnectAuth};
use virt_sys as sys;

use super::address;
use super::capabilities::group_of_qemu;
use super::patience::{is_asked_to_end, within};
use crate::qemu::kvm::{self, Accelerator};
use crate::{Error, Result};

/// A daemon that works answers within milliseconds, and starts within a second.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Before it says what its QEMU can it starts each one that there is, when it has not done so yet.
const PROBE_PATIENCE: Duration = Duration::from_secs(90);

const START_HINT: &str =
    "install the packages libvirt-daemon-driver-qemu and qemu-system-x86; 'apppot doctor' says more";
const GROUP_HINT: &str =
    "the system's daemon is for members of its group (often 'libvirt'); or use qemu:///session";
const NO_LABELS: &str =
    "its QEMU cannot run as the caller: it chooses no users (security driver 'dac')";
const SESSION_HINT: &str = "use qemu:///session";
const HANGING_HINT: &str =
    "see what the daemon (libvirtd or virtqemud) is busy with, or restart it";

/// A connection. It ends when this is dropped.
#[derive(Debug)]
pub struct Connection {
    connect: Connect,
    /// Where to, as libvirt says it.
    pub uri: String,
    /// The daemon's version, such as `9.0.0`.
    pub version: String,
    /// The group of the daemon's QEMU, where the daemon is the system's.
    pub(super) group: Option<u32>,
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
    /// It cannot be reached, does not answer, is another machine's, or manages no machines of QEMU's.
    pub fn open(chosen: Option<&str>) -> Result<Arc<Self>> {
        let uri = uri(chosen);
        let is_system = address::check(&uri)?;
        let (name, hint) = match is_system {
            true => (uri.clone(), GROUP_HINT),
            false => (uri.clone(), START_HINT),
        };
        let opened = within(PATIENCE, is_wanted, move || Self::to(&name))?;
        let opened = opened.ok_or_else(|| silent(&uri, PATIENCE))?;
        let mut connection = opened.map_err(|reason| refused(&uri, &reason, hint))?;
        if is_system {
            let mut asked = connection.connect.clone();
            let text = within(PROBE_PATIENCE, is_wanted, move || {
                let text = asked.get_capabilities();
                let _ = asked.close();
                text
            })?;
            let text = text.ok_or_else(|| silent(&uri, PROBE_PATIENCE))?;
            let text = text.map_err(failed("ask libvirt what it can"))?;
            let group = group_of_qemu(&text);
            let group = group.ok_or_else(|| refused(&uri, NO_LABELS, SESSION_HINT))?;
            connection.group = Some(group);
        }
        Ok(Arc::new(connection))
    }

    /// Connects to `uri`, or says why not.
    fn to(uri: &str) -> std::result::Result<Self, String> {
        // Else errors are printed, too.
        virt::error::clear_error_callback();
        let mut nothing_to_say = ConnectAuth::new(Vec::new(), |_| {});
        // An alias of the user's could name any place.
        let flags = sys::VIR_CONNECT_NO_ALIASES;
        let connect = Connect::open_auth(Some(uri), &mut nothing_to_say, flags);
        Self::of(connect.map_err(said)?)
    }

    /// What libvirt says of a connection.
    pub(super) fn of(connect: Connect) -> std::result::Result<Self, String> {
        let mut connection = Connection {
            connect,
            uri: String::new(),
            version: String::new(),
            group: None,
        };
        let connect = &connection.connect;
        let version = connect.get_lib_version().map_err(said)?;
        let (major, minor, release) = (version / 1_000_000, version / 1000 % 1000, version % 1000);
        connection.uri = connection.connect.get_uri().map_err(said)?;
        connection.version = format!("{major}.{minor}.{release}");
        Ok(connection)
    }

    /// libvirt's handle.
    pub(super) fn handle(&self) -> &Connect {
        &self.connect
    }

    /// Asks the daemon, but does not wait for ever.
    ///
    /// # Errors
    /// It does not answer, or there is no thread to ask it.
    pub(super) fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        patience: Duration,
        question: impl FnOnce(&Connect) -> T + Send + 'static,
    ) -> Result<T> {
        let asked = Arc::clone(self);
        let answer = within(patience, is_wanted, move || question(&asked.connect))?;
        answer.ok_or_else(|| silent(&self.uri, patience))
    }

    /// What executes guests: KVM where it really does, and libvirt has it, too.
    ///
    /// # Errors
    /// libvirt has no QEMU for PCs.
    pub fn accelerator(self: &Arc<Self>) -> Result<Accelerator> {
        let has = |kind: &'static str| {
            let pc = (Some("x86_64"), Some("q35"));
            self.ask(PROBE_PATIENCE, move |connect| {
                connect.get_domain_capabilities(None, pc.0, pc.1, Some(kind), 0)
            })
        };
        match kvm::accelerator() {
            Accelerator::Kvm => match has("kvm")? {
                Ok(_) => Ok(Accelerator::Kvm),
                Err(error) => Ok(Accelerator::Tcg {
                    reason: format!("libvirt has no KVM: {}", error.message()),
                }),
            },
            software => match has("qemu")? {
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

impl Drop for Connection {
    fn drop(&mut self) {
        // Nothing can be done about a failure here.
        let _ = self.connect.close();
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libvirt {} at {}", self.version, self.uri)
    }
}

fn said(error: virt::error::Error) -> String {
    error.message().to_owned()
}

pub(super) fn refused(uri: &str, reason: &str, hint: &'static str) -> Error {
    Error::Libvirt {
        what: format!("use libvirt at '{uri}'"),
        reason: reason.to_owned(),
        hint: Some(hint),
    }
}

fn is_wanted() -> bool {
    !is_asked_to_end()
}

fn silent(uri: &str, patience: Duration) -> Error {
    let reason = match is_asked_to_end() {
        true => String::from("a signal asked for the end meanwhile"),
        false => format!("its daemon does not answer within {} s", patience.as_secs()),
    };
    refused(uri, &reason, HANGING_HINT)
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
    fn what_cannot_be_reached_says_why() {
        let nowhere = "qemu:///system?socket=/nonexistent";
        let error = Connection::open(Some(nowhere)).unwrap_err();
        assert!(error.to_string().contains(nowhere), "{error}");
        assert!(
            error.hint().unwrap().contains("group"),
            "{:?}",
            error.hint()
        );
    }
}
