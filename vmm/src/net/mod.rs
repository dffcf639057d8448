//! User-mode networking: a program beside the VM turns the guest's frames into ordinary sockets, so that
//! it takes no root, no tap and no set-up.
//!
//! The program is [passt](https://passt.top): its TCP keeps no data of its own but lets guest and host
//! acknowledge each other, it brings DHCP, DNS, IPv6 and published ports, and it locks itself into
//! namespaces and a seccomp filter, so what parses a hostile guest's packets is not this process.
//! Distributions package it. Options are those that its versions from 2023 on have in common.
//!
//! ```text
//! guest ◄─ virtio-net ─► Stream ◄─ one socket, frames with their length ─► passt ◄─ sockets ─► world
//! ```

mod arguments;
mod error;
mod helper;
mod ports;
mod resolver;
mod routes;

use std::process::Command;
use std::sync::Arc;

use devices::virtio::net::NetSettings;
use devices::virtio::net::stream::{Peer, Stream, StreamLink};

use self::arguments::Plan;
use self::helper::Helper;
pub(crate) use self::helper::Starting;
use self::resolver::Resolver;
use crate::config::UserConfig;

pub use self::error::UserNetError;

/// A user-mode network whose helper has been begun.
#[derive(Debug)]
pub(crate) struct UserNet {
    /// What the card sends to and receives from.
    pub stream: Stream,
    /// Its link.
    pub link: StreamLink,
    /// To be waited for before the guest runs.
    pub helper: Starting,
}

impl UserNet {
    /// Begins the network of a card.
    pub fn open(user: &UserConfig, card: &NetSettings) -> Result<Self, UserNetError> {
        user.publish.iter().try_for_each(ports::check)?;
        let plan = Plan {
            user,
            mtu: card.mtu,
            resolver: &Resolver::of_host(),
            routed: routes::has_default(),
        };
        let (helper, end) = helper::begin(Command::new("passt"), &plan, card.mac)?;
        let peer = Passt(helper.helper());
        let stream = Stream::new(card.name.clone(), end.socket, Box::new(peer), end.room);
        let (stream, link) = stream.map_err(|source| UserNetError::Host {
            what: "the socket of passt",
            source,
        })?;
        Ok(Self {
            stream,
            link,
            helper,
        })
    }
}

/// The helper, as the card knows it.
#[derive(Debug)]
struct Passt(Arc<Helper>);

impl Peer for Passt {
    fn end(&mut self) -> String {
        format!("passt has ended ({})", self.0.end())
    }
}
