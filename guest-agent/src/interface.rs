//! Connections by a certain network interface. Addresses of the link (RFC 3927) are there on each link once more:
//! a cloud's metadata service is on that of the machine's first interface, and somebody else may be on others.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    connect, getsockopt, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType,
    SockaddrIn, SockaddrIn6,
};

/// An address, and the interface to reach it by; without one, as the system's routes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    interface: Option<String>,
    pub(crate) address: SocketAddr,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interface {
            Some(interface) => write!(f, "{} on {interface}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// Every way to these addresses, in the order in which they are tried: by interfaces with the way out, the
/// cheapest first, then by the others, and at last as the system's routes say: there may be IPv6 alone. `root` has
/// `proc`.
pub(crate) fn ways(root: &Path, addresses: &[SocketAddr]) -> Vec<Way> {
    let table = fs::read_to_string(root.join("proc/net/route")).unwrap_or_default();
    let mut interfaces: Vec<_> = interfaces(&table).into_iter().map(Some).collect();
    interfaces.push(None);
    let each = interfaces.iter().flat_map(|interface| {
        addresses.iter().map(|&address| Way {
            interface: interface.clone(),
            address,
        })
    });
    each.collect()
}

/// Interfaces in a table of IPv4's routes (proc_pid_net(5)).
fn interfaces(table: &str) -> Vec<String> {
    let mut routes: Vec<(bool, u32, &str)> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_default = *fields.get(1)? == "00000000" && *fields.get(7)? == "00000000";
            Some((!is_default, fields.get(6)?.parse().ok()?, fields[0]))
        })
        .filter(|(.., interface)| *interface != "lo")
        .collect();
    routes.sort();
    let mut found: Vec<String> = Vec::new();
    for (.., interface) in routes {
        if !found.iter().any(|one| one == interface) {
            found.push(interface.to_owned());
        }
    }
    found
}

impl Way {
    /// Whether it is by the interface of another.
    pub(crate) fn is_beside(&self, other: &Way) -> bool {
        self.interface == other.interface
    }

    /// Connects within `patience`.
    ///
    /// # Errors
    /// Nobody is there, or there is no such interface.
    pub(crate) fn connect(&self, patience: Duration) -> io::Result<TcpStream> {
        let Some(interface) = &self.interface else {
            return TcpStream::connect_timeout(&self.address, patience);
        };
        let family = match self.address {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
        let made = match self.address {
            SocketAddr::V4(address) => connect(socket.as_raw_fd(), &SockaddrIn::from(address)),
            SocketAddr::V6(address) => connect(socket.as_raw_fd(), &SockaddrIn6::from(address)),
        };
        match made {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, timeout)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match getsockopt(&socket, sockopt::SocketError)? {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty()))?;
        Ok(TcpStream::from(socket))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TABLE: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        lo\t0000007F\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
        docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
        ens6\t00000000\t0100A8C0\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
        ens5\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
        ens5\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";

    #[test]
    fn the_way_out_comes_first() {
        assert_eq!(interfaces(TABLE), ["ens5", "ens6", "docker0"]);
        assert!(interfaces("").is_empty());
        let root = tempfile::tempdir().unwrap();
        let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let shown = |ways: Vec<Way>| ways.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(ways(root.path(), &[address])), ["127.0.0.1:80"]);
        fs::create_dir_all(root.path().join("proc/net")).unwrap();
        fs::write(root.path().join("proc/net/route"), TABLE).unwrap();
        let found = shown(ways(root.path(), &[address]));
        assert_eq!(found[0], "127.0.0.1:80 on ens5");
        assert_eq!(found.len(), 4);
        assert_eq!(found[3], "127.0.0.1:80");
        let found = ways(root.path(), &[address, "[::1]:80".parse().unwrap()]);
        let beside: Vec<bool> = found.iter().map(|way| way.is_beside(&found[0])).collect();
        assert_eq!(beside[..3], [true, true, false]);
    }

    #[test]
    fn a_connection_is_made_by_the_interface() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let by = |interface: &str| Way {
            interface: Some(interface.to_owned()),
            address,
        };
        let stream = by("lo").connect(Duration::from_secs(3)).unwrap();
        let (peer, _) = listener.accept().unwrap();
        assert_eq!(peer.peer_addr().unwrap(), stream.local_addr().unwrap());
        let error = by("no-such").connect(Duration::from_secs(3)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ENODEV as i32));
        drop(listener);
        let error = by("lo").connect(Duration::from_secs(3)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
