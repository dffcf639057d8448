//! The source of entropy, and its command-line form `bps=SIZE,iops=N,burst=SIZE`, `on` or `off`.

use std::fmt;
use std::str::FromStr;

use devices::rate::Limits;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::list::{ListError, OptionList};
use super::rate::{RateError, RateLimit};

/// A source of entropy for the guest, fed by the host's kernel. It is there unless switched off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RngConfig {
    /// The guest gets none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub off: bool,
    /// How much it gives at most.
    #[serde(flatten)]
    pub rate: RateLimit,
}

/// Why a source of entropy is not one.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RngError {
    /// The list itself is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// A limit of its rate.
    #[error("rng: {0}")]
    Rate(#[source] RateError),
    /// Neither there nor not.
    #[error("the source of entropy is off, so it has no options; leave out 'off' or the rest")]
    OffWithOptions,
}

impl RngConfig {
    /// The limits of its rate, as devices have them.
    ///
    /// # Errors
    /// They make no sense.
    pub fn limits(&self) -> Result<Limits, RngError> {
        if self.off && !self.rate.is_none() {
            return Err(RngError::OffWithOptions);
        }
        self.rate.limits().map_err(RngError::Rate)
    }
}

impl FromStr for RngConfig {
    type Err = RngError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut list = OptionList::of_keys(text)?;
        let on = list.switch("on")?;
        let rng = Self {
            off: list.switch("off")?,
            rate: RateLimit::take(&mut list).map_err(|error| match error {
                RateError::List(error) => RngError::List(error),
                error => RngError::Rate(error),
            })?,
        };
        list.finish()?;
        if on && rng.off {
            return Err(RngError::OffWithOptions);
        }
        rng.limits()?;
        Ok(rng)
    }
}

impl fmt::Display for RngConfig {
    /// The command-line form; it reads back as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.off, self.rate.is_none()) {
            (true, _) => f.write_str("off"),
            (false, true) => f.write_str("on"),
            (false, false) => self.rate.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_form_round_trips() {
        for (text, off, rate) in [
            ("on", false, RateLimit::default()),
            ("off", true, RateLimit::default()),
            (
                "bps=64K,burst=1M",
                false,
                "bps=64K,burst=1M".parse().unwrap(),
            ),
        ] {
            let rng: RngConfig = text.parse().unwrap();
            assert_eq!(rng, RngConfig { off, rate });
            assert_eq!(rng.to_string(), text);
        }
    }

    #[test]
    fn bad_ones_say_what_is_wrong() {
        let off = "the source of entropy is off, so it has no options; leave out 'off' or the rest";
        for (text, message) in [
            (
                "no",
                "unknown key 'no'; known keys: on, off, bps, iops, burst",
            ),
            ("on,off", off),
            ("off,bps=1M", off),
            ("off,off", "'off' is given twice"),
            (
                "bps=0",
                "rng: bps=0 is no rate; it can be 1K to 1T a second, or be left out for no limit",
            ),
            (
                "burst=1M",
                "rng: burst=1M needs a rate that it goes beyond; add bps or iops",
            ),
        ] {
            assert_eq!(text.parse::<RngConfig>().unwrap_err().to_string(), message);
        }
    }
}
