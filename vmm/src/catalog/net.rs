//! Network cards: what each of them stands on.

use std::fs;

use devices::virtio::net::tap::{self, OpenTap};
use devices::virtio::net::{Net, NetSettings};

use crate::config::{ConfigError, MacAddress, NetConfig, NetKind, VmConfig};
use crate::error::BuildError;

/// All cards, in the order of the settings.
pub(super) fn open(config: &VmConfig) -> Result<Vec<Net>, BuildError> {
    config.nets.iter().map(open_card).collect()
}

fn open_card(card: &NetConfig) -> Result<Net, BuildError> {
    let limits = card.limits().map_err(ConfigError::from)?;
    let tap = match &card.kind {
        NetKind::Tap { name, queues } => tap::open(name, *queues, card.mtu)?,
        NetKind::TapFds { fds } => tap::open_fds(fds, card.mtu)?,
    };
    let net = on_tap(tap, card.mac)?;
    net.rate_control().set(limits);
    Ok(net)
}

fn on_tap(tap: OpenTap, mac: Option<MacAddress>) -> Result<Net, BuildError> {
    // A tap's name is one host's; its guest keeps the address as long as the tap its name.
    let mac = mac.unwrap_or_else(|| MacAddress::derived(&["tap", &host_id(), &tap.name]));
    let settings = NetSettings {
        name: format!("tap {}", tap.name),
        mac: mac.bytes(),
        mtu: tap.mtu,
    };
    Net::new(tap.uplink, tap.backends, settings).map_err(|source| BuildError::Device {
        what: "network card",
        source,
    })
}

/// What tells this host from others: machine-id(5). Where there is none, all such hosts are one.
fn host_id() -> String {
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    id.trim().to_owned()
}
