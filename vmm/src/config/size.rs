//! Memory sizes with a unit, as the command line and a configuration file write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An amount of memory in bytes, written with a unit: `256M`, `4G`, `65536K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemorySize(u64);

/// Why a memory size could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemorySizeError {
    /// Not a number with an optional unit.
    #[error("'{0}' is not a size; write a whole number and a unit, such as 256M or 4G")]
    Syntax(String),
    /// More than 64 bits.
    #[error("'{0}' is too large")]
    Overflow(String),
}

impl MemorySize {
    /// A size in bytes.
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size in MiB.
    #[must_use]
    pub const fn mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || MemorySizeError::Syntax(text.to_owned());
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.to_ascii_uppercase().as_str() {
            // A bare number is MiB, as QEMU's -m reads it.
            "" | "M" | "MB" | "MIB" => 20,
            "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return Err(syntax()),
        };
        if number.is_empty() {
            return Err(syntax());
        }
        let overflow = || MemorySizeError::Overflow(text.to_owned());
        let number: u64 = number.parse().map_err(|_| overflow())?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(overflow)
    }
}

impl TryFrom<String> for MemorySize {
    type Error = MemorySizeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MemorySize> for String {
    fn from(size: MemorySize) -> Self {
        size.to_string()
    }
}

impl fmt::Display for MemorySize {
    /// The largest unit that gives a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = [(40, "T"), (30, "G"), (20, "M"), (10, "K")]
            .into_iter()
            .find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift)
            .unwrap_or((0, "B"));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_two_and_a_bare_number_is_mebibytes() {
        for (text, bytes) in [
            ("256", 256 << 20),
            ("256M", 256 << 20),
            ("256mib", 256 << 20),
            ("64K", 64 << 10),
            ("4G", 4 << 30),
            ("1T", 1 << 40),
            ("4096B", 4096),
            ("0", 0),
        ] {
            assert_eq!(text.parse::<MemorySize>().unwrap().as_bytes(), bytes);
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "M", "1.5G", "-1", "4 G", "4X", "0x10", "G4"] {
            assert_eq!(
                text.parse::<MemorySize>(),
                Err(MemorySizeError::Syntax(text.to_owned()))
            );
        }
        for text in ["18446744073709551616B", "16777216T", "99999999999999999999"] {
            assert_eq!(
                text.parse::<MemorySize>(),
                Err(MemorySizeError::Overflow(text.to_owned()))
            );
        }
    }

    #[test]
    fn a_size_is_shown_as_it_reads_back() {
        for text in ["0B", "1K", "3M", "1537K", "2G", "1T", "1234B"] {
            assert_eq!(text.parse::<MemorySize>().unwrap().to_string(), text);
        }
        assert_eq!(MemorySize::mib(4096).to_string(), "4G");
    }
}
