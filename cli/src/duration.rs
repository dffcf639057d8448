//! A time limit as a user writes it: a duration that is not zero.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm::config::{Span, SpanError};

/// A time limit, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String")]
pub struct Limit(Span);

/// Why a time limit could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LimitError {
    /// Not a duration.
    #[error(transparent)]
    Span(#[from] SpanError),
    /// Zero ends a VM before it starts.
    #[error("'{0}' leaves no time; leave the limit out instead")]
    Zero(String),
}

impl Limit {
    /// So many seconds, which are not zero.
    pub const fn seconds(seconds: u16) -> Self {
        assert!(seconds > 0);
        Self(Span::millis(seconds as u64 * 1000))
    }

    /// The limit itself.
    pub const fn duration(self) -> Duration {
        self.0.duration()
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let span: Span = text.parse()?;
        if span.is_zero() {
            return Err(LimitError::Zero(text.to_owned()));
        }
        Ok(Self(span))
    }
}

impl TryFrom<String> for Limit {
    type Error = LimitError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_duration_that_is_not_zero() {
        let limit: Limit = "90s".parse().unwrap();
        assert_eq!(limit.duration(), Duration::from_secs(90));
        for text in ["0", "0s", "0ms"] {
            let error = text.parse::<Limit>().unwrap_err();
            assert_eq!(error, LimitError::Zero(text.to_owned()));
        }
        let error = "1d".parse::<Limit>().unwrap_err();
        assert_eq!(error, LimitError::Span(SpanError::Syntax("1d".to_owned())));
    }
}
