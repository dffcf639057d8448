//! What passt is told.
//!
//! Addresses are fixed and private, whatever the host's are: without them the guest would share the
//! host's own address, and could not reach the host by it.

use std::net::{IpAddr, Ipv4Addr};

use super::resolver::Resolver;
use crate::config::{Protocol, Publish, UserConfig};

/// The guest's address, of the network that user-mode networks have had for twenty years.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Its gateway.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The gateway's MAC address, in place of that of the host's own card.
const GATEWAY_MAC: &str = "02:00:0a:00:02:02";
/// Stands for the host's name server, where that is on the loopback.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const PREFIX: u8 = 24;

/// What the arguments are made from.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub user: &'a UserConfig,
    /// What the guest is told of the largest packet; passt's own default is the largest there is.
    pub mtu: Option<u16>,
    pub resolver: &'a Resolver,
    /// Whether the host has a default route.
    pub routed: bool,
}

impl Plan<'_> {
    /// The arguments, with the stream at descriptor `fd`.
    pub(super) fn arguments(&self, fd: i32) -> Vec<String> {
        let mut list: Vec<String> = ["--foreground", "--quiet"].map(str::to_owned).into();
        let mut option = |name: &str, value: String| list.extend([format!("--{name}"), value]);
        option("fd", fd.to_string());
        option("address", GUEST.to_string());
        option("netmask", PREFIX.to_string());
        option("gateway", GATEWAY.to_string());
        option("mac-addr", GATEWAY_MAC.to_owned());
        if !self.routed {
            // Any interface will do, as none of its addresses are used; otherwise passt looks for the
            // one of the default route, and gives up.
            option("interface", "lo".to_owned());
        }
        match self.resolver {
            Resolver::AsTheHost => {}
            Resolver::Servers(servers) => {
                for server in servers {
                    option("dns", server.to_string());
                }
            }
            Resolver::Forwarded => option("dns-forward", NAME_SERVER.to_string()),
        }
        if let Some(mtu) = self.mtu {
            option("mtu", mtu.to_string());
        }
        for publish in &self.user.publish {
            let name = match publish.protocol {
                Protocol::Tcp => "tcp-ports",
                Protocol::Udp => "udp-ports",
            };
            option(name, port(publish));
        }
        if !self.user.host_loopback {
            list.push("--no-map-gw".to_owned());
        }
        list
    }
}

/// A published port as passt writes it, which has no brackets.
fn port(publish: &Publish) -> String {
    let Publish { host, guest, .. } = publish;
    match publish.address {
        None => format!("{host}:{guest}"),
        Some(IpAddr::V4(address)) => format!("{address}/{host}:{guest}"),
        Some(IpAddr::V6(address)) => format!("{address}/{host}:{guest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(user: &UserConfig, resolver: &Resolver, routed: bool) -> String {
        let plan = Plan {
            user,
            mtu: Some(1400),
            resolver,
            routed,
        };
        plan.arguments(7).join(" ")
    }

    #[test]
    fn the_host_s_loopback_is_out_of_reach_unless_asked_for() {
        let closed = arguments(&UserConfig::default(), &Resolver::AsTheHost, true);
        assert_eq!(
            closed,
            "--foreground --quiet --fd 7 --address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 \
             --mac-addr 02:00:0a:00:02:02 --mtu 1400 --no-map-gw"
        );
        let open = UserConfig {
            host_loopback: true,
            ..UserConfig::default()
        };
        let open = arguments(&open, &Resolver::AsTheHost, true);
        assert!(!open.contains("map-gw"), "{open}");
    }

    #[test]
    fn ports_are_written_as_passt_reads_them() {
        let user = UserConfig {
            publish: ["8080:80", "127.0.0.1:2222:22", "[::1]:5353:53/udp"]
                .map(|text| text.parse().unwrap())
                .into(),
            host_loopback: false,
        };
        let text = arguments(&user, &Resolver::AsTheHost, true);
        for part in [
            "--tcp-ports 8080:80 ",
            "--tcp-ports 127.0.0.1/2222:22 ",
            "--udp-ports ::1/5353:53 ",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_host_without_a_way_out_has_a_network_all_the_same() {
        let user = UserConfig::default();
        let text = arguments(&user, &Resolver::Forwarded, false);
        assert!(
            text.contains("--interface lo --dns-forward 10.0.2.3"),
            "{text}"
        );
        let servers = Resolver::Servers(vec!["192.0.2.53".parse().unwrap()]);
        let text = arguments(&user, &servers, true);
        assert!(text.contains("--dns 192.0.2.53"), "{text}");
        assert!(!text.contains("--interface"), "{text}");
    }
}
