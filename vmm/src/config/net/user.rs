//! What a user-mode network is made of, beside what every card has.

use std::fmt;

use super::Publish;

/// A network through ordinary sockets of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserConfig {
    /// Ports of the guest that the host makes its own.
    pub publish: Vec<Publish>,
    /// The guest reaches what listens on the host's loopback, at the address of its gateway.
    pub host_loopback: bool,
}

impl fmt::Display for UserConfig {
    /// The command-line form, without what every card has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("user")?;
        for port in &self.publish {
            write!(f, ",publish={port}")?;
        }
        f.write_str(if self.host_loopback {
            ",host-loopback"
        } else {
            ""
        })
    }
}
