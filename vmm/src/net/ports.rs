//! Whether the ports to be published can be had.
//!
//! passt binds them itself, but is content with one of several addresses; so each is tried before.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use super::UserNetError;
use crate::config::{Protocol, Publish};

/// Tries to bind the port, on every address it is wanted on, and lets go of it again.
pub(super) fn check(publish: &Publish) -> Result<(), UserNetError> {
    let outcome = match publish.address {
        Some(address) => bind(publish, address),
        None => bind(publish, Ipv4Addr::UNSPECIFIED.into()).and_then(|()| {
            bind(publish, Ipv6Addr::UNSPECIFIED.into()).or_else(|error| match error.kind() {
                ErrorKind::AddrInUse => Err(error),
                // This host has no IPv6.
                _ => Ok(()),
            })
        }),
    };
    outcome.map_err(|source| {
        let port = publish.host_end();
        match source.kind() {
            ErrorKind::AddrInUse => UserNetError::PortTaken(port),
            ErrorKind::PermissionDenied => UserNetError::PortForbidden(port),
            ErrorKind::AddrNotAvailable => UserNetError::NotOurAddress(port),
            _ => UserNetError::Port { port, source },
        }
    })
}

fn bind(publish: &Publish, address: IpAddr) -> io::Result<()> {
    let at = SocketAddr::new(address, publish.host.get());
    match publish.protocol {
        Protocol::Tcp => TcpListener::bind(at).map(drop),
        Protocol::Udp => UdpSocket::bind(at).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Option<String> {
        let publish: Publish = text.parse().unwrap();
        check(&publish).err().map(|error| error.to_string())
    }

    #[test]
    fn a_port_that_is_taken_on_one_address_is_taken() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        for text in [format!("{port}:80"), format!("127.0.0.1:{port}:80")] {
            assert!(refused(&text).unwrap().contains("is taken"), "{text}");
        }
        assert_eq!(refused(&format!("127.0.0.2:{port}:80")), None);
        drop(tcp);
        assert_eq!(refused(&format!("127.0.0.1:{port}:80")), None);

        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        let line = refused(&format!("{port}:80/udp")).unwrap();
        assert_eq!(
            line,
            format!("the host's port {port}/udp is taken; publish another one")
        );
    }

    #[test]
    fn an_address_that_is_another_host_s_is_told() {
        let line = refused("203.0.113.123:80:80").unwrap();
        assert!(line.contains("203.0.113.123:80/tcp"), "{line}");
        assert!(line.contains("no address of this host"), "{line}");
    }
}
