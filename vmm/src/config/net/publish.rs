//! A port of the guest that the host publishes, in the form `[ADDR:]HOST:GUEST[/udp]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What goes through a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host behind which is one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Publish {
    /// The host's address it is reachable at; all of them where there is none.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: NonZeroU16,
    /// The guest's.
    pub guest: NonZeroU16,
    /// What goes through it.
    pub protocol: Protocol,
}

/// Why a text does not name a port to publish.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{text}' publishes no port: {why}; write [ADDR:]HOST:GUEST[/udp], such as 8080:80, 127.0.0.1:8080:80 or [::1]:5353:53/udp"
)]
pub struct PublishError {
    text: String,
    why: &'static str,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read(text).map_err(|why| PublishError {
            text: text.to_owned(),
            why,
        })
    }
}

fn read(text: &str) -> Result<Publish, &'static str> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return Err("after the slash is neither tcp nor udp"),
    };
    let (rest, guest) = ports
        .rsplit_once(':')
        .ok_or("there is no port of the guest")?;
    let (address, host) = match rest.rsplit_once(':') {
        None => (None, rest),
        Some((address, host)) => (Some(read_address(address)?), host),
    };
    let port = |text: &str| {
        text.parse()
            .map_err(|_| "a port is a number from 1 to 65535")
    };
    Ok(Publish {
        address,
        host: port(host)?,
        guest: port(guest)?,
        protocol,
    })
}

/// An IPv6 address stands in brackets, as in a URL.
fn read_address(text: &str) -> Result<IpAddr, &'static str> {
    match text.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .and_then(|text| text.parse::<Ipv6Addr>().ok())
            .map(IpAddr::V6)
            .ok_or("in the brackets is no IPv6 address"),
        None => text
            .parse::<Ipv4Addr>()
            .map(IpAddr::V4)
            .map_err(|_| "the address is neither IPv4 nor IPv6 in brackets"),
    }
}

impl Publish {
    /// Whether both cannot be had at once: they want the same port of the same address, or one port
    /// that leads to two.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        let same_address = match (self.address, other.address) {
            (Some(one), Some(other)) => {
                one == other || one.is_unspecified() || other.is_unspecified()
            }
            _ => true,
        };
        (self.host, self.protocol) == (other.host, other.protocol)
            && (same_address || self.guest != other.guest)
    }

    /// The host's end, as messages call it.
    #[must_use]
    pub fn host_end(&self) -> String {
        let Self { host, protocol, .. } = self;
        match self.address {
            None => format!("{host}/{protocol}"),
            Some(IpAddr::V4(address)) => format!("{address}:{host}/{protocol}"),
            Some(IpAddr::V6(address)) => format!("[{address}]:{host}/{protocol}"),
        }
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{}:{}", self.host, self.guest)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

impl TryFrom<String> for Publish {
    type Error = PublishError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Publish> for String {
    fn from(publish: Publish) -> Self {
        publish.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(text: &str) -> Publish {
        text.parse().unwrap()
    }

    #[test]
    fn the_forms_round_trip() {
        for text in [
            "8080:80",
            "127.0.0.1:8080:80",
            "[::1]:8080:80",
            "5353:53/udp",
            "[2001:db8::7]:65535:1/udp",
        ] {
            assert_eq!(publish(text).to_string(), text);
        }
        assert_eq!(publish("80:80/tcp").to_string(), "80:80");
        let ipv6 = publish("[::1]:5353:53/udp");
        assert_eq!(ipv6.address, Some("::1".parse().unwrap()));
        assert_eq!((ipv6.host.get(), ipv6.guest.get()), (5353, 53));
        assert_eq!(ipv6.protocol, Protocol::Udp);
        assert_eq!(ipv6.host_end(), "[::1]:5353/udp");
    }

    #[test]
    fn what_is_none_says_why() {
        for (text, why) in [
            ("", "no port of the guest"),
            ("80", "no port of the guest"),
            ("80:", "from 1 to 65535"),
            (":80", "from 1 to 65535"),
            ("0:80", "from 1 to 65535"),
            ("80:65536", "from 1 to 65535"),
            ("80:http", "from 1 to 65535"),
            ("80:80/sctp", "neither tcp nor udp"),
            ("localhost:80:80", "neither IPv4 nor IPv6"),
            ("::1:80:80", "neither IPv4 nor IPv6"),
            ("[::1:80:80", "no IPv6 address"),
            ("[127.0.0.1]:80:80", "no IPv6 address"),
            ("1.2.3:80:80", "neither IPv4 nor IPv6"),
        ] {
            let message = text.parse::<Publish>().unwrap_err().to_string();
            assert!(message.contains(why), "{text}: {message}");
            assert!(message.contains("such as 8080:80"), "{message}");
        }
    }

    #[test]
    fn one_port_of_one_address_is_had_once() {
        for (one, other, conflict) in [
            ("80:80", "80:81", true),
            ("80:80", "127.0.0.1:80:80", true),
            ("0.0.0.0:80:80", "127.0.0.1:80:80", true),
            ("127.0.0.1:80:80", "127.0.0.1:80:80", true),
            ("127.0.0.1:80:80", "[::1]:80:81", true),
            ("80:80", "81:80", false),
            ("80:80", "80:80/udp", false),
            ("127.0.0.1:80:80", "[::1]:80:80", false),
        ] {
            let (one, other) = (publish(one), publish(other));
            assert_eq!(one.conflicts(&other), conflict, "{one} {other}");
            assert_eq!(other.conflicts(&one), conflict, "{other} {one}");
        }
    }
}
