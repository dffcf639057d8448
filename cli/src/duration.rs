//! Durations as a user writes them: `500ms`, `60s`, `2m`, `1h`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

/// A time limit, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Limit(Duration);

/// Why a time limit could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LimitError {
    /// Not a number with a unit.
    #[error(
        "'{0}' is not a duration; write a whole number and a unit, such as 500ms, 60s, 2m or 1h"
    )]
    Syntax(String),
    /// Zero ends a VM before it starts.
    #[error("'{0}' leaves no time; leave --timeout out for no limit")]
    Zero(String),
    /// More than a clock counts.
    #[error("'{0}' is too long")]
    Overflow(String),
}

/// Milliseconds per unit, largest first. A bare number is seconds, as timeout(1) reads it.
const UNITS: [(&str, u64); 5] = [
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
    ("", 1_000),
];

impl Limit {
    /// The limit itself.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let scale = UNITS.iter().find(|(name, _)| *name == unit);
        let Some((_, scale)) = scale.filter(|_| !number.is_empty()) else {
            return Err(LimitError::Syntax(text.to_owned()));
        };
        let millis = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*scale))
            .ok_or_else(|| LimitError::Overflow(text.to_owned()))?;
        if millis == 0 {
            return Err(LimitError::Zero(text.to_owned()));
        }
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl TryFrom<String> for Limit {
    type Error = LimitError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Limit {
    /// In the largest unit that gives a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (unit, scale) = UNITS
            .into_iter()
            .find(|(_, scale)| millis.is_multiple_of(u128::from(*scale)))
            .unwrap_or(("ms", 1));
        write!(f, "{}{unit}", millis / u128::from(scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_shows_every_unit() {
        for (text, millis, shown) in [
            ("500ms", 500, "500ms"),
            ("60s", 60_000, "1m"),
            ("90s", 90_000, "90s"),
            ("2m", 120_000, "2m"),
            ("1h", 3_600_000, "1h"),
            ("5", 5_000, "5s"),
        ] {
            let limit: Limit = text.parse().unwrap();
            assert_eq!(limit.duration(), Duration::from_millis(millis));
            assert_eq!(limit.to_string(), shown);
        }
    }

    #[test]
    fn refuses_what_is_no_limit() {
        for text in ["", "s", "1.5s", "-1s", "1d", "1 s", "1hm"] {
            let error = text.parse::<Limit>().unwrap_err();
            assert_eq!(error, LimitError::Syntax(text.to_owned()));
        }
        for text in ["0", "0s", "0ms"] {
            let error = text.parse::<Limit>().unwrap_err();
            assert_eq!(error, LimitError::Zero(text.to_owned()));
        }
        for text in ["18446744073709551615h", "99999999999999999999s"] {
            let error = text.parse::<Limit>().unwrap_err();
            assert_eq!(error, LimitError::Overflow(text.to_owned()));
        }
    }
}
