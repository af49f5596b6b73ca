//! User networking: what the guest sends is carried out by ordinary sockets of a helper, passt
//! (<https://passt.top>), without any privilege and with nothing that listens on the host.
//!
//! The guest's side is the same everywhere and static, so that no DHCP delays the boot: the addresses
//! below, which are those that QEMU's own user network has, too. A backend names the interface.

mod ethernet;
mod passt;
mod pump;

use std::net::Ipv4Addr;

pub(crate) use self::passt::{Passt, Running};
#[cfg(feature = "libvirt")]
pub(crate) use self::pump::carry;

/// The guest's address.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Bits of the guest's network.
pub(crate) const PREFIX: u8 = 24;
/// The guest's router. When that is asked for, the host's loopback stands behind it.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The guest's name server, behind which the host's own stands.
pub(crate) const NAMESERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The longest packet of the guest's interface, bytes. With longer ones (passt takes 65,520) the passt of
/// Debian 12 is a third faster and stalls: it drops what does not fit into its socket, and recovers
/// from that only when many short packets come after the gap.
pub(crate) const MTU: u32 = 1500;
/// The guest's Ethernet address.
pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x0a, 0x00, 0x02, 0x0f];
/// The router's Ethernet address.
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];

/// The contract's word about the network, for a guest that has it as `interface`.
pub(crate) fn contract(interface: &str) -> apppot_contract::Network {
    apppot_contract::Network {
        interface: interface.to_owned(),
        address: ADDRESS,
        prefix: PREFIX,
        gateway: GATEWAY,
        nameserver: NAMESERVER,
    }
}

/// The helper that user networking takes, for people.
///
/// # Errors
/// It is not installed.
pub fn user_network() -> crate::Result<String> {
    Passt::find().map(|program| program.display().to_string())
}

/// An Ethernet address as programs take it.
pub(crate) fn mac(address: [u8; 6]) -> String {
    let bytes: Vec<String> = address.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}
