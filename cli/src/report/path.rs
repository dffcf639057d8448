//! Where a report goes, and in which format: the end of its name says.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The file of a report.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "PathBuf", into = "PathBuf")]
pub struct ReportPath {
    path: PathBuf,
    format: Format,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One object.
    Json,
    /// Test cases in XML, as CI systems read them.
    JUnit,
}

/// A name that tells no format.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{}' ends neither in .json nor in .xml (JUnit), which tells the report's format", .0.display())]
pub struct UnknownFormat(PathBuf);

impl ReportPath {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// To be set to where it really is.
    pub fn path_mut(&mut self) -> &mut PathBuf {
        &mut self.path
    }

    /// Its format.
    pub fn format(&self) -> Format {
        self.format
    }
}

impl TryFrom<PathBuf> for ReportPath {
    type Error = UnknownFormat;

    fn try_from(path: PathBuf) -> Result<Self, Self::Error> {
        let format = match path.extension().and_then(|it| it.to_str()) {
            Some("json") => Format::Json,
            Some("xml") => Format::JUnit,
            _ => return Err(UnknownFormat(path)),
        };
        Ok(Self { path, format })
    }
}

impl FromStr for ReportPath {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        PathBuf::from(text).try_into()
    }
}

impl From<ReportPath> for PathBuf {
    fn from(report: ReportPath) -> Self {
        report.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_tells_the_format() {
        let format = |text: &str| text.parse::<ReportPath>().map(|it| it.format());
        assert_eq!(format("out.json"), Ok(Format::Json));
        assert_eq!(format("a.b/out.1.xml"), Ok(Format::JUnit));
        for text in ["", "out", "out.txt", "xml", "out.json/", ".xml"] {
            let refused = format(text);
            if text == "out.json/" {
                assert_eq!(refused, Ok(Format::Json), "a slash at the end is no name");
                continue;
            }
            assert_eq!(refused, Err(UnknownFormat(text.into())), "{text}");
        }
    }
}
