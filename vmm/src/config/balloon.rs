//! A memory balloon, and its command-line form
//! `size=SIZE,deflate-on-oom=on|off,free-page-reporting=on|off,stats-interval=TIME`, `on` or `off`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::list::{ListError, OptionList};
use super::size::{MemorySize, MemorySizeError};
use super::span::{Span, SpanError};

/// A memory balloon: how much the guest gives up for the host. It is there unless switched off, and
/// takes nothing but memory that the guest does not use unless told to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BalloonConfig {
    /// The guest gets none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub off: bool,
    /// How much memory it takes from the guest at first.
    pub size: MemorySize,
    /// Whether the guest takes it back rather than run out of memory.
    pub deflate_on_oom: bool,
    /// Whether the guest gives the host what it has no use for, unasked.
    pub free_page_reporting: bool,
    /// How often the guest is asked for statistics of its memory; zero is only on request.
    pub stats_interval: Span,
}

/// Why a balloon is not one.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BalloonError {
    /// The list itself is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// Its size.
    #[error(transparent)]
    Size(#[from] MemorySizeError),
    /// Its interval.
    #[error(transparent)]
    Interval(#[from] SpanError),
    /// Neither there nor not.
    #[error("the balloon is off, so it has no options; leave out 'off' or the rest")]
    OffWithOptions,
    /// The guest would have nothing left.
    #[error("a balloon of {size} takes all of the guest's {memory} of memory; make it smaller")]
    TooLarge {
        /// The balloon's size.
        size: MemorySize,
        /// The guest's memory.
        memory: MemorySize,
    },
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self {
            off: false,
            size: MemorySize::bytes(0),
            deflate_on_oom: true,
            free_page_reporting: true,
            stats_interval: Span::default(),
        }
    }
}

impl BalloonConfig {
    /// Checks what can be known without a guest: that one with so much memory keeps some of it.
    ///
    /// # Errors
    /// It would not.
    pub fn validate(&self, memory: MemorySize) -> Result<(), BalloonError> {
        let size = self.size;
        if size >= memory {
            return Err(BalloonError::TooLarge { size, memory });
        }
        Ok(())
    }
}

impl FromStr for BalloonConfig {
    type Err = BalloonError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let none = Self::default();
        let mut list = OptionList::of_keys(text)?;
        let on = list.switch("on")?;
        let balloon = Self {
            off: list.switch("off")?,
            size: match list.value("size")? {
                Some(size) => size.parse()?,
                None => none.size,
            },
            deflate_on_oom: list.switch_or("deflate-on-oom", none.deflate_on_oom)?,
            free_page_reporting: list.switch_or("free-page-reporting", none.free_page_reporting)?,
            stats_interval: match list.value("stats-interval")? {
                Some(interval) => interval.parse()?,
                None => none.stats_interval,
            },
        };
        list.finish()?;
        if balloon.off && (on || balloon != (Self { off: true, ..none })) {
            return Err(BalloonError::OffWithOptions);
        }
        Ok(balloon)
    }
}

impl fmt::Display for BalloonConfig {
    /// The command-line form; it reads back as the same balloon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.off {
            return f.write_str("off");
        }
        let switch = |on| if on { "on" } else { "off" };
        write!(
            f,
            "size={},deflate-on-oom={},free-page-reporting={},stats-interval={}",
            self.size,
            switch(self.deflate_on_oom),
            switch(self.free_page_reporting),
            self.stats_interval
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_form_round_trips() {
        let all = BalloonConfig {
            off: false,
            size: MemorySize::mib(512),
            deflate_on_oom: false,
            free_page_reporting: false,
            stats_interval: Span::millis(1000),
        };
        for (text, balloon) in [
            (
                "size=512M,deflate-on-oom=off,free-page-reporting=off,stats-interval=1s",
                all.clone(),
            ),
            ("deflate-on-oom", BalloonConfig::default()),
            (
                "off",
                BalloonConfig {
                    off: true,
                    ..BalloonConfig::default()
                },
            ),
        ] {
            assert_eq!(text.parse::<BalloonConfig>().unwrap(), balloon, "{text}");
            let shown = balloon.to_string();
            assert_eq!(shown.parse::<BalloonConfig>().unwrap(), balloon, "{shown}");
        }
    }

    #[test]
    fn bad_ones_say_what_is_wrong() {
        for (text, message) in [
            (
                "sise=1G",
                "unknown key 'sise', did you mean 'size'?; known keys: on, off, size, deflate-on-oom, free-page-reporting, stats-interval",
            ),
            (
                "size=1X",
                "'1X' is not a size; write a whole number and a unit, such as 256M or 4G",
            ),
            (
                "stats-interval=1d",
                "'1d' is not a duration; write a whole number and a unit, such as 500ms, 60s, 2m or 1h",
            ),
            (
                "off,size=1M",
                "the balloon is off, so it has no options; leave out 'off' or the rest",
            ),
        ] {
            let error = text.parse::<BalloonConfig>().unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn the_guest_keeps_some_memory() {
        let balloon: BalloonConfig = "size=256M".parse().unwrap();
        balloon.validate(MemorySize::mib(257)).unwrap();
        let error = balloon.validate(MemorySize::mib(256)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a balloon of 256M takes all of the guest's 256M of memory; make it smaller"
        );
    }
}
