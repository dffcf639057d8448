//! MAC addresses, and the one a card has when nobody chose one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// The address of one network card: neither zero nor a group's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

/// Why an address is not a card's.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MacError {
    /// It does not look like one.
    #[error("'{0}' is not a MAC address; write six bytes, such as 02:00:00:00:00:01")]
    Syntax(String),
    /// It is a group's.
    #[error(
        "MAC address {0} is a multicast address; the first byte of a card's is even, such as 02"
    )]
    Multicast(String),
    /// It is nobody's.
    #[error(
        "MAC address 00:00:00:00:00:00 is no card's; choose another, such as 02:00:00:00:00:01"
    )]
    Zero,
}

impl MacAddress {
    /// The address of these bytes.
    ///
    /// # Errors
    /// They are all zero, or those of a group.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        let address = Self(bytes);
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        if bytes[0] & 1 != 0 {
            return Err(MacError::Multicast(address.to_string()));
        }
        Ok(address)
    }

    /// The address that belongs to `seed`: the same each time, and locally administered (IEEE 802), so
    /// that it is no manufacturer's.
    #[must_use]
    pub fn derived(seed: &[&str]) -> Self {
        // FNV-1a, 64 bits; a zero byte between the parts keeps them apart.
        let bytes = seed.iter().flat_map(|part| part.bytes().chain([0]));
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let [a, b, c, d, e, f, ..] = hash.to_le_bytes();
        Self([a & !1 | 2, b, c, d, e, f])
    }

    /// Its six bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || MacError::Syntax(text.to_owned());
        let byte = |part: &str| {
            let hex = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
            hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.ok_or_else(syntax)?;
        Self::new(bytes.try_into().map_err(|_| syntax())?)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_round_trips() {
        for text in ["02:00:00:00:00:01", "fe:dc:ba:98:76:54"] {
            assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
        }
        let upper: MacAddress = "AA:BB:CC:DD:EE:FF".parse().unwrap();
        assert_eq!(upper.bytes(), [0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
    }

    #[test]
    fn what_is_no_cards_address_is_refused() {
        for text in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "02-00-00-00-00-01",
        ] {
            let error = text.parse::<MacAddress>().unwrap_err();
            assert_eq!(error, MacError::Syntax(text.to_owned()));
        }
        for (text, message) in [
            (
                "01:00:5e:00:00:01",
                "MAC address 01:00:5e:00:00:01 is a multicast address; the first byte of a card's is even, such as 02",
            ),
            (
                "ff:ff:ff:ff:ff:ff",
                "MAC address ff:ff:ff:ff:ff:ff is a multicast address; the first byte of a card's is even, such as 02",
            ),
            (
                "00:00:00:00:00:00",
                "MAC address 00:00:00:00:00:00 is no card's; choose another, such as 02:00:00:00:00:01",
            ),
        ] {
            assert_eq!(text.parse::<MacAddress>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_derived_address_is_its_seeds_alone() {
        let seeds: Vec<[String; 2]> = (0..1000)
            .flat_map(|n| ["one", "other"].map(|host| [host.to_owned(), format!("tap{n}")]))
            .collect();
        let mut seen = std::collections::HashSet::new();
        for [host, name] in &seeds {
            let address = MacAddress::derived(&[host, name]);
            assert_eq!(
                address,
                MacAddress::derived(&[host, name]),
                "the same each time"
            );
            assert_eq!(MacAddress::new(address.bytes()), Ok(address));
            assert_eq!(address.bytes()[0] & 3, 2, "local, and one card's");
            assert!(seen.insert(address.bytes()), "{host} {name} collides");
        }
        assert_ne!(
            MacAddress::derived(&["a", "b"]),
            MacAddress::derived(&["ab", ""])
        );
    }
}
