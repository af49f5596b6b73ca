//! Which URIs of libvirt's will do: this host's daemons of QEMU's machines, and nothing that could mean another
//! place (<https://libvirt.org/uri.html>).

use super::connection::refused;
use crate::Result;

const HINT: &str = "use qemu:///session or qemu:///system";

/// Whether `uri` is of the system's daemon; else it is of the caller's own.
///
/// # Errors
/// It is of neither.
pub(super) fn check(uri: &str) -> Result<bool> {
    is_system(uri).map_err(|reason| refused(uri, reason, HINT))
}

fn is_system(uri: &str) -> std::result::Result<bool, &'static str> {
    let Some((scheme, rest)) = uri.split_once("://") else {
        return Err("it is no URI, and aliases of libvirt's are not looked up");
    };
    let (driver, transport) = scheme.split_once('+').unwrap_or((scheme, "unix"));
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    if transport != "unix" || !place.starts_with('/') {
        return Err("it is another host's, where the job's files are not");
    }
    if driver != "qemu" {
        return Err("its machines are not of QEMU");
    }
    let socket = query.strip_prefix("socket=");
    let is_socket = socket.is_some_and(|path| path.starts_with('/') && !path.contains('&'));
    if !query.is_empty() && !is_socket {
        return Err("of what may follow a URI's '?' only 'socket=PATH' is understood");
    }
    match place {
        "/session" => Ok(false),
        "/system" => Ok(true),
        _ => Err("it is neither a session's daemon nor the system's"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_s_daemons_of_qemu_will_do() {
        for (fine, is_system) in [
            ("qemu:///session", false),
            ("qemu+unix:///session", false),
            ("qemu:///system?socket=/run/x", true),
            ("qemu+unix:///system", true),
        ] {
            assert_eq!(check(fine).unwrap(), is_system, "{fine}");
        }
        for (bad, reason) in [
            ("qemu+ssh://host/system", "another host's"),
            ("qemu://host/system", "another host's"),
            ("qemu+tls:///system", "another host's"),
            ("qemu+ssh:///system", "another host's"),
            ("qemu+ext:///session?command=/bin/sh", "another host's"),
            ("test:///default", "not of QEMU"),
            ("xen:///system", "not of QEMU"),
            ("qemu:///embed?root=/tmp/x", "only 'socket=PATH'"),
            ("qemu:///session?mode=direct", "only 'socket=PATH'"),
            (
                "qemu:///session?socket=/x&mode=direct",
                "only 'socket=PATH'",
            ),
            ("qemu:///nonsense", "neither"),
            ("my-alias", "aliases"),
            ("", "aliases"),
        ] {
            let error = check(bad).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(reason) && text.contains(bad), "{text}");
            assert_eq!(error.hint().unwrap(), HINT);
        }
    }
}
