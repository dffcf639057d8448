//! How all cases went: in a line, as JUnit, as JSON.

use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::case::Case;
use super::child::Ended;
use crate::logging::Stamp;
use crate::record::Start;
use crate::report::junit::{self, End, Suite};
use crate::report::{Format, Ran};

/// All cases of a file.
#[derive(Debug)]
pub struct Results<'a> {
    /// The file's name.
    pub name: String,
    /// When they began.
    pub start: Start,
    /// What was run, and how it went.
    pub cases: Vec<(&'a Case, &'a Ended)>,
}

impl Results<'_> {
    /// The text of a report.
    pub fn compose(&self, format: Format) -> io::Result<String> {
        match format {
            Format::Json => self.json(),
            Format::JUnit => self.junit(),
        }
    }

    fn junit(&self) -> io::Result<String> {
        let case = |(case, ended): &(&Case, &Ended)| junit::Case {
            name: case.name.clone(),
            time: ended.time,
            end: match ended.result {
                Ran::Passed => End::Passed,
                Ran::Failed => End::Failed(ended.message.clone(), ended.text.clone()),
                Ran::Error => End::Error(ended.message.clone(), ended.text.clone()),
                Ran::Skipped => End::Skipped(ended.message.clone()),
            },
            output: String::new(),
        };
        junit::compose(&Suite {
            name: self.name.clone(),
            started: Stamp(self.start.date).to_string(),
            time: self.start.at.elapsed(),
            properties: vec![("mvm", env!("CARGO_PKG_VERSION").to_owned())],
            cases: self.cases.iter().map(case).collect(),
        })
    }

    fn json(&self) -> io::Result<String> {
        let case = |(case, ended): &(&Case, &Ended)| CaseReport {
            name: case.name.clone(),
            result: ended.result,
            status: ended.status,
            ended: ended.how.clone(),
            message: (!ended.message.is_empty()).then(|| ended.message.clone()),
            seconds: (ended.time.as_secs_f64() * 1e3).round() / 1e3,
            directory: (ended.result != Ran::Passed).then(|| case.directory.clone()),
        };
        let mut text = serde_json::to_string_pretty(&Report {
            mvm: env!("CARGO_PKG_VERSION"),
            started: Stamp(self.start.date).to_string(),
            name: &self.name,
            cases: self.cases.iter().map(case).collect(),
        })?;
        text.push('\n');
        Ok(text)
    }
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The version of mvm.
    mvm: &'static str,
    started: String,
    /// The file's.
    name: &'a str,
    cases: Vec<CaseReport>,
}

#[derive(Debug, Serialize)]
struct CaseReport {
    name: String,
    result: Ran,
    /// The exit status.
    status: Option<u8>,
    /// How the VM ended, in a word.
    ended: String,
    message: Option<String>,
    seconds: f64,
    /// Where its files are, where it did not pass.
    directory: Option<PathBuf>,
}

/// The last line: `3 passed, 1 failed, 0 errors, 0 skipped`.
pub fn summary(ends: &[Ended]) -> String {
    let count = |result| ends.iter().filter(|ended| ended.result == result).count();
    format!(
        "{} passed, {} failed, {} errors, {} skipped",
        count(Ran::Passed),
        count(Ran::Failed),
        count(Ran::Error),
        count(Ran::Skipped)
    )
}
