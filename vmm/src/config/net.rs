//! A network card, and its command-line form
//! `tap=NAME|fd=N[,mac=MAC][,mtu=N][,queues=N][,bps=SIZE][,iops=N][,burst=SIZE]`.

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

/// The most queue pairs of a card.
pub const MAX_QUEUES: u16 = MAX_PAIRS;

/// Virtio 1.2 §5.1.4.1: a device offers no MTU below 68.
const MIN_MTU: u16 = 68;
/// A tap takes frames of up to 65535 bytes, Ethernet's header of 14 included.
const MAX_MTU: u16 = 65521;

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub struct NetConfig {
    /// Where its frames go to.
    pub kind: NetKind,
    /// Its address; by default one made from the other end's name and the host's id.
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
}

/// Why a card is not one.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetConfigError {
    /// The list itself is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// Nothing to connect to, or two things.
    #[error("a network card goes to one of tap=NAME and fd=N; give exactly one of them")]
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
            NetKind::Tap { .. } | NetKind::TapFds { .. } => {}
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
        let (tap, fd) = (list.value("tap")?, list.value("fd")?);
        let (mac, mtu) = (list.value("mac")?, list.value("mtu")?);
        let queues = list.value("queues")?;
        let rate = RateLimit::take(&mut list).map_err(|error| match error {
            RateError::List(error) => NetConfigError::List(error),
            error => NetConfigError::Rate(error),
        })?;
        list.finish()?;
        let fds = |text: String| {
            let numbers: Result<Vec<RawFd>, _> = text.split(':').map(str::parse).collect();
            numbers.map_err(|_| NetConfigError::Fds(text))
        };
        let card = Self::try_from(Table {
            tap,
            fd: fd.map(fds).transpose()?.map(Numbers::Several),
            mac: mac.map(|text| text.parse()).transpose()?,
            mtu: number(mtu, NetConfigError::Mtu)?,
            queues: number(queues, NetConfigError::Queues)?,
            rate,
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
}

/// `fd = 3` or `fd = [3, 4]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Numbers {
    One(RawFd),
    Several(Vec<RawFd>),
}

impl TryFrom<Table> for NetConfig {
    type Error = NetConfigError;

    fn try_from(table: Table) -> Result<Self, Self::Error> {
        let kind = match (table.tap, table.fd, table.queues) {
            (Some(name), None, queues) => NetKind::Tap {
                name,
                queues: queues.unwrap_or(1),
            },
            (None, Some(_), Some(_)) => return Err(NetConfigError::QueuesOfFds),
            (None, Some(Numbers::One(fd)), None) => NetKind::TapFds { fds: vec![fd] },
            (None, Some(Numbers::Several(fds)), None) => NetKind::TapFds { fds },
            (None, None, _) | (Some(_), Some(_), _) => return Err(NetConfigError::Kind),
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_form_round_trips() {
        let tap = |name: &str, queues| NetKind::Tap {
            name: name.to_owned(),
            queues,
        };
        for (text, kind, mac, mtu) in [
            ("tap=tap0", tap("tap0", 1), None, None),
            (
                "tap=a,,b,mac=02:00:00:00:00:01,mtu=9000,queues=2",
                tap("a,b", 2),
                Some("02:00:00:00:00:01"),
                Some(9000),
            ),
            ("fd=3", NetKind::TapFds { fds: vec![3] }, None, None),
            (
                "fd=3:7,mtu=1500",
                NetKind::TapFds { fds: vec![3, 7] },
                None,
                Some(1500),
            ),
        ] {
            let card = NetConfig {
                kind,
                mac: mac.map(|text| text.parse().unwrap()),
                mtu,
                rate: RateLimit::default(),
            };
            assert_eq!(text.parse::<NetConfig>().unwrap(), card);
            assert_eq!(card.to_string(), text);
        }
        let text = "tap=t,queues=2,bps=1M,iops=100,burst=64K";
        let card: NetConfig = text.parse().unwrap();
        assert_eq!(card.rate, "bps=1M,iops=100,burst=64K".parse().unwrap());
        assert_eq!(card.to_string(), text);
    }

    #[test]
    fn bad_cards_say_what_is_wrong() {
        const KIND: &str =
            "a network card goes to one of tap=NAME and fd=N; give exactly one of them";
        const NAME: &str = "is not a tap's name; it has 1 to 15 bytes of printable ASCII without '/', ':', '%' \
                            and spaces";
        const QUEUES: &str = "queue pairs asked for; a network card has 1 to 31";
        const MTU: &str = "is impossible; a network card has 68 to 65521";
        let name = |name: &str| (format!("tap={name}"), format!("'{name}' {NAME}"));
        let queues = |n: &str| (format!("tap=t,queues={n}"), format!("'{n}' {QUEUES}"));
        let mtu = |n: &str| (format!("tap=t,mtu={n}"), format!("an MTU of '{n}' {MTU}"));
        let cases = [
            ("mtu=1500".to_owned(), KIND.to_owned()),
            ("tap=t,fd=3".to_owned(), KIND.to_owned()),
            name(""),
            name("."),
            name("a/b"),
            name("tap%d"),
            name("a b"),
            name("abcdefghijklmnop"),
            queues("0"),
            queues("32"),
            queues("x"),
            mtu("67"),
            mtu("65522"),
            mtu("70000"),
            (
                "fd=3,queues=1".to_owned(),
                "queues is for tap=NAME; with fd=N there are as many queue pairs as descriptors, such as fd=3:4"
                    .to_owned(),
            ),
            (
                "fd=2".to_owned(),
                "'2' is not an open descriptor of a tap; write its number, such as fd=3, or several, such as \
                 fd=3:4"
                    .to_owned(),
            ),
            (
                "tap=t,bps=0".to_owned(),
                "network card: bps=0 is no rate; it can be 1K to 1T a second, or be left out for no limit".to_owned(),
            ),
            (
                "tap=t,mac=01:00:00:00:00:00".to_owned(),
                "MAC address 01:00:00:00:00:00 is a multicast address; the first byte of a card's is even, such \
                 as 02"
                    .to_owned(),
            ),
            (
                "tap=t,mac=02:00:00:00:00:01,macc=x".to_owned(),
                "unknown key 'macc', did you mean 'mac'?; known keys: tap, fd, mac, mtu, queues, bps, iops, burst".to_owned(),
            ),
        ];
        for (text, message) in cases {
            let error = text.parse::<NetConfig>().unwrap_err();
            assert_eq!(error.to_string(), message, "{text}");
        }
        assert!("fd=x".parse::<NetConfig>().is_err());
        assert!("fd=-1".parse::<NetConfig>().is_err());
    }

    #[test]
    fn no_two_cards_want_the_same() {
        let check = |texts: &[&str]| {
            let cards: Vec<NetConfig> = texts.iter().map(|text| text.parse().unwrap()).collect();
            validate_all(&cards)
        };
        assert_eq!(check(&["tap=a", "tap=b", "fd=3", "fd=4:5"]), Ok(()));
        assert_eq!(
            check(&["tap=a", "tap=a"]),
            Err(NetConfigError::TapTwice("a".to_owned()))
        );
        assert_eq!(check(&["fd=3", "fd=4:3"]), Err(NetConfigError::FdTwice(3)));
        let mac = |name| format!("tap={name},mac=02:00:00:00:00:01");
        let error = check(&[&mac("a"), &mac("b")]).unwrap_err();
        assert!(matches!(error, NetConfigError::MacTwice(_)), "{error}");
    }
}
