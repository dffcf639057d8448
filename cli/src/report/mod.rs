//! `--report`: what happened in a run, for programs and for people who come later.
//!
//! [`Report`] is the whole of it; [`json`] writes it as it is, [`junit`] as test cases. The files are
//! emptied at the start, so that an old report is not mistaken for that of a run that was killed.

mod files;
pub mod junit;
mod path;

use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm::ExitCounts;
use vmm::config::VmConfig;

use crate::logging::Stamp;
use crate::policy::Outcome;
use crate::record::{Record, Stage};
use crate::run::RunError;
use crate::status;
use crate::watch::{Sought, Trouble};
pub use files::{Output, ReportError, ReportFiles};
pub use path::{Format, ReportPath};

/// The report of a run in this format.
pub fn compose(
    record: &Record,
    result: Result<&Outcome, &RunError>,
    format: Format,
) -> io::Result<String> {
    let report = Report::new(record, result);
    match format {
        Format::Json => json(&report),
        Format::JUnit => junit::of_run(&report),
    }
}

/// One JSON object: the fields of [`Report`], of which none will change its meaning.
fn json(report: &Report) -> io::Result<String> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    Ok(text)
}

/// What happened in a run.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The version of mvm.
    mvm: &'static str,
    /// When it was started.
    started: String,
    result: Ran,
    /// The exit status.
    status: u8,
    /// How the VM ended, in a word; `mvm-failed` where mvm did.
    ended: serde_json::Value,
    /// Why, where that is not plain.
    message: Option<String>,
    /// Times are since the start.
    stages: Vec<StageReport>,
    expect: Vec<SoughtReport<'a>>,
    fail_on: Vec<SoughtReport<'a>>,
    script: Vec<StepReport>,
    kernel_errors: Vec<KernelErrorReport<'a>>,
    /// The console's last lines, where the run did not pass.
    console_tail: Vec<&'a str>,
    /// How often the guest was left for mvm.
    exits: ExitCounts,
    usage: UsageReport,
    vm: &'a VmConfig,
    #[serde(skip)]
    total: Duration,
}

/// Whether it went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ran {
    /// It did.
    Passed,
    /// It did not.
    Failed,
    /// It could not be run.
    Error,
    /// It was not run, or not to its end: one of several that were interrupted.
    Skipped,
}

#[derive(Debug, Serialize)]
struct StageReport {
    name: &'static str,
    ms: f64,
    /// How that is known.
    by: &'static str,
}

#[derive(Debug, Serialize)]
struct SoughtReport<'a> {
    pattern: String,
    /// When the first line matched, and which.
    ms: Option<f64>,
    line: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct StepReport {
    /// Where it is written.
    line: usize,
    step: String,
    /// When it was done.
    ms: Option<f64>,
}

#[derive(Debug, Serialize)]
struct KernelErrorReport<'a> {
    kind: Trouble,
    ms: f64,
    text: &'a [String],
}

/// Of the process as a whole, the guest included.
#[derive(Debug, Serialize)]
struct UsageReport {
    user_ms: f64,
    system_ms: f64,
    peak_memory_kib: u64,
}

impl<'a> Report<'a> {
    fn new(record: &'a Record, result: Result<&Outcome, &RunError>) -> Self {
        let start = record.stages.start;
        let since = |at: Instant| millis(at.saturating_duration_since(start.at));
        let sought = |all: &'a [Sought]| {
            let report = |it: &'a Sought| SoughtReport {
                pattern: it.pattern.to_string(),
                ms: it.found.as_ref().map(|found| since(found.at)),
                line: it.found.as_ref().map(|found| found.line.as_str()),
            };
            all.iter().map(report).collect()
        };
        let watch = &record.watch;
        let kernel_errors = watch.kernel_errors().iter().map(|it| KernelErrorReport {
            kind: it.kind,
            ms: since(it.at),
            text: &it.text,
        });
        let steps = watch.steps().map(|it| StepReport {
            line: it.step.line,
            step: it.step.action.to_string(),
            ms: it.done.map(since),
        });
        let (result, status, ended, message) = match result {
            Ok(outcome) => {
                let passed = match outcome.status {
                    0 => Ran::Passed,
                    _ => Ran::Failed,
                };
                let ended = serde_json::json!(outcome.ended);
                (passed, outcome.status, ended, outcome.message.clone())
            }
            Err(error) => (
                Ran::Error,
                status::MVM_FAILED,
                "mvm-failed".into(),
                Some(crate::chain(error)),
            ),
        };
        Self {
            mvm: env!("CARGO_PKG_VERSION"),
            started: Stamp(start.date).to_string(),
            result,
            status,
            ended,
            message,
            stages: record.stages.list().into_iter().map(Into::into).collect(),
            expect: sought(watch.expected()),
            fail_on: sought(watch.forbidden()),
            script: steps.collect(),
            kernel_errors: kernel_errors.collect(),
            console_tail: match result {
                Ran::Passed => Vec::new(),
                _ => watch.tail().collect(),
            },
            exits: record.exits,
            usage: UsageReport {
                user_ms: millis(record.usage.user),
                system_ms: millis(record.usage.system),
                peak_memory_kib: record.usage.peak_kib,
            },
            vm: &record.vm,
            total: record.stages.total(),
        }
    }
}

impl From<Stage> for StageReport {
    fn from(stage: Stage) -> Self {
        Self {
            name: stage.name,
            ms: millis(stage.at),
            by: stage.by,
        }
    }
}

/// In milliseconds, to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests;
