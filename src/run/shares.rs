//! The host's directories that the guest sees: the job directory and the binds.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use anyhow::{bail, Context, Result};
use apppot_backends::spec::Share;

use crate::caller::{self, JobDirectory};
use crate::cli::MachineArgs;
use crate::config::Config;
use crate::failure::hinted;

/// The job directory and the binds, and where the guest sees the job directory.
pub(crate) fn shares(
    args: &MachineArgs,
    config: &Config,
    jobdir: &JobDirectory,
    is_host: bool,
) -> Result<(Vec<Share>, PathBuf)> {
    let mut shares = Vec::new();
    let mut guest_jobdir = jobdir.known_as.clone();
    // The host appliance shows its root as it is; nothing in / itself can be the user's to write.
    if !(is_host && jobdir.real == Path::new("/")) {
        let guest = match belongs_to_the_system(&jobdir.real) && !is_host {
            true => PathBuf::from("/job"),
            false => jobdir.real.clone(),
        };
        if guest != jobdir.real {
            guest_jobdir.clone_from(&guest);
        }
        shares.push(Share {
            host: jobdir.real.clone(),
            guest,
            read_only: false,
        });
    }
    let configured = config.bind.value.iter().map(OsString::from);
    for text in configured.chain(args.bind.iter().cloned()) {
        let share =
            bind(&text).with_context(|| format!("cannot bind '{}'", text.to_string_lossy()))?;
        shares.push(share);
    }
    Ok((shares, guest_jobdir))
}

/// Directories that an image has of its own and that must not be covered.
fn belongs_to_the_system(path: &Path) -> bool {
    const SYSTEM: [&str; 11] = [
        "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys",
        "/usr",
    ];
    const ALONE: [&str; 5] = ["/", "/home", "/root", "/run", "/var"];
    ALONE.iter().any(|alone| path == Path::new(alone))
        || SYSTEM.iter().any(|system| path.starts_with(system))
}

/// Where the guest has devices and the kernel's own files.
fn is_the_guests_own(path: &Path) -> bool {
    path == Path::new("/dev") || ["/proc", "/sys"].iter().any(|own| path.starts_with(own))
}

/// The path without "." and "..".
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

/// `HOST[:GUEST][:ro]`.
fn bind(text: &OsString) -> Result<Share> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = text.as_bytes();
    let (paths, mode) = match bytes.len().checked_sub(3).map(|at| bytes.split_at(at)) {
        Some((paths, mode @ (b":ro" | b":rw"))) => (paths, Some(mode)),
        _ => (bytes, None),
    };
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_owned()));
    let (host, guest) = match paths.iter().position(|&byte| byte == b':') {
        // A colon may also be part of the name.
        Some(at) if !path(paths).exists() => (path(&paths[..at]), Some(path(&paths[at + 1..]))),
        _ => (path(paths), None),
    };
    let last = guest.as_ref().and_then(|guest| guest.to_str());
    if let (None, Some((_, word))) = (mode, last.and_then(|guest| guest.rsplit_once(':'))) {
        return Err(hinted(
            format!("'{word}' is neither ro nor rw"),
            "HOST:GUEST:rw where the directory in the guest has a colon in its name",
        ));
    }
    let host = std::fs::canonicalize(&host).with_context(|| format!("'{}'", host.display()))?;
    if !host.is_dir() {
        let directory = host.parent().unwrap_or(&host);
        return Err(hinted(
            format!(
                "'{}' is no directory; only directories can be shared",
                host.display()
            ),
            format!(
                "bind the directory that it is in: --bind '{}'",
                directory.display()
            ),
        ));
    }
    caller::may_enter(&host).with_context(|| format!("'{}'", host.display()))?;
    let guest = normal(&guest.unwrap_or_else(|| host.clone()));
    if !guest.is_absolute() || guest == Path::new("/") || is_the_guests_own(&guest) {
        bail!(
            "'{}' is no place for a directory in the guest",
            guest.display()
        );
    }
    Ok(Share {
        host,
        guest,
        read_only: mode == Some(b":ro"),
    })
}
