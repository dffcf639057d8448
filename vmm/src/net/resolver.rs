//! Which name servers the guest is told of.
//!
//! Those of the host, which passt finds in /etc/resolv.conf by itself; but one that listens on the host's
//! loopback (systemd-resolved, dnsmasq) is out of the guest's reach.

use std::fs;
use std::net::IpAddr;

/// As many as a resolv.conf may have: resolv.conf(5).
const MAX_SERVERS: usize = 3;

/// How the guest's names are resolved.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resolver {
    /// By the servers in the host's /etc/resolv.conf.
    AsTheHost,
    /// By the servers that the host's own resolver asks.
    Servers(Vec<IpAddr>),
    /// By the host's own resolver, through an address that stands for it.
    Forwarded,
}

impl Resolver {
    /// What fits this host.
    pub(super) fn of_host() -> Self {
        // Either file may be missing.
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::choose(
            &read("/etc/resolv.conf"),
            &read("/run/systemd/resolve/resolv.conf"),
        )
    }

    fn choose(configured: &str, upstream: &str) -> Self {
        let configured = servers(configured);
        if configured.is_empty() || !configured.iter().all(IpAddr::is_loopback) {
            return Self::AsTheHost;
        }
        let mut upstream = servers(upstream);
        upstream.retain(|server| !server.is_loopback());
        upstream.truncate(MAX_SERVERS);
        if upstream.is_empty() {
            Self::Forwarded
        } else {
            Self::Servers(upstream)
        }
    }
}

/// The name servers of a resolv.conf. Those with a scope (`fe80::1%eth0`) mean nothing to a guest.
fn servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_on_the_loopback_are_replaced() {
        let choose = Resolver::choose;
        let stub = "# a comment\nnameserver 127.0.0.53\noptions edns0\nsearch example.org\n";
        let real = "nameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver fe80::1%eth0\n";
        assert_eq!(choose(real, ""), Resolver::AsTheHost);
        assert_eq!(choose("", real), Resolver::AsTheHost);
        assert_eq!(choose(&format!("{stub}{real}"), ""), Resolver::AsTheHost);
        assert_eq!(choose(stub, ""), Resolver::Forwarded);
        assert_eq!(choose("nameserver ::1", stub), Resolver::Forwarded);
        assert_eq!(
            choose(stub, real),
            Resolver::Servers(vec![
                "192.0.2.53".parse().unwrap(),
                "2001:db8::53".parse().unwrap()
            ])
        );
    }

    #[test]
    fn no_more_servers_than_a_guest_takes() {
        let many = "nameserver 192.0.2.1\n".repeat(9);
        let Resolver::Servers(servers) = Resolver::choose("nameserver 127.0.0.1", &many) else {
            panic!("there are servers");
        };
        assert_eq!(servers.len(), MAX_SERVERS);
    }
}
