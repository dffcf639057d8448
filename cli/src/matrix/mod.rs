//! `mvm test FILE`: many boots as tests, several at a time, with one report.
//!
//! ```text
//! FILE ─► file.rs: cases ─► case.rs: checked, complete ─┬► child.rs: mvm --config …  ─┐
//!                                                       ├► child.rs                   ├─► report
//!                                                       └► child.rs                  ─┘
//! ```
//! Each case is a process of its own: none can take another with it, memory is given back, and what is
//! measured of it is its own. What a case that did not pass has left can be looked at, and run again.

mod case;
mod child;
mod file;
mod progress;
mod report;

use std::fs;
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use thiserror::Error;
use vmm::flag::Flag;
use vmm::probe::{Probe, ProbeError};

use crate::record::Start;
use crate::report::{Ran, ReportError, ReportFiles, ReportPath};
use crate::signals::{Number, Request, Signals};
use crate::status;
use crate::terminal;
use case::{Case, CaseError};
use child::Ended;
use file::FileError;
use progress::Progress;

/// `mvm test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The test file, TOML
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Run only cases whose name contains one of these
    #[arg(value_name = "WORD")]
    pub words: Vec<String>,
    /// How many cases run at once [default: as many as there are CPUs]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<NonZero<usize>>,
    /// Where cases that do not pass leave their files: console.log, report.json, settings.json
    #[arg(long, value_name = "DIR", default_value = "mvm-test")]
    pub out: PathBuf,
    /// Write down how all cases went: PATH.json, or PATH.xml for JUnit; repeatable
    #[arg(long = "report", value_name = "PATH.json|PATH.xml")]
    pub reports: Vec<ReportPath>,
    /// Print the cases' names and run none
    #[arg(long)]
    pub list: bool,
}

/// Why cases could not be run.
#[derive(Debug, Error)]
pub enum TestError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// One of its cases.
    #[error(transparent)]
    Case(#[from] CaseError),
    /// No name contains the words.
    #[error("no case of {} has one of these in its name: {words}; see 'mvm test FILE --list'", file.display())]
    NoCase {
        /// The file.
        file: PathBuf,
        /// The words.
        words: String,
    },
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The directory of what cases leave.
    #[error("the directory {} cannot be made: {source}; choose another with --out", path.display())]
    Out {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// KVM.
    #[error("{0}: {source}; 'mvm doctor' tells what is missing", source = source_of(.0))]
    Kvm(ProbeError),
    /// Signals could not be watched, or threads not be started.
    #[error("signals and the cases' ends cannot be waited for: {0}")]
    Wait(#[source] io::Error),
}

fn source_of(error: &ProbeError) -> String {
    std::error::Error::source(error).map_or_else(String::new, ToString::to_string)
}

/// Runs the cases and gives the exit status.
pub fn run(args: &TestArgs, start: Start) -> Result<u8, TestError> {
    let mut written = file::read(&args.file)?;
    if !args.words.is_empty() {
        written.retain(|case| args.words.iter().any(|word| case.name.contains(word)));
        if written.is_empty() {
            return Err(TestError::NoCase {
                file: args.file.clone(),
                words: args.words.join(", "),
            });
        }
    }
    if args.list {
        for case in &written {
            // A reader that has seen enough is no error.
            let _ = io::Write::write_all(&mut io::stdout(), format!("{}\n", case.name).as_bytes());
        }
        return Ok(0);
    }
    let jobs = args.jobs.map_or_else(
        || thread::available_parallelism().map_or(1, NonZero::get),
        NonZero::get,
    );
    // Asked once for all: without KVM no case needs to be tried.
    Probe::open().map_err(TestError::Kvm)?;
    let cases = case::prepare(written, &args.out, jobs)?;
    fs::create_dir_all(&args.out).map_err(|source| TestError::Out {
        path: args.out.clone(),
        source,
    })?;
    let reports = ReportFiles::open(&args.reports)?;
    let (ends, interrupted) = run_all(&cases, jobs).map_err(TestError::Wait)?;
    let name = args.file.file_stem().unwrap_or_default();
    let results = report::Results {
        name: name.to_string_lossy().into_owned(),
        start,
        cases: cases.iter().zip(&ends).collect(),
    };
    reports.write(|format| results.compose(format))?;
    // Empty where all have passed.
    let _ = fs::remove_dir(&args.out);
    let passed = ends.iter().all(|ended| ended.result == Ran::Passed);
    Ok(match interrupted {
        Some(signal) => signal.status(),
        None if passed => 0,
        None => status::TEST_FAILED,
    })
}

/// Runs all cases, and until a signal comes; how each went, and the signal.
fn run_all(cases: &[Case], jobs: usize) -> io::Result<(Vec<Ended>, Option<Number>)> {
    let mut signals = Signals::watch(false)?;
    let (stop, done) = (Flag::new()?, Flag::new()?);
    let progress = Progress::new(cases.iter().map(|case| case.name.as_str()));
    let next = AtomicUsize::new(0);
    let ends: Mutex<Vec<Option<Ended>>> = Mutex::new(cases.iter().map(|_| None).collect());
    let work = || {
        while let Some((number, case)) = take(cases, &next) {
            progress.begin(&case.name);
            let ended = child::run(case, stop.as_fd());
            progress.end(&case.name, &ended);
            if let Ok(mut ends) = ends.lock() {
                ends[number] = Some(ended);
            }
        }
        done.raise();
    };
    let workers = jobs.min(cases.len());
    let interrupted = thread::scope(|scope| {
        let mut running = 0;
        for number in 0..workers {
            let worker = thread::Builder::new().name(format!("case{number}"));
            if let Err(error) = worker.spawn_scoped(scope, work) {
                stop.raise();
                next.store(cases.len(), Ordering::Relaxed);
                return Err(error);
            }
            running += 1;
        }
        supervise(&mut signals, &done, running, |signal| {
            next.store(cases.len(), Ordering::Relaxed);
            stop.raise();
            terminal::say(&format!("{}: ending the cases that run", signal.name()));
        })
    })?;
    let ends: Vec<_> = ends
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .into_iter()
        .map(|ended| ended.unwrap_or_else(|| Ended::unfit(Ran::Skipped, "not run".to_owned())))
        .collect();
    progress.finish(&report::summary(&ends));
    Ok((ends, interrupted))
}

fn take<'a>(cases: &'a [Case], next: &AtomicUsize) -> Option<(usize, &'a Case)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    Some((number, cases.get(number)?))
}

/// Waits for all workers, and for the first signal, which is passed on; the second one gives up.
fn supervise(
    signals: &mut Signals,
    done: &Flag,
    mut running: u64,
    on_signal: impl Fn(Number),
) -> io::Result<Option<Number>> {
    let mut first = None;
    while running > 0 {
        let mut fds = [
            PollFd::new(done, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        running = running.saturating_sub(done.lower());
        for request in signals.pending().collect::<Vec<_>>() {
            let (Request::PowerOff(signal) | Request::End(signal)) = request else {
                continue;
            };
            if first.is_some() {
                // The cases are told by the system when this process is gone.
                process::exit(i32::from(signal.status()));
            }
            first = Some(signal);
            on_signal(signal);
        }
    }
    Ok(first)
}
