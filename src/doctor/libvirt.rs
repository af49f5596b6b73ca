//! What there is for machines that libvirt manages.

use std::path::Path;
use std::sync::Arc;

use apppot_backends::libvirt::connection::Connection;
use apppot_backends::qemu::kvm::Accelerator;
use nix::unistd::{access, AccessFlags};

use super::{Check, State};

/// The checks, for jobs in `jobdir`. None of them is bad: libvirt is used only when it is asked for.
pub(super) fn checks(uri: Option<&str>, image: &Path, jobdir: &Path) -> Vec<Check> {
    let connection = match Connection::open(uri) {
        Ok(connection) => connection,
        Err(error) => {
            return vec![Check::good("libvirt", error.to_string()).but(
                State::Fair,
                "--backend libvirt does not work",
                error.hint().unwrap_or_default(),
            )]
        }
    };
    vec![
        daemon(&connection),
        domains(&connection),
        reach(image, jobdir),
    ]
}

fn daemon(connection: &Connection) -> Check {
    Check::good("libvirt", connection.to_string())
}

/// Machines run as the caller, whichever the daemon is.
fn reach(image: &Path, jobdir: &Path) -> Check {
    let name = "libvirt access";
    let whole = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
    let out_of_reach = [(image, AccessFlags::R_OK), (jobdir, whole)]
        .into_iter()
        .find_map(|(path, how)| Some((path, access(path, how).err()?)));
    match out_of_reach {
        None => Check::good(
            name,
            format!(
                "QEMU runs as you, who reach '{}' and '{}'",
                image.display(),
                jobdir.display()
            ),
        ),
        Some((path, errno)) => Check::good(
            name,
            format!(
                "QEMU runs as you, who do not reach '{}': {errno}",
                path.display()
            ),
        )
        .but(
            State::Fair,
            "jobs here fail, or cannot write their results",
            format!(
                "change the permissions of '{}', or use another",
                path.display()
            ),
        ),
    }
}

fn domains(connection: &Arc<Connection>) -> Check {
    let name = "libvirt domains";
    match connection.accelerator() {
        Ok(Accelerator::Kvm) => Check::good(name, "of type kvm"),
        Ok(Accelerator::Tcg { reason }) => Check::good(name, format!("of type qemu: {reason}")),
        Err(error) => Check::good(name, error.to_string()).but(
            State::Fair,
            "--backend libvirt does not work",
            error.hint().unwrap_or_default(),
        ),
    }
}
