//! A network card, and its command-line form `user|tap=NAME|fd=N[,mac=MAC][,mtu=N][,bps=SIZE][,iops=N][,burst=SIZE]…`.

mod publish;
#[cfg(test)]
mod tests;
mod user;

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use devices::rate::Limits;
use devices::virtio::net::{MAX_PAIRS, tap};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::list::{ListError, OptionList, escape};
use super::mac::{MacAddress, MacError};
use super::rate::{RateError, RateLimit};

pub use publish::{Protocol, Publish, PublishError};
pub use user::UserConfig;

/// The most queue pairs of a card.
pub const MAX_QUEUES: u16 = MAX_PAIRS;

/// Virtio 1.2 §5.1.4.1: a device offers no MTU below 68.
const MIN_MTU: u16 = 68;
/// A tap and passt take frames of up to 65535 bytes, Ethernet's header of 14 included.
const MAX_MTU: u16 = 65521;

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub struct NetConfig {
    /// Where its frames go to.
    pub kind: NetKind,
    /// Its address; by default one made from the other end's name and the host's id, or from the card's
    /// number.
    pub mac: Option<MacAddress>,
    /// The largest packet; by default the other end's. A tap's is changed if it is another.
    pub mtu: Option<u16>,
    /// How much it receives at most, and sends at most.
    pub rate: RateLimit,
}

/// Where the frames of a card go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetKind {
    /// A tap of the host's, made if it is missing.
    Tap {
        /// The interface.
        name: String,
        /// Queue pairs, for as many vCPUs.
        queues: u16,
    },
    /// A tap that is open already.
    TapFds {
        /// The numbers of its descriptors, one for each queue pair. They are duplicated.
        fds: Vec<RawFd>,
    },
    /// Ordinary sockets of the host, by a helper process.
    User(UserConfig),
}

/// Why a card is not one.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetConfigError {
    /// The list itself is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// Nothing to connect to, or two things.
    #[error("a network card goes to one of user, tap=NAME and fd=N; give exactly one of them")]
    Kind,
    /// A name that no interface can have.
    #[error(
        "'{0}' is not a tap's name; it has 1 to {max} bytes of printable ASCII without '/', ':', '%' and spaces",
        max = tap::NAME_MAX
    )]
    Name(String),
    /// Not numbers of descriptors.
    #[error(
        "'{0}' is not an open descriptor of a tap; write its number, such as fd=3, or several, such as fd=3:4"
    )]
    Fds(String),
    /// No queue pair, or too many.
    #[error("'{0}' queue pairs asked for; a network card has 1 to {MAX_QUEUES}")]
    Queues(String),
    /// The number of queue pairs where that is a matter of descriptors.
    #[error(
        "queues is for tap=NAME; with fd=N there are as many queue pairs as descriptors, such as fd=3:4"
    )]
    QueuesOfFds,
    /// The number of queue pairs where there is one.
    #[error("queues is for tap=NAME; a user-mode network has one queue pair")]
    QueuesOfUser,
    /// What only user-mode networks have.
    #[error("publish and host-loopback are for user; the guest on a tap has an address of its own")]
    OnlyOfUser,
    /// Not a port to publish.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A port that leads to two places.
    #[error("the host's port {0} is published twice; one port leads to one port of one guest")]
    PublishedTwice(String),
    /// A packet size that cannot be.
    #[error("an MTU of '{0}' is impossible; a network card has {MIN_MTU} to {MAX_MTU}")]
    Mtu(String),
    /// The address.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// A limit of its rate.
    #[error("network card: {0}")]
    Rate(#[source] RateError),
    /// Two cards on one tap.
    #[error("tap {0} is given twice; each network card needs a tap of its own")]
    TapTwice(String),
    /// Two cards, or queue pairs, on one descriptor.
    #[error("descriptor {0} is given twice; each queue pair needs one of its own")]
    FdTwice(RawFd),
    /// Two cards with one address.
    #[error("MAC address {0} is given twice; each network card needs one of its own")]
    MacTwice(MacAddress),
}

