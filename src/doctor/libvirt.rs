//! What there is for machines that libvirt manages.

use apppot_backends::libvirt::connection::Connection;
use apppot_backends::qemu::kvm::Accelerator;

use super::{Check, State};

/// The checks. None of them is bad: libvirt is used only when it is asked for.
pub(super) fn checks(uri: Option<&str>) -> Vec<Check> {
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
    vec![daemon(&connection), domains(&connection)]
}

fn daemon(connection: &Connection) -> Check {
    Check::good("libvirt", connection.to_string())
}

fn domains(connection: &Connection) -> Check {
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
