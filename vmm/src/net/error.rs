//! Why there is no user-mode network.

use std::io;

use thiserror::Error;

/// Why a user-mode network could not be set up.
#[derive(Debug, Error)]
pub enum UserNetError {
    /// The helper is not installed.
    #[error(
        "user-mode networking needs the program 'passt'; install the package passt (Debian: sudo apt-get install passt)"
    )]
    NoHelper,
    /// The helper, or the socket to it, could not be made.
    #[error("user-mode networking: {what}: {source}")]
    Host {
        /// The operation.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The helper gave up.
    #[error("user-mode networking: passt does not start: {0}")]
    Refused(String),
    /// The helper does nothing.
    #[error("user-mode networking: passt has not started after {0} s")]
    Silent(u64),
    /// Somebody else has the port.
    #[error("the host's port {0} is taken; publish another one")]
    PortTaken(String),
    /// The port is one of those for root.
    #[error(
        "the host's port {0} is not for ordinary users; publish one from 1024 up, or lower net.ipv4.ip_unprivileged_port_start"
    )]
    PortForbidden(String),
    /// The port is on an address of somewhere else.
    #[error("the host's port {0} cannot be published: this is no address of this host")]
    NotOurAddress(String),
    /// The port cannot be bound for another reason.
    #[error("the host's port {port} cannot be published: {source}")]
    Port {
        /// The port, with its address and protocol.
        port: String,
        /// Why.
        source: io::Error,
    },
}
