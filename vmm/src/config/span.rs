//! Durations as a user writes them: `500ms`, `60s`, `2m`, `1h`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A span of time, written with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

/// Why a span of time could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpanError {
    /// Not a number with a unit.
    #[error(
        "'{0}' is not a duration; write a whole number and a unit, such as 500ms, 60s, 2m or 1h"
    )]
    Syntax(String),
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

impl Span {
    /// So many milliseconds.
    #[must_use]
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// The span itself.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// Whether it is no time at all.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.0.is_zero()
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let scale = UNITS.iter().find(|(name, _)| *name == unit);
        let Some((_, scale)) = scale.filter(|_| !number.is_empty()) else {
            return Err(SpanError::Syntax(text.to_owned()));
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*scale))
            .map(Self::millis)
            .ok_or_else(|| SpanError::Overflow(text.to_owned()))
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    /// In the largest unit that gives a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (unit, scale) = UNITS
            .into_iter()
            .find(|(_, scale)| millis != 0 && millis.is_multiple_of(u128::from(*scale)))
            .unwrap_or(("s", 1));
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
            ("0ms", 0, "0s"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span, Span::millis(millis));
            assert_eq!(span.to_string(), shown);
        }
    }

    #[test]
    fn refuses_what_is_no_span() {
        for text in ["", "s", "1.5s", "-1s", "1d", "1 s", "1hm"] {
            let error = text.parse::<Span>().unwrap_err();
            assert_eq!(error, SpanError::Syntax(text.to_owned()));
        }
        for text in ["18446744073709551615h", "99999999999999999999s"] {
            let error = text.parse::<Span>().unwrap_err();
            assert_eq!(error, SpanError::Overflow(text.to_owned()));
        }
    }
}
