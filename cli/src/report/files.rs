//! The files that reports are written to.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use thiserror::Error;

use super::path::{Format, ReportPath};

/// Why there is no report.
#[derive(Debug, Error)]
pub enum ReportError {
    /// Its file cannot be made.
    #[error("the report {} cannot be written: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written to its file.
    #[error("the report {} cannot be written and is not complete: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Files that are open, for the same report in any number of formats.
#[derive(Debug)]
pub struct ReportFiles(Vec<(ReportPath, File)>);

impl ReportFiles {
    /// Makes the files, or empties those that are there.
    pub fn open(paths: &[ReportPath]) -> Result<Self, ReportError> {
        let open = |path: &ReportPath| match File::create(path.path()) {
            Ok(file) => Ok((path.clone(), file)),
            Err(source) => Err(ReportError::Open {
                path: path.path().to_owned(),
                source,
            }),
        };
        paths.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Whether nobody wants one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes to each what is composed in its format.
    pub fn write(self, compose: impl Fn(Format) -> io::Result<String>) -> Result<(), ReportError> {
        for (path, mut file) in self.0 {
            compose(path.format())
                .and_then(|text| file.write_all(text.as_bytes()))
                .map_err(|source| ReportError::Write {
                    path: path.path().to_owned(),
                    source,
                })?;
        }
        Ok(())
    }
}
