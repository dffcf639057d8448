//! Network cards: what each of them stands on.

use std::fs;

use devices::virtio::net::backend::{NetBackend, Uplink};
use devices::virtio::net::tap::{self, OpenTap};
use devices::virtio::net::{Net, NetSettings};

use crate::config::{ConfigError, MacAddress, NetKind, VmConfig};
use crate::error::BuildError;
use crate::net::{Starting, UserNet};

/// All cards, in the order of the settings, and the helpers that some of them have.
pub(super) fn open(config: &VmConfig) -> Result<(Vec<Net>, Vec<Starting>), BuildError> {
    let mut cards = Vec::new();
    let mut helpers = Vec::new();
    for (index, card) in config.nets.iter().enumerate() {
        let limits = card.limits().map_err(ConfigError::from)?;
        let net = match &card.kind {
            NetKind::Tap { name, queues } => on_tap(tap::open(name, *queues, card.mtu)?, card.mac)?,
            NetKind::TapFds { fds } => on_tap(tap::open_fds(fds, card.mtu)?, card.mac)?,
            NetKind::User(user) => {
                // Nobody else sees it: it has to be like no other of this VM.
                let derived = || MacAddress::derived(&["user", &index.to_string()]);
                let settings = NetSettings {
                    name: format!("user-mode network {index}"),
                    mac: card.mac.unwrap_or_else(derived).bytes(),
                    mtu: card.mtu,
                };
                let network = UserNet::open(user, &settings)?;
                helpers.push(network.helper);
                make(
                    Box::new(network.link),
                    vec![Box::new(network.stream)],
                    settings,
                )?
            }
        };
        net.rate_control().set(limits);
        cards.push(net);
    }
    Ok((cards, helpers))
}

fn on_tap(tap: OpenTap, mac: Option<MacAddress>) -> Result<Net, BuildError> {
    // A tap's name is one host's; its guest keeps the address as long as the tap its name.
    let mac = mac.unwrap_or_else(|| MacAddress::derived(&["tap", &host_id(), &tap.name]));
    let settings = NetSettings {
        name: format!("tap {}", tap.name),
        mac: mac.bytes(),
        mtu: tap.mtu,
    };
    make(tap.uplink, tap.backends, settings)
}

fn make(
    uplink: Box<dyn Uplink>,
    backends: Vec<Box<dyn NetBackend>>,
    settings: NetSettings,
) -> Result<Net, BuildError> {
    Net::new(uplink, backends, settings).map_err(|source| BuildError::Device {
        what: "network card",
        source,
    })
}

/// What tells this host from others: machine-id(5). Where there is none, all such hosts are one.
fn host_id() -> String {
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    id.trim().to_owned()
}
