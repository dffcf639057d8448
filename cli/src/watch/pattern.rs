//! Regular expressions that are held against lines of the console.

use std::fmt;
use std::str::FromStr;

use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A regular expression, as written and compiled.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    regex: Regex,
    /// Whether what follows a line's beginning can undo a match of it.
    looks_ahead: bool,
}

/// Why a text is no pattern.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PatternError {
    /// It cannot be compiled.
    #[error("'{text}' is not a regular expression: {cause}")]
    Syntax {
        /// The text.
        text: String,
        /// What is wrong with it.
        cause: String,
    },
    /// It matches the first line that comes, whatever it is.
    #[error("an empty pattern matches every line; write what the line must have")]
    Empty,
}

/// How much of its line a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Its beginning, and there may be more any moment.
    Growing,
    /// Its beginning, and the guest has paused: it waits for an answer, as after a prompt.
    Resting,
}

impl Pattern {
    /// Where the pattern is found in `text` at or after `from`: the end of the first match.
    ///
    /// While the line grows, a match that looks at what comes next is none yet.
    pub fn find(&self, text: &str, from: usize, extent: Extent) -> Option<usize> {
        if extent == Extent::Growing && self.looks_ahead {
            return None;
        }
        // Where output was lost, the text is not the one that the place is from.
        let from = text.floor_char_boundary(from);
        self.regex.find_at(text, from).map(|found| found.end())
    }

    /// Whether the line, or as much as there is of it, matches.
    pub fn matches(&self, text: &str, extent: Extent) -> bool {
        self.find(text, 0, extent).is_some()
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        let regex = Regex::new(text).map_err(|error| PatternError::Syntax {
            text: text.to_owned(),
            cause: error.to_string(),
        })?;
        // These are all that the syntax has. One that is escaped is taken for one as well: it then
        // matches a prompt a moment later than it could.
        let looks_ahead = ["$", r"\b", r"\B", r"\z", r"\<", r"\>"]
            .iter()
            .any(|assertion| text.contains(assertion));
        Ok(Self {
            text: text.to_owned(),
            regex,
            looks_ahead,
        })
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_growing_line_matches_only_what_no_further_text_undoes() {
        for (text, line, growing) in [
            ("login:", "debian login: ", true),
            ("^ok", "ok", true),
            ("# $", "~ # ", false),
            (r"err\b", "err", false),
            (r"cost: \$", "cost: $", false),
        ] {
            let pattern = pattern(text);
            assert_eq!(pattern.matches(line, Extent::Growing), growing, "{text}");
            assert!(pattern.matches(line, Extent::Resting), "{text}");
            assert!(pattern.matches(line, Extent::Whole), "{text}");
        }
        assert!(!pattern("^ok$").matches("okay", Extent::Whole));
    }

    #[test]
    fn a_search_goes_on_behind_an_earlier_match() {
        let dot = pattern("o");
        let first = dot.find("foo", 0, Extent::Whole).unwrap();
        assert_eq!((first, dot.find("foo", first, Extent::Whole)), (2, Some(3)));
        assert_eq!(pattern("^o").find("foo", 1, Extent::Whole), None);
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |text: &str| text.parse::<Pattern>().unwrap_err().to_string();
        assert_eq!(
            refused("a(b"),
            "'a(b' is not a regular expression: found open group without closing ')'"
        );
        for text in ["[z-a]", "*", r"\p{L}", "(?<=a)b", r"\", "a{99999}{99999}"] {
            let line = refused(text);
            assert!(!line.contains('\n'), "{line}");
        }
        assert!(refused("").starts_with("an empty pattern"));
    }
}
