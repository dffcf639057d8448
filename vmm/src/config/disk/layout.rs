//! How several files make one disk, and its command-line form `linear|stripe:SIZE`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{MemorySize, MemorySizeError};

/// How several files make one disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Layout {
    /// One after the other.
    #[default]
    Linear,
    /// So many bytes of each in turn.
    Stripe(MemorySize),
}

/// Why a layout is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// No such layout.
    #[error("layout '{0}' is neither linear nor stripe:SIZE; write it as stripe:64K")]
    Unknown(String),
    /// The size is no size.
    #[error("layout=stripe: {0}")]
    Size(#[from] MemorySizeError),
    /// A size that stripes cannot have.
    #[error("stripes of {0} cannot be; their size is a power of two from 4K to 1G")]
    Stripe(MemorySize),
}

impl FromStr for Layout {
    type Err = LayoutError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "linear" => Ok(Self::Linear),
            Some(("stripe", size)) => {
                let size: MemorySize = size.parse()?;
                let bytes = size.as_bytes();
                if bytes.is_power_of_two() && (4 << 10..=1 << 30).contains(&bytes) {
                    Ok(Self::Stripe(size))
                } else {
                    Err(LayoutError::Stripe(size))
                }
            }
            _ => Err(LayoutError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear => f.write_str("linear"),
            Self::Stripe(size) => write!(f, "stripe:{size}"),
        }
    }
}

impl TryFrom<String> for Layout {
    type Error = LayoutError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Layout> for String {
    fn from(layout: Layout) -> Self {
        layout.to_string()
    }
}
