//! The text of a script: one step a line.
//!
//! ```text
//! # Logs in, runs a command, and shuts down.
//! limit 1m                      # for each step from here on; at first it is 30s
//! expect 'login: $' 3m          # this one may take longer
//! send "root\n"
//! expect '# $'
//! send "uname -r; poweroff\n"
//! expect '^6\.'
//! end                           # waits for the guest to power off
//! ```
//! `'…'` is taken as it stands, which suits regular expressions; `"…"` knows `\n`, `\r`, `\t`, `\e`, `\\`,
//! `\"` and `\xNN`, which suits what is typed.

use thiserror::Error;

use super::{Action, Step};
use crate::duration::{Limit, LimitError};
use crate::watch::{Pattern, PatternError};

/// How long a step may take where the script does not say.
const LIMIT: Limit = Limit::seconds(30);

/// What is wrong with a line.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SyntaxError {
    /// None of the words.
    #[error("'{0}' is no step; write expect 'REGEX', send \"TEXT\\n\", end, or limit DURATION")]
    Unknown(String),
    /// A step without what it is about.
    #[error("{0} needs a text in quotes; write {0} {1}")]
    NoText(&'static str, &'static str),
    /// Quotes that are not closed.
    #[error("the text has no closing {0}")]
    Open(char),
    /// A backslash before something else.
    #[error(r#"'\{0}' means nothing in "…"; there are \n, \r, \t, \e, \\, \" and \xNN"#)]
    Escape(String),
    /// A bad pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A bad duration.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// `limit` alone.
    #[error("limit needs a duration; write limit 30s")]
    NoLimit,
    /// Something behind a step.
    #[error("'{0}' has no place here; a step is alone on its line")]
    Rest(String),
    /// Something after `end`.
    #[error("end is the last step, for the guest has ended then")]
    AfterEnd,
}

/// The steps, or the line of the mistake and what it is.
pub fn steps(text: &str) -> Result<Vec<Step>, (usize, SyntaxError)> {
    let (mut steps, mut limit) = (Vec::new(), LIMIT);
    for (number, text) in (1..).zip(text.lines()) {
        let action = line(text, &mut limit).map_err(|cause| (number, cause))?;
        let Some(action) = action else { continue };
        if let Some(Step {
            action: Action::End(_),
            ..
        }) = steps.last()
        {
            return Err((number, SyntaxError::AfterEnd));
        }
        steps.push(Step {
            line: number,
            action,
        });
    }
    Ok(steps)
}

/// What a line does, if anything.
fn line(text: &str, limit: &mut Limit) -> Result<Option<Action>, SyntaxError> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let (word, rest) = text
        .split_once(|c: char| c.is_whitespace())
        .unwrap_or((text, ""));
    match word {
        "limit" => {
            *limit = given(rest)?.ok_or(SyntaxError::NoLimit)?;
            Ok(None)
        }
        "expect" => {
            let (pattern, rest) = quoted(rest, ("expect", "'REGEX'"))?;
            let pattern: Pattern = pattern.parse()?;
            let limit = given(rest)?.unwrap_or(*limit);
            Ok(Some(Action::Expect(pattern, limit)))
        }
        "send" => {
            let (typed, rest) = quoted(rest, ("send", r#""TEXT\n""#))?;
            match without_comment(rest) {
                "" => Ok(Some(Action::Send(typed))),
                rest => Err(SyntaxError::Rest(rest.to_owned())),
            }
        }
        "end" => Ok(Some(Action::End(given(rest)?.unwrap_or(*limit)))),
        word => Err(SyntaxError::Unknown(word.to_owned())),
    }
}

fn without_comment(text: &str) -> &str {
    text.split_once('#').map_or(text, |(text, _)| text).trim()
}

/// The limit that ends a line, if one does.
fn given(text: &str) -> Result<Option<Limit>, SyntaxError> {
    match without_comment(text) {
        "" => Ok(None),
        text => Ok(Some(text.parse()?)),
    }
}

/// The text in quotes that begins here, and what follows it.
fn quoted<'a>(
    text: &'a str,
    (step, usage): (&'static str, &'static str),
) -> Result<(String, &'a str), SyntaxError> {
    let text = text.trim_start();
    if let Some(text) = text.strip_prefix('\'') {
        let (quoted, rest) = text.split_once('\'').ok_or(SyntaxError::Open('\''))?;
        return Ok((quoted.to_owned(), rest));
    }
    let text = text
        .strip_prefix('"')
        .ok_or(SyntaxError::NoText(step, usage))?;
    let (mut quoted, mut rest) = (String::new(), text.chars());
    loop {
        match rest.next().ok_or(SyntaxError::Open('"'))? {
            '"' => return Ok((quoted, rest.as_str())),
            '\\' => quoted.push(escaped(&mut rest)?),
            c => quoted.push(c),
        }
    }
}

/// The character that is meant by what follows a backslash.
fn escaped(rest: &mut std::str::Chars<'_>) -> Result<char, SyntaxError> {
    match rest.next().ok_or(SyntaxError::Open('"'))? {
        'n' => Ok('\n'),
        'r' => Ok('\r'),
        't' => Ok('\t'),
        'e' => Ok('\x1b'),
        c @ ('\\' | '"') => Ok(c),
        'x' => {
            let digits: String = rest.take(2).collect();
            // Up to 0x7f: what is typed is UTF-8.
            let byte = u8::from_str_radix(&digits, 16).ok();
            let byte = byte.filter(|byte| digits.len() == 2 && byte.is_ascii());
            byte.map(char::from)
                .ok_or_else(|| SyntaxError::Escape(format!("x{digits}")))
        }
        c => Err(SyntaxError::Escape(c.to_string())),
    }
}
