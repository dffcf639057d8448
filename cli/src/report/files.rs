//! The files that reports and charts are written to: opened before the VM is made, so that a path that
//! cannot be written is refused at once, and written when it is over.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::path::{Format, ReportPath};

/// Why there is no report or chart.
#[derive(Debug, Error)]
pub enum ReportError {
    /// Its file cannot be made.
    #[error("the {what} {} cannot be written: {source}", path.display())]
    Open {
        /// What it is to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written to its file.
    #[error("the {what} {} cannot be written and is not complete: {source}", path.display())]
    Write {
        /// What it is to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A file that is empty until it is written.
#[derive(Debug)]
pub struct Output {
    what: &'static str,
    path: PathBuf,
    file: File,
}

impl Output {
    /// Makes the file, or empties the one that is there.
    pub fn open(what: &'static str, path: &Path) -> Result<Self, ReportError> {
        let path = path.to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Self { what, path, file }),
            Err(source) => Err(ReportError::Open { what, path, source }),
        }
    }

    /// Writes what has been composed.
    pub fn write(mut self, text: io::Result<String>) -> Result<(), ReportError> {
        let written = text.and_then(|text| self.file.write_all(text.as_bytes()));
        written.map_err(|source| ReportError::Write {
            what: self.what,
            path: self.path,
            source,
        })
    }
}

/// Files for the same report in any number of formats.
#[derive(Debug)]
pub struct ReportFiles(Vec<(Format, Output)>);

impl ReportFiles {
    /// Makes the files.
    pub fn open(paths: &[ReportPath]) -> Result<Self, ReportError> {
        let open = |path: &ReportPath| Ok((path.format(), Output::open("report", path.path())?));
        paths.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Whether nobody wants one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes to each what is composed in its format.
    pub fn write(self, compose: impl Fn(Format) -> io::Result<String>) -> Result<(), ReportError> {
        let mut files = self.0.into_iter();
        files.try_for_each(|(format, file)| file.write(compose(format)))
    }
}
