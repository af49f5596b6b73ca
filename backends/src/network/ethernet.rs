//! The few things that must be known of Ethernet frames (RFC 826, RFC 791).

use super::{ADDRESS, GATEWAY, GUEST_MAC};

const HEADER: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];

/// Whether a frame of the guest's may leave it. IPv4 to the host's loopback may not, whatever address
/// the host listens on there: some versions of passt would connect (to 127.0.0.1 and to 0.0.0.0, which
/// Linux takes for the same). Other protocols than IPv4 and ARP have no use here.
pub(super) fn may_leave(frame: &[u8]) -> bool {
    let Some(kind) = frame.get(12..HEADER) else {
        return false;
    };
    match frame.get(HEADER + 16) {
        _ if kind == ARP => true,
        Some(&first) if kind == IPV4 => first != 127 && first != 0,
        _ => false,
    }
}

/// The guest asks who has its router's address. passt answers as soon as it works.
pub(super) fn arp_request() -> Vec<u8> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    // Ethernet, IPv4, lengths of their addresses, request.
    const KIND: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    [
        &BROADCAST[..],
        &GUEST_MAC,
        &ARP,
        &KIND,
        &GUEST_MAC,
        &ADDRESS.octets(),
        &[0; 6],
        &GATEWAY.octets(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4_to(destination: [u8; 4]) -> Vec<u8> {
        [
            &[0; 12][..],
            &IPV4,
            &[0x45],
            &[0; 11],
            &[10, 0, 2, 15],
            &destination,
        ]
        .concat()
    }

    #[test]
    fn the_hosts_loopback_is_out_of_reach() {
        for bad in [[127, 0, 0, 1], [127, 255, 0, 9], [0, 0, 0, 0], [0, 1, 2, 3]] {
            assert!(!may_leave(&ipv4_to(bad)), "{bad:?}");
        }
        for good in [[192, 0, 2, 1], [10, 0, 2, 2], [255, 255, 255, 255]] {
            assert!(may_leave(&ipv4_to(good)), "{good:?}");
        }
    }

    #[test]
    fn only_ipv4_and_arp_leave() {
        assert!(may_leave(&arp_request()));
        let frame = ipv4_to([192, 0, 2, 1]);
        for len in 0..=HEADER + 16 {
            assert!(!may_leave(&frame[..len]), "{len} bytes");
        }
        for kind in [[0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8], [0, 46]] {
            let mut other = frame.clone();
            other[12..HEADER].copy_from_slice(&kind);
            assert!(!may_leave(&other), "{kind:?}");
        }
    }
}
