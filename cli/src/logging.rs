//! mvm's own log: one line per event, to standard error or a file, never into the console.
//!
//! A guest can provoke log lines as fast as it can touch a register, so each source has a budget, and
//! whatever a line quotes cannot end it or move the cursor. Any thread logs; the sink serialises them.

mod budget;
mod stamp;

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};
use thiserror::Error;

use crate::terminal;
use budget::{Budget, Verdict};
pub use stamp::Stamp;

/// The library that serves shared directories.
const GUEST_SERVER: &str = "fuse_backend_rs";

/// Why there is no log.
#[derive(Debug, Error)]
#[error("the log file {path} cannot be opened: {source}")]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

/// Starts logging; the file is appended to.
pub fn start(level: LevelFilter, file: Option<&Path>) -> Result<(), LogError> {
    let file = file.map(open).transpose()?;
    if level == LevelFilter::Off {
        return Ok(());
    }
    let sink = Sink {
        file,
        budgets: Mutex::default(),
    };
    // Fails only where a logger is set already, and this is called once.
    if log::set_boxed_logger(Box::new(sink)).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

fn open(path: &Path) -> Result<File, LogError> {
    let open = OpenOptions::new().append(true).create(true).open(path);
    open.map_err(|source| LogError {
        path: path.to_owned(),
        source,
    })
}

#[derive(Debug)]
struct Sink {
    /// Standard error where there is none.
    file: Option<File>,
    /// By log target. Shared by all threads that log; the targets are this program's modules, so few.
    budgets: Mutex<HashMap<String, Budget>>,
}

impl Sink {
    fn judge(&self, target: &str) -> Verdict {
        let now = Instant::now();
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        match budgets.get_mut(target) {
            Some(budget) => budget.spend(now),
            None => budgets
                .entry(target.to_owned())
                .or_insert_with(|| Budget::new(now))
                .spend(now),
        }
    }

    fn write(&self, level: Level, target: &str, message: fmt::Arguments<'_>) {
        let mut line = String::with_capacity(128);
        compose(&mut line, SystemTime::now(), level, target, message);
        // A log that cannot be written is no reason to end a VM.
        let _ = match &self.file {
            Some(file) => {
                line.push('\n');
                (&*file).write_all(line.as_bytes())
            }
            None => {
                line.push_str(terminal::line_end());
                io::stderr().write_all(line.as_bytes())
            }
        };
    }

    fn write_suppressed(&self, target: &str, lines: u64) {
        self.write(
            Level::Warn,
            target,
            format_args!("{lines} lines suppressed, they came too fast"),
        );
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What a library that serves a guest calls an error is the guest's doing.
        let most = match metadata.target().starts_with(GUEST_SERVER) {
            true if log::max_level() < LevelFilter::Debug => LevelFilter::Off,
            _ => log::max_level(),
        };
        metadata.level() <= most
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let target = record.target();
        match self.judge(target) {
            Verdict::Write { suppressed } => {
                if suppressed > 0 {
                    self.write_suppressed(target, suppressed);
                }
                self.write(record.level(), target, *record.args());
            }
            Verdict::Suppress => {}
        }
    }

    /// Accounts for lines that were suppressed and never followed by another.
    fn flush(&self) {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        for (target, budget) in budgets.iter_mut() {
            let lines = budget.take_suppressed();
            if lines > 0 {
                self.write_suppressed(target, lines);
            }
        }
    }
}

/// `2026-01-31T12:00:00.123Z WARN  vmm::vcpu: message`.
fn compose(
    line: &mut String,
    at: SystemTime,
    level: Level,
    target: &str,
    message: fmt::Arguments<'_>,
) {
    // Writing to a string cannot fail.
    let _ = write!(line, "{} {level:<5} {target}: ", Stamp(at));
    let _ = OneLine(line).write_fmt(message);
}

/// Writes control characters as escapes.
struct OneLine<'a>(&'a mut String);

impl fmt::Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c.is_control() {
                self.0.extend(c.escape_default());
            } else {
                self.0.push(c);
            }
        }
        Ok(())
    }
}

/// The text with its control characters as escapes, for messages that quote what others wrote.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    let _ = OneLine(&mut line).write_str(text);
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_line_is_one_line_whatever_it_quotes() {
        let mut line = String::new();
        compose(
            &mut line,
            SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            Level::Warn,
            "vmm::vcpu",
            format_args!("guest said {}", "a\nb\x1b[2J"),
        );
        assert_eq!(
            line,
            "2023-11-14T22:13:20.123Z WARN  vmm::vcpu: guest said a\\nb\\u{1b}[2J"
        );
    }

    #[test]
    fn a_flood_from_one_source_is_cut_and_accounted_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let sink = Sink {
            file: Some(open(&path).unwrap()),
            budgets: Mutex::default(),
        };
        log::set_max_level(LevelFilter::Info);
        let log = |level, target: &str| {
            let args = format_args!("line");
            sink.log(
                &Record::builder()
                    .args(args)
                    .level(level)
                    .target(target)
                    .build(),
            );
        };
        for _ in 0..1000 {
            log(Level::Warn, "flood");
        }
        log(Level::Info, "quiet");
        log(Level::Debug, "quiet");
        sink.flush();
        sink.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
        assert!((50..60).contains(&count("flood: line")), "{text}");
        assert_eq!(count("lines suppressed"), 1);
        assert_eq!(
            count("quiet: line"),
            1,
            "the level holds, the flood is not its"
        );
    }

    #[test]
    fn an_impossible_file_is_named() {
        let error = open(Path::new("no/such/dir/log")).unwrap_err().to_string();
        assert!(error.starts_with("the log file no/such/dir/log cannot be opened: "));
    }
}
