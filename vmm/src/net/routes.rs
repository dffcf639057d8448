//! Whether the host has a way out: passt looks for one, and without it gives up.

use std::fs;

/// Whether there is a default route, of IPv4 or of IPv6.
pub(super) fn has_default() -> bool {
    // A kernel without one of the two has no such file.
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    default_in_ipv4(&read("/proc/net/route")) || default_in_ipv6(&read("/proc/net/ipv6_route"))
}

/// Looks through /proc/net/route: interface, destination, gateway, flags, three counters, mask.
fn default_in_ipv4(table: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, "00000000", _, _, _, _, _, "00000000", ..])
    })
}

/// Looks through /proc/net/ipv6_route: destination, its length, …, interface last.
fn default_in_ipv6(table: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Where there is no route the kernel has one that leads nowhere, through lo.
        matches!(fields[..], [destination, "00", .., interface]
            if destination.bytes().all(|digit| digit == b'0') && interface != "lo")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_is_one_to_everywhere() {
        let head =
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let local = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let default = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(!default_in_ipv4(""));
        assert!(!default_in_ipv4(&format!("{head}{local}")));
        assert!(default_in_ipv4(&format!("{head}{local}{default}")));
    }

    #[test]
    fn a_way_to_nowhere_is_none() {
        let zero = "00000000000000000000000000000000";
        let route = |interface| {
            format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 {interface}\n")
        };
        assert!(!default_in_ipv6(&route("      lo")));
        assert!(default_in_ipv6(&route("    eth0")));
        assert!(!default_in_ipv6(&route("    eth0").replace(" 00 ", " 40 ")));
    }
}