impl NetConfig {
    /// A card on the tap `name`, with one queue pair.
    pub fn tap(name: impl Into<String>) -> Self {
        Self {
            kind: NetKind::Tap {
                name: name.into(),
                queues: 1,
            },
            mac: None,
            mtu: None,
            rate: RateLimit::default(),
        }
    }

    /// The limits of its rate, as devices have them.
    ///
    /// # Errors
    /// They make no sense.
    pub fn limits(&self) -> Result<Limits, NetConfigError> {
        self.rate.limits().map_err(NetConfigError::Rate)
    }

    /// Checks what can be known without touching the host.
    ///
    /// # Errors
    /// A name, number or size that no host could provide.
    pub fn validate(&self) -> Result<(), NetConfigError> {
        let possible = |count: usize| (1..=usize::from(MAX_QUEUES)).contains(&count);
        match &self.kind {
            NetKind::Tap { name, .. } if !is_interface_name(name) => {
                return Err(NetConfigError::Name(name.escape_debug().to_string()));
            }
            NetKind::Tap { queues, .. } if !possible(usize::from(*queues)) => {
                return Err(NetConfigError::Queues(queues.to_string()));
            }
            NetKind::TapFds { fds } if !possible(fds.len()) => {
                return Err(NetConfigError::Queues(fds.len().to_string()));
            }
            // The first three are never a tap: the console and the log are there.
            NetKind::TapFds { fds } if fds.iter().any(|fd| *fd < 3) => {
                return Err(NetConfigError::Fds(join(fds)));
            }
            NetKind::Tap { .. } | NetKind::TapFds { .. } | NetKind::User(_) => {}
        }
        self.limits()?;
        match self.mtu {
            Some(mtu) if !(MIN_MTU..=MAX_MTU).contains(&mtu) => {
                Err(NetConfigError::Mtu(mtu.to_string()))
            }
            _ => Ok(()),
        }
    }
}

/// Checks each card, and that no two of them want the same.
pub(super) fn validate_all(cards: &[NetConfig]) -> Result<(), NetConfigError> {
    let mut names = Vec::new();
    let mut fds = Vec::new();
    let mut macs = Vec::new();
    let mut published: Vec<&Publish> = Vec::new();
    for card in cards {
        card.validate()?;
        match &card.kind {
            NetKind::Tap { name, .. } if names.contains(&name) => {
                return Err(NetConfigError::TapTwice(name.clone()));
            }
            NetKind::Tap { name, .. } => names.push(name),
            NetKind::TapFds { fds: own } => {
                for fd in own {
                    if fds.contains(&fd) {
                        return Err(NetConfigError::FdTwice(*fd));
                    }
                    fds.push(fd);
                }
            }
            NetKind::User(user) => {
                for port in &user.publish {
                    if published.iter().any(|other| other.conflicts(port)) {
                        return Err(NetConfigError::PublishedTwice(port.host_end()));
                    }
                    published.push(port);
                }
            }
        }
        if let Some(mac) = card.mac {
            if macs.contains(&mac) {
                return Err(NetConfigError::MacTwice(mac));
            }
            macs.push(mac);
        }
    }
    Ok(())
}

/// What the kernel takes for a name (`dev_valid_name`), less `%`, which it would replace by a number, and
/// less what cannot be typed.
fn is_interface_name(name: &str) -> bool {
    (1..=tap::NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte))
}

fn join(fds: &[RawFd]) -> String {
    let numbers: Vec<String> = fds.iter().map(ToString::to_string).collect();
    numbers.join(":")
}

