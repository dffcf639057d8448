//! A pattern that is looked for, and the line it was found in.

use std::time::Instant;

use super::pattern::{Extent, Pattern};

/// A pattern, and the first line that matched it.
#[derive(Debug)]
pub struct Sought {
    /// What is looked for.
    pub pattern: Pattern,
    /// Where it was found.
    pub found: Option<Found>,
}

/// A line of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// When it came.
    pub at: Instant,
    /// What it says, or as much as had come of it.
    pub line: String,
}

impl Sought {
    /// None of them found yet.
    pub fn all(patterns: Vec<Pattern>) -> Vec<Self> {
        let sought = patterns.into_iter().map(|pattern| Self {
            pattern,
            found: None,
        });
        sought.collect()
    }

    /// Looks at a line; whether it is the first that matches.
    pub fn look(&mut self, at: Instant, line: &str, extent: Extent) -> bool {
        let found = self.found.is_none() && self.pattern.matches(line, extent);
        if found {
            let line = line.to_owned();
            self.found = Some(Found { at, line });
        }
        found
    }
}
