//! What a guest may not send: packets to the host's own loopback.
//!
//! The peer makes sockets of the guest's packets, with the host's network stack below them. There, a
//! destination such as 127.0.0.1 is the host itself, though no network would carry it. Newer peers refuse
//! such packets; passt of 2023 connects.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::ETHERNET;

/// Whether the frame that begins with `bytes` is addressed to what a host takes for itself.
pub(super) fn is_for_loopback(bytes: &[u8]) -> bool {
    let at = |offset: usize| bytes.get(ETHERNET + offset..);
    match bytes.get(12..ETHERNET) {
        // IPv4, RFC 791: the destination is at 16.
        Some([0x08, 0x00]) => at(16)
            .and_then(<[u8]>::first_chunk)
            .is_some_and(|octets| is_host_ipv4(Ipv4Addr::from(*octets))),
        // IPv6, RFC 8200: at 24.
        Some([0x86, 0xdd]) => at(24)
            .and_then(<[u8]>::first_chunk::<16>)
            .is_some_and(|octets| is_host_ipv6(Ipv6Addr::from(*octets))),
        _ => false,
    }
}

/// Linux takes 0.0.0.0 as a destination for 127.0.0.1.
fn is_host_ipv4(address: Ipv4Addr) -> bool {
    address.is_loopback() || address.octets()[0] == 0
}

/// The IPv4 addresses that IPv6 sockets reach have no place on a wire at all: RFC 4291 §2.5.5. The first
/// of them are the unspecified and the loopback address.
fn is_host_ipv6(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, _, _])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(ethertype: [u8; 2], before: usize, destination: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xee; 12];
        frame.extend(ethertype);
        frame.extend(vec![0x45; before]);
        frame.extend(destination);
        frame
    }

    fn ipv4(text: &str) -> Vec<u8> {
        frame([8, 0], 16, &text.parse::<Ipv4Addr>().unwrap().octets())
    }

    fn ipv6(text: &str) -> Vec<u8> {
        let address: Ipv6Addr = text.parse().unwrap();
        frame([0x86, 0xdd], 24, &address.octets())
    }

    #[test]
    fn what_the_host_takes_for_itself_is_stopped() {
        for text in ["127.0.0.1", "127.255.1.2", "0.0.0.0", "0.1.2.3"] {
            assert!(is_for_loopback(&ipv4(text)), "{text}");
        }
        for text in [
            "::1",
            "::",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:192.0.2.1",
        ] {
            assert!(is_for_loopback(&ipv6(text)), "{text}");
        }
    }

    #[test]
    fn everything_else_passes() {
        for text in [
            "10.0.2.2",
            "128.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "224.0.0.1",
        ] {
            assert!(!is_for_loopback(&ipv4(text)), "{text}");
        }
        for text in ["fe80::1", "ff02::1", "2001:db8::1", "64:ff9b::127.0.0.1"] {
            assert!(!is_for_loopback(&ipv6(text)), "{text}");
        }
        // ARP, and what is too short for an address.
        assert!(!is_for_loopback(&frame([8, 6], 16, &[127, 0, 0, 1])));
        assert!(!is_for_loopback(&frame([8, 0], 16, &[127, 0, 0])));
        assert!(!is_for_loopback(&[8, 0]));
        assert!(!is_for_loopback(&[]));
    }
}
