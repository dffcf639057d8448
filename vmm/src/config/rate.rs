//! Limits on what a device moves, and their command-line form `bps=SIZE,iops=N,burst=SIZE`.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use devices::rate::{Limits, Rate};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::list::{ListError, OptionList};
use super::size::{MemorySize, MemorySizeError};

/// How much a device may move: by default as much as it can. A network card may receive that much and
/// send that much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RateLimit {
    /// Bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps: Option<Amount>,
    /// Operations a second: requests of a disk or of the source of entropy, packets of a network card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// What may pass at once after a pause, beyond the rate: bytes, or operations where only these are
    /// limited. Where both are, operations may pass at once for as long as bytes. By default what passes
    /// in a tenth of a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<Amount>,
}

/// A number of bytes or operations. It is written with a unit as a [`MemorySize`] is; a bare number is
/// just that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Amount(pub u64);

/// Why a limit is not one.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RateError {
    /// The list itself is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// A number of bytes that is none.
    #[error("{key}: {source}")]
    Size {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        source: MemorySizeError,
    },
    /// A number of operations that is none.
    #[error("iops: '{0}' is not a number of operations; write it without a unit, such as 1000")]
    Operations(String),
    /// A rate that lets nothing pass, or is none.
    #[error(
        "{key}={value} is no rate; it can be {least} to {most} a second, or be left out for no limit"
    )]
    Rate {
        /// The key.
        key: &'static str,
        /// What was asked for.
        value: Amount,
        /// The slowest.
        least: Amount,
        /// The fastest.
        most: Amount,
    },
    /// A burst beyond no rate.
    #[error("burst={0} needs a rate that it goes beyond; add bps or iops")]
    BurstAlone(Amount),
    /// A burst that is over before a timer can tell, or never.
    #[error("burst={burst} does not go with {key}={rate}; it can be {least} to {most}")]
    Burst {
        /// What was asked for.
        burst: Amount,
        /// The rate's key.
        key: &'static str,
        /// The rate.
        rate: Amount,
        /// A millisecond's worth.
        least: Amount,
        /// An hour's worth.
        most: Amount,
    },
}

/// Slower than this nothing of a guest would work; most likely a unit is missing.
const BPS_MIN: u64 = 1 << 10;
const BPS_MAX: u64 = 1 << 40;
const IOPS_MIN: u64 = 1;
const IOPS_MAX: u64 = 1_000_000_000;
/// A burst where none is asked for is what passes in this part of a second.
const BURST_DEFAULT: u64 = 10;
/// The shortest burst is what passes in this part of a second: waits are timed about as finely.
const BURST_MIN: u64 = 1000;
/// The longest burst is what passes in so many seconds.
const BURST_MAX: u64 = 3600;

impl RateLimit {
    /// Takes the keys of a limit out of an option's.
    pub(super) fn take(list: &mut OptionList) -> Result<Self, RateError> {
        let bps = amount(list, "bps")?;
        let iops = match list.value("iops")? {
            Some(text) => Some(text.parse().map_err(|_| RateError::Operations(text))?),
            None => None,
        };
        let burst = amount(list, "burst")?;
        Ok(Self { bps, iops, burst })
    }

    /// Whether nothing is said.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The limits as devices have them.
    ///
    /// # Errors
    /// They make no sense.
    pub fn limits(&self) -> Result<Limits, RateError> {
        let rates = [
            ("bps", self.bps, BPS_MIN, BPS_MAX),
            ("iops", self.iops.map(Amount), IOPS_MIN, IOPS_MAX),
        ];
        for (key, rate, least, most) in rates {
            if let Some(value) = rate.filter(|rate| !(least..=most).contains(&rate.0)) {
                let (least, most) = (Amount(least), Amount(most));
                return Err(RateError::Rate {
                    key,
                    value,
                    least,
                    most,
                });
            }
        }
        // The limit that the burst is counted in.
        let Some((key, main)) = rates
            .iter()
            .find_map(|(key, rate, ..)| Some((*key, (*rate)?)))
        else {
            return match self.burst {
                Some(burst) => Err(RateError::BurstAlone(burst)),
                None => Ok(Limits::default()),
            };
        };
        let (least, most) = (main.0.div_ceil(BURST_MIN), main.0.saturating_mul(BURST_MAX));
        let burst = match self.burst {
            Some(burst) if !(least..=most).contains(&burst.0) => {
                let (rate, least, most) = (main, Amount(least), Amount(most));
                return Err(RateError::Burst {
                    burst,
                    key,
                    rate,
                    least,
                    most,
                });
            }
            Some(burst) => burst.0,
            None => main.0 / BURST_DEFAULT,
        };
        let rate = |per_second: u64| {
            let share = u128::from(per_second) * u128::from(burst) / u128::from(main.0);
            let burst = u64::try_from(share).unwrap_or(u64::MAX).max(1);
            Some(Rate {
                per_second: NonZeroU64::new(per_second)?,
                burst: NonZeroU64::new(burst)?,
            })
        };
        Ok(Limits {
            bytes: self.bps.and_then(|bps| rate(bps.0)),
            operations: self.iops.and_then(rate),
        })
    }
}

fn amount(list: &mut OptionList, key: &'static str) -> Result<Option<Amount>, RateError> {
    let amount = list.value(key)?.map(|text| text.parse()).transpose();
    amount.map_err(|source| RateError::Size { key, source })
}

impl From<Limits> for RateLimit {
    /// In words: the limits that these words stand for, whatever was said to get them.
    fn from(limits: Limits) -> Self {
        Self {
            bps: limits.bytes.map(|rate| Amount(rate.per_second.get())),
            iops: limits.operations.map(|rate| rate.per_second.get()),
            burst: limits
                .bytes
                .or(limits.operations)
                .map(|rate| Amount(rate.burst.get())),
        }
    }
}

