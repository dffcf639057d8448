//! Where a chart goes: a file whose name says that it is a picture.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The file of a chart.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "PathBuf", into = "PathBuf")]
pub struct ChartPath(PathBuf);

/// A name that does not end as a picture's.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{}' does not end in .svg, which is what a chart is", .0.display())]
pub struct NoPicture(PathBuf);

impl ChartPath {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// To be set to where it really is.
    pub fn path_mut(&mut self) -> &mut PathBuf {
        &mut self.0
    }
}

impl TryFrom<PathBuf> for ChartPath {
    type Error = NoPicture;

    fn try_from(path: PathBuf) -> Result<Self, Self::Error> {
        match path.extension() {
            Some(end) if end == "svg" => Ok(Self(path)),
            _ => Err(NoPicture(path)),
        }
    }
}

impl FromStr for ChartPath {
    type Err = NoPicture;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        PathBuf::from(text).try_into()
    }
}

impl From<ChartPath> for PathBuf {
    fn from(chart: ChartPath) -> Self {
        chart.0
    }
}