impl FromStr for NetConfig {
    type Err = NetConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut list = OptionList::of_keys(text)?;
        let (user, tap, fd) = (list.switch("user")?, list.value("tap")?, list.value("fd")?);
        let (mac, mtu) = (list.value("mac")?, list.value("mtu")?);
        let queues = list.value("queues")?;
        let rate = RateLimit::take(&mut list).map_err(|error| match error {
            RateError::List(error) => NetConfigError::List(error),
            error => NetConfigError::Rate(error),
        })?;
        let (publish, host_loopback) = (list.values("publish")?, list.switch("host-loopback")?);
        list.finish()?;
        let fds = |text: String| {
            let numbers: Result<Vec<RawFd>, _> = text.split(':').map(str::parse).collect();
            numbers.map_err(|_| NetConfigError::Fds(text))
        };
        let card = Self::try_from(Table {
            user,
            tap,
            fd: fd.map(fds).transpose()?.map(Numbers::Several),
            mac: mac.map(|text| text.parse()).transpose()?,
            mtu: number(mtu, NetConfigError::Mtu)?,
            queues: number(queues, NetConfigError::Queues)?,
            rate,
            publish: publish
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()?,
            host_loopback,
        })?;
        card.validate()?;
        Ok(card)
    }
}

fn number(
    text: Option<String>,
    bad: fn(String) -> NetConfigError,
) -> Result<Option<u16>, NetConfigError> {
    text.map(|text| text.parse().map_err(|_| bad(text)))
        .transpose()
}

impl fmt::Display for NetConfig {
    /// The command-line form; it reads back as the same card.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            NetKind::Tap { name, .. } => write!(f, "tap={}", escape(name))?,
            NetKind::TapFds { fds } => write!(f, "fd={}", join(fds))?,
            NetKind::User(user) => write!(f, "{user}")?,
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ",mtu={mtu}")?;
        }
        match self.kind {
            NetKind::Tap { queues, .. } if queues != 1 => write!(f, ",queues={queues}")?,
            _ => {}
        }
        match self.rate.is_none() {
            true => Ok(()),
            false => write!(f, ",{}", self.rate),
        }
    }
}

/// A card as a table in a file: the keys of the command line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    user: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tap: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fd: Option<Numbers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<MacAddress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queues: Option<u16>,
    #[serde(flatten)]
    rate: RateLimit,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    publish: Vec<Publish>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    host_loopback: bool,
}

/// `fd = 3` or `fd = [3, 4]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Numbers {
    One(RawFd),
    Several(Vec<RawFd>),
}

impl Numbers {
    fn list(self) -> Vec<RawFd> {
        match self {
            Self::One(fd) => vec![fd],
            Self::Several(fds) => fds,
        }
    }
}

impl TryFrom<Table> for NetConfig {
    type Error = NetConfigError;

    fn try_from(table: Table) -> Result<Self, Self::Error> {
        let user = UserConfig {
            publish: table.publish,
            host_loopback: table.host_loopback,
        };
        if !table.user && user != UserConfig::default() {
            return Err(NetConfigError::OnlyOfUser);
        }
        let kind = match (table.user, table.tap, table.fd, table.queues) {
            (true, None, None, None) => NetKind::User(user),
            (true, None, None, Some(_)) => return Err(NetConfigError::QueuesOfUser),
            (false, Some(name), None, queues) => NetKind::Tap {
                name,
                queues: queues.unwrap_or(1),
            },
            (false, None, Some(_), Some(_)) => return Err(NetConfigError::QueuesOfFds),
            (false, None, Some(fds), None) => NetKind::TapFds { fds: fds.list() },
            _ => return Err(NetConfigError::Kind),
        };
        Ok(Self {
            kind,
            mac: table.mac,
            mtu: table.mtu,
            rate: table.rate,
        })
    }
}

impl From<NetConfig> for Table {
    fn from(card: NetConfig) -> Self {
        let table = Self {
            mac: card.mac,
            mtu: card.mtu,
            rate: card.rate,
            ..Self::default()
        };
        match card.kind {
            NetKind::Tap { name, queues } => Self {
                tap: Some(name),
                queues: Some(queues),
                ..table
            },
            NetKind::TapFds { fds } => Self {
                fd: Some(Numbers::Several(fds)),
                ..table
            },
            NetKind::User(user) => Self {
                user: true,
                publish: user.publish,
                host_loopback: user.host_loopback,
                ..table
            },
        }
    }
}