impl FromStr for RateLimit {
    type Err = RateError;

    /// Reads a list that is a limit and nothing else.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut list = OptionList::of_keys(text)?;
        let limit = Self::take(&mut list)?;
        list.finish()?;
        limit.limits()?;
        Ok(limit)
    }
}

impl fmt::Display for RateLimit {
    /// The command-line form; nothing where there is no limit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = [
            ("bps", self.bps),
            ("iops", self.iops.map(Amount)),
            ("burst", self.burst),
        ];
        let said = keys
            .iter()
            .filter_map(|(key, value)| Some((key, (*value)?)));
        for (at, (key, value)) in said.enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

impl FromStr for Amount {
    type Err = MemorySizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse::<MemorySize>().map(|size| Self(size.as_bytes()));
        }
        let number = text.parse();
        number.map_or_else(
            |_| Err(MemorySizeError::Overflow(text.to_owned())),
            |n| Ok(Self(n)),
        )
    }
}

impl fmt::Display for Amount {
    /// In the largest unit that gives a whole number, without one below that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_multiple_of(1024) && self.0 > 0 {
            true => MemorySize::bytes(self.0).fmt(f),
            false => self.0.fmt(f),
        }
    }
}

impl From<Amount> for String {
    fn from(amount: Amount) -> Self {
        amount.to_string()
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor)
    }
}

struct AmountVisitor;

impl Visitor<'_> for AmountVisitor {
    type Value = Amount;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or a text such as \"100M\"")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Amount, E> {
        Ok(Amount(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Amount, E> {
        let negative = |_| E::invalid_value(de::Unexpected::Signed(number), &self);
        u64::try_from(number).map(Amount).map_err(negative)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Amount, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate {
            per_second: NonZeroU64::new(per_second)?,
            burst: NonZeroU64::new(burst)?,
        })
    }

    #[test]
    fn the_command_line_form_round_trips_and_means_what_it_says() {
        let second = |bytes, operations| Limits { bytes, operations };
        for (text, limits) in [
            ("bps=100M", second(rate(100 << 20, 10 << 20), None)),
            ("bps=1234", second(rate(1234, 123), None)),
            ("iops=1000", second(None, rate(1000, 100))),
            ("iops=1", second(None, rate(1, 1))),
            ("bps=1M,burst=2M", second(rate(1 << 20, 2 << 20), None)),
            ("iops=100,burst=7", second(None, rate(100, 7))),
            (
                "bps=1M,iops=200",
                second(rate(1 << 20, (1 << 20) / 10), rate(200, 19)),
            ),
            (
                "bps=1M,iops=200,burst=4M",
                second(rate(1 << 20, 4 << 20), rate(200, 800)),
            ),
            (
                "bps=1M,iops=3,burst=2K",
                second(rate(1 << 20, 2 << 10), rate(3, 1)),
            ),
            (
                "bps=1T,iops=1000000000,burst=3600T",
                second(
                    rate(1 << 40, 3600 << 40),
                    rate(1_000_000_000, 3_600_000_000_000),
                ),
            ),
        ] {
            let limit: RateLimit = text.parse().unwrap();
            assert_eq!(limit.to_string(), text);
            assert_eq!(limit.limits().unwrap(), limits, "{text}");
            let again = RateLimit::from(limits);
            assert_eq!(again.limits().unwrap().bytes, limits.bytes, "{again}");
        }
        assert_eq!(RateLimit::default().limits(), Ok(Limits::default()));
        assert_eq!(RateLimit::from(Limits::default()).to_string(), "");
    }

    #[test]
    fn bad_limits_say_what_is_wrong() {
        for (text, message) in [
            (
                "bps=fast",
                "bps: 'fast' is not a size; write a whole number and a unit, such as 256M or 4G",
            ),
            ("bps=16777216T", "bps: '16777216T' is too large"),
            (
                "bps=18446744073709551616",
                "bps: '18446744073709551616' is too large",
            ),
            ("bps", "'bps' needs a value; write bps=VALUE"),
            (
                "bps=0",
                "bps=0 is no rate; it can be 1K to 1T a second, or be left out for no limit",
            ),
            (
                "bps=100",
                "bps=100 is no rate; it can be 1K to 1T a second, or be left out for no limit",
            ),
            (
                "bps=2T",
                "bps=2T is no rate; it can be 1K to 1T a second, or be left out for no limit",
            ),
            (
                "iops=0",
                "iops=0 is no rate; it can be 1 to 1000000000 a second, or be left out for no limit",
            ),
            (
                "iops=1K",
                "iops: '1K' is not a number of operations; write it without a unit, such as 1000",
            ),
            (
                "iops=-1",
                "iops: '-1' is not a number of operations; write it without a unit, such as 1000",
            ),
            (
                "burst=1M",
                "burst=1M needs a rate that it goes beyond; add bps or iops",
            ),
            (
                "bps=1M,burst=0",
                "burst=0 does not go with bps=1M; it can be 1049 to 3600M",
            ),
            (
                "iops=5000,burst=4",
                "burst=4 does not go with iops=5000; it can be 5 to 18000000",
            ),
            (
                "bps=1M,burst=1T",
                "burst=1T does not go with bps=1M; it can be 1049 to 3600M",
            ),
            ("bsp=1M", "unknown key 'bsp'; known keys: bps, iops, burst"),
            ("bps=1M,bps=2M", "'bps' is given twice"),
        ] {
            assert_eq!(text.parse::<RateLimit>().unwrap_err().to_string(), message);
        }
    }
}
