//! The guest's network: loopback, which many programs take for granted, and the interface that the
//! contract names. One address and one route are what netdevice(7) is enough for.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use apppot_contract::Network;
use nix::mount::{mount, MsFlags};
use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};

use crate::failure::{Failure, Step};

/// Where libraries read what the name server is (resolv.conf(5)).
const RESOLVER: &str = "/etc/resolv.conf";
/// What stands there while this machine runs.
const OWN_RESOLVER: &str = "/run/apppot-resolv.conf";

/// Brings up loopback, and the contract's network where it has one.
pub(crate) fn set_up(network: Option<&Network>) -> Result<(), Failure> {
    loopback_up().step("bringing up the loopback interface")?;
    let Some(network) = network else {
        return Ok(());
    };
    connect(network).step(format!("setting up the network on {}", network.interface))?;
    name_server(network.nameserver).step(format!("showing the name server in {RESOLVER}"))
}

/// A kernel without networking has no loopback, which is no error.
fn loopback_up() -> io::Result<()> {
    let Ok(socket) = control() else {
        return Ok(());
    };
    match up(&socket, "lo") {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

fn connect(network: &Network) -> io::Result<()> {
    let socket = control()?;
    let name = &network.interface;
    let mut request = interface(name);
    request.ifr_ifru.ifru_addr = ipv4(network.address);
    configure(&socket, libc::SIOCSIFADDR, &request)?;
    request.ifr_ifru.ifru_netmask = ipv4(netmask(network.prefix));
    configure(&socket, libc::SIOCSIFNETMASK, &request)?;
    up(&socket, name)?;
    route_everything(&socket, network.gateway)?;
    limit_windows()
}

/// The router is a process on the host, where this much is on its way for a millisecond at most. The
/// passt of Debian 12 drops what its socket does not take, and may not recover: so not more.
fn limit_windows() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/tcp_rmem", "4096 131072 524288")
}

/// A socket to ask the kernel through.
fn control() -> nix::Result<OwnedFd> {
    let kind = (SockType::Datagram, SockFlag::SOCK_CLOEXEC);
    socket(AddressFamily::Inet, kind.0, kind.1, None)
}

fn up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = interface(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    configure(socket, libc::SIOCSIFFLAGS, &request)
}

/// A request about the interface of this name, which is cut where the kernel's names end.
fn interface(name: &str) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn configure(socket: &OwnedFd, what: libc::c_ulong, request: &libc::ifreq) -> io::Result<()> {
    // SAFETY: these requests read an ifreq.
    match unsafe { libc::ioctl(socket.as_raw_fd(), what as _, request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn route_everything(socket: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: an all-zero rtentry is a valid value.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = ipv4(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = ipv4(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = ipv4(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: this request reads an rtentry.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &route) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn netmask(prefix: u8) -> Ipv4Addr {
    let host = 32 - u32::from(prefix.min(32));
    u32::MAX.checked_shl(host).unwrap_or(0).into()
}

/// An address as the kernel takes it (ip(7)): the port, then the address, both big-endian.
fn ipv4(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: an all-zero sockaddr is a valid value.
    let mut generic: libc::sockaddr = unsafe { std::mem::zeroed() };
    generic.sa_family = libc::AF_INET as libc::sa_family_t;
    for (to, from) in generic.sa_data[2..].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    generic
}

/// Mounts a resolv.conf of this machine's own over the image's, which stays as it is.
fn name_server(address: Ipv4Addr) -> io::Result<()> {
    fs::write(OWN_RESOLVER, format!("nameserver {address}\n"))?;
    let target = followed(Path::new(RESOLVER));
    if !target.exists() {
        if let Some(directory) = target.parent() {
            fs::create_dir_all(directory)?;
        }
        File::create(&target)?;
    }
    const NONE: Option<&str> = None;
    mount(Some(OWN_RESOLVER), &target, NONE, MsFlags::MS_BIND, NONE)?;
    Ok(())
}

/// Where the symbolic links at `path` lead, even when nothing is there: often to a file in `/run`
/// that a service would make.
fn followed(path: &Path) -> PathBuf {
    /// As many as the kernel follows (path_resolution(7)).
    const MOST: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        let Ok(target) = fs::read_link(&path) else {
            break;
        };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn masks_have_the_bits_of_the_network() {
        for (prefix, mask) in [
            (0, [0, 0, 0, 0]),
            (8, [255, 0, 0, 0]),
            (24, [255, 255, 255, 0]),
            (32, [255; 4]),
        ] {
            assert_eq!(netmask(prefix), Ipv4Addr::from(mask), "{prefix}");
        }
    }

    #[test]
    fn an_address_is_where_the_kernel_looks_for_it() {
        let address = ipv4(Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(address.sa_family, libc::AF_INET as libc::sa_family_t);
        let bytes: Vec<u8> = address.sa_data.iter().map(|&byte| byte as u8).collect();
        assert_eq!(bytes[..7], [0, 0, 192, 0, 2, 9, 0]);
    }

    #[test]
    fn links_are_followed_to_what_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        symlink("two", at("one")).unwrap();
        symlink(at("run/three"), at("two")).unwrap();
        assert_eq!(followed(&at("one")), at("run/three"));
        symlink("loop", at("loop")).unwrap();
        assert_eq!(followed(&at("loop")), at("loop"));
    }
}
