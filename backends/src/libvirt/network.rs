//! The guest's network under libvirt: passt as ever, but QEMU is not given a socket. It connects to one of ours on
//! this host's loopback, and says each frame's length before it.
//!
//! libvirt's own user network would not do: it always lets a guest reach what listens on the host's loopback.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::network::{self, Passt, Running};
use crate::process::wait_readable;
use crate::{Error, Result};

/// QEMU connects before libvirt says that it runs.
const PATIENCE: Duration = Duration::from_secs(10);

/// passt, and where QEMU is to connect.
#[derive(Debug)]
pub(super) struct Network {
    running: Running,
    frames: OwnedFd,
    listener: TcpListener,
}

impl Network {
    /// Starts it. Must be called while this process has one thread.
    ///
    /// # Errors
    /// passt cannot be started, or there is no socket.
    pub(super) fn start(passt: &Passt) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.map_err(|error| Error::Network {
            reason: format!("this host's loopback cannot be used: {error}"),
            hint: None,
        })?;
        let (running, frames) = passt.start()?;
        Ok(Network {
            running,
            frames,
            listener,
        })
    }

    /// Where QEMU connects.
    ///
    /// # Errors
    /// The socket is gone.
    pub(super) fn port(&self) -> Result<u16> {
        let address = self.listener.local_addr();
        Ok(address
            .map_err(Error::system("listen for the guest's network"))?
            .port())
    }

    /// Connects the guest, which runs now; and what lasts as long as the guest.
    ///
    /// # Errors
    /// QEMU has not connected, or passt has ended.
    pub(super) fn connect(mut self) -> Result<Running> {
        let stream =
            accept(&self.listener).map_err(Error::system("hear of the guest's network"))?;
        self.running.ready()?;
        network::carry(stream, self.frames)
            .map_err(Error::system("connect the guest's network"))?;
        Ok(self.running)
    }
}

/// The connection of a process of the caller's: others on this host can reach the socket, too.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let end = Instant::now() + PATIENCE;
    while wait_readable(listener.as_fd(), Some(end))? {
        let (stream, peer) = listener.accept()?;
        let table = std::fs::read_to_string("/proc/net/tcp")?;
        let own = nix::unistd::geteuid().as_raw();
        if let (SocketAddr::V4(peer), SocketAddr::V4(us)) = (peer, stream.local_addr()?) {
            if owner(&table, peer, us) == Some(own) {
                return Ok(stream);
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Whose a connection's end is, by the kernel's table (proc_net_tcp in the kernel's documentation).
fn owner(table: &str, local: SocketAddrV4, remote: SocketAddrV4) -> Option<u32> {
    let shown = |address: SocketAddrV4| {
        let number = u32::from_ne_bytes(address.ip().octets());
        format!("{number:08X}:{:04X}", address.port())
    };
    let (local, remote) = (shown(local), shown(remote));
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_it = fields.next()? == local && fields.next()? == remote;
        is_it.then(|| fields.nth(4)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_found_in_the_kernel_s_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  2: 0100007F:96B9 0100007F:E68C 01 00000000:00000000 00:00000000 00000000  1001        0 6775270 1\n\
            \x20  3: 0100007F:E68C 0100007F:96B9 01 00000000:00000000 00:00000000 00000000  1002        0 6775266 2\n";
        let at = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        assert_eq!(owner(table, at(0x96b9), at(0xe68c)), Some(1001));
        assert_eq!(owner(table, at(0xe68c), at(0x96b9)), Some(1002));
        assert_eq!(owner(table, at(0x96b9), at(1)), None);
        assert_eq!(owner("", at(1), at(2)), None);
    }

    #[test]
    fn who_connects_is_the_caller() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = accept(&listener).unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), ours.local_addr().unwrap());
    }
}
