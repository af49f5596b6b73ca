//! The guest's network: only loopback, which many programs take for granted.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};

/// Brings up `lo`. A kernel without networking has none, which is no error.
pub(crate) fn loopback_up() -> io::Result<()> {
    let kind = (SockType::Datagram, SockFlag::SOCK_CLOEXEC);
    let Ok(socket) = socket(AddressFamily::Inet, kind.0, kind.1, None) else {
        return Ok(());
    };
    // SAFETY: an all-zero ifreq is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            error => Err(error),
        },
    }
}
