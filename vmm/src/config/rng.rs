//! The source of entropy, and its command-line form `on|off`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::list::{ListError, OptionList};

/// A source of entropy for the guest, fed by the host's kernel. It is there unless switched off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RngConfig {
    /// The guest gets none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub off: bool,
}

/// Why a source of entropy is not one.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RngError {
    /// The list itself is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// Neither there nor not.
    #[error("the random number generator cannot be both on and off; choose one")]
    OnAndOff,
}

impl FromStr for RngConfig {
    type Err = RngError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut list = OptionList::of_keys(text)?;
        let (on, off) = (list.switch("on")?, list.switch("off")?);
        list.finish()?;
        if on && off {
            return Err(RngError::OnAndOff);
        }
        Ok(Self { off })
    }
}

impl fmt::Display for RngConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.off { "off" } else { "on" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_form_round_trips() {
        for (text, off) in [("on", false), ("off", true)] {
            let rng: RngConfig = text.parse().unwrap();
            assert_eq!(rng, RngConfig { off });
            assert_eq!(rng.to_string(), text);
        }
    }

    #[test]
    fn bad_ones_say_what_is_wrong() {
        for (text, message) in [
            ("no", "unknown key 'no'; known keys: on, off"),
            (
                "on,off",
                "the random number generator cannot be both on and off; choose one",
            ),
            ("off,off", "'off' is given twice"),
        ] {
            assert_eq!(text.parse::<RngConfig>().unwrap_err().to_string(), message);
        }
    }
}
