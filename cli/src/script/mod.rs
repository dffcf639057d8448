//! `--script`: what to type into the console, and what to wait for in between.
//!
//! [`parse`] reads the text, [`Player`] plays it.

mod parse;
mod player;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::duration::Limit;
use crate::watch::Pattern;
pub use parse::SyntaxError;
pub use player::{Played, Player};

/// A script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    path: PathBuf,
    steps: Vec<Step>,
}

/// A step, and where it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The line, from 1.
    pub line: usize,
    /// What to do.
    pub action: Action,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Waits for a match, but not longer than this.
    Expect(Pattern, Limit),
    /// Types.
    Send(String),
    /// Waits for the guest's own end, but not longer than this.
    End(Limit),
}

/// Why there is no script.
#[derive(Debug, Error)]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("the script {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not say what to do.
    #[error("the script {}, line {line}: {cause}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        cause: SyntaxError,
    },
    /// It has no step.
    #[error("the script {} has no step; write expect 'REGEX' or send \"TEXT\\n\"", .0.display())]
    Empty(PathBuf),
}

impl Script {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ScriptError> {
        let text = fs::read_to_string(path).map_err(|source| ScriptError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ScriptError> {
        let path = path.to_owned();
        match parse::steps(text) {
            Ok(steps) if steps.is_empty() => Err(ScriptError::Empty(path)),
            Ok(steps) => Ok(Self { path, steps }),
            Err((line, cause)) => Err(ScriptError::Syntax { path, line, cause }),
        }
    }
}

impl fmt::Display for Action {
    /// As it is written, without its limit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expect(pattern, _) => write!(f, "expect '{pattern}'"),
            Self::Send(text) => write!(f, "send {text:?}"),
            Self::End(_) => f.write_str("end"),
        }
    }
}

#[cfg(test)]
mod tests;
