//! The way out of a machine in a cloud. The image's own configuration is left to make it; where it makes
//! none, systemd-networkd is asked to, for the time of this boot.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long the image's own configuration may take.
const OWN: Duration = Duration::from_secs(10);
/// How long ours may take.
const OURS: Duration = Duration::from_secs(30);

const NETWORK: &str = "\
[Match]
Type=ether

[Network]
DHCP=yes
";

/// Returns when there is a way to addresses beyond the link, or none is to be had. `root` has `proc`.
pub(crate) fn wait_for(root: &Path) {
    if has_route(root, OWN) {
        return;
    }
    match configure(root) {
        Ok(()) if has_route(root, OURS) => {}
        Ok(()) => eprintln!("apppot-init: the network has not come up"),
        Err(error) => eprintln!("apppot-init: the network cannot be set up: {error}"),
    }
}

/// Whether there is a route within this time.
fn has_route(root: &Path, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    loop {
        let ipv4 = fs::read_to_string(root.join("proc/net/route")).unwrap_or_default();
        let ipv6 = fs::read_to_string(root.join("proc/net/ipv6_route")).unwrap_or_default();
        if routes_ipv4(&ipv4) || routes_ipv6(&ipv6) {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A route of a machine that has an address: everything (IPv4), or the link itself, where the cloud's
/// metadata is.
fn routes_ipv4(table: &str) -> bool {
    let mut lines = table.lines().skip(1);
    lines.any(|line| !line.starts_with("lo\t"))
}

/// Link-local networks (fe80) are there by themselves, and multicast (ff00).
fn routes_ipv6(table: &str) -> bool {
    table.lines().any(|line| {
        let is_loopback = line.ends_with(" lo");
        !is_loopback && !line.starts_with("fe80") && !line.starts_with("ff")
    })
}

/// Has systemd-networkd configure every Ethernet interface, with a file that is gone at the next boot.
fn configure(root: &Path) -> io::Result<()> {
    let directory = root.join("run/systemd/network");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("80-apppot.network"), NETWORK)?;
    let status = Command::new("systemctl")
        .args(["restart", "systemd-networkd.service"])
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("systemd-networkd: {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_an_address_has_routes() {
        let head = "Iface\tDestination\tGateway\n";
        assert!(!routes_ipv4(head) && !routes_ipv4(""));
        assert!(!routes_ipv4(&format!("{head}lo\t0000007F\t00000000\n")));
        assert!(routes_ipv4(&format!("{head}eth0\t00000000\t0101A8C0\n")));
        let local = "fe80000000000000 40 00 00 00 00 00 00     eth0\n\
                     00000000000000000000000000000000 00 00 00     lo\n";
        assert!(!routes_ipv6(local));
        assert!(routes_ipv6(
            "fd000ec2000000000000000000000000 40 00     eth0\n"
        ));
    }
}
