//! What `mvm test` says while it runs: a line for each case on standard output, and at a terminal a bar
//! below them on standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::child::Ended;
use crate::logging;
use crate::report::Ran;

/// Shared by the threads that run cases.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    /// Names of the cases that run, by whoever began them, and how many did not pass.
    state: Mutex<(Vec<String>, usize)>,
    /// For the names to be aligned.
    width: usize,
}

impl Progress {
    /// Nothing runs.
    pub fn new<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> Self {
        let count = u64::try_from(names.len()).unwrap_or_default();
        let bar = io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{spinner} {pos}/{len} [{bar:24}] {elapsed}{msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(count).with_style(style.progress_chars("=> "));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            bar,
            state: Mutex::default(),
            width: names.map(|name| name.chars().count()).max().unwrap_or(0),
        }
    }

    /// A case begins.
    pub fn begin(&self, name: &str) {
        self.change(|running, _| running.push(name.to_owned()));
    }

    /// A case is over.
    pub fn end(&self, name: &str, ended: &Ended) {
        self.change(|running, failed| {
            running.retain(|other| other != name);
            *failed += usize::from(ended.result != Ran::Passed);
        });
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        self.line(&line(name, ended, self.width));
    }

    /// A line for good.
    fn line(&self, line: &str) {
        let print = || {
            // A reader that has seen enough does not end the tests.
            let _ = writeln!(io::stdout(), "{line}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// All is over.
    pub fn finish(&self, summary: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.line(summary);
    }

    fn change(&self, change: impl FnOnce(&mut Vec<String>, &mut usize)) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        let (running, failed) = &mut *state;
        change(running, failed);
        if let Some(bar) = &self.bar {
            let failed = match failed {
                0 => String::new(),
                count => format!(" {count} not passed"),
            };
            bar.set_message(format!("{failed} {}", running.join(", ")));
        }
    }
}

fn line(name: &str, ended: &Ended, width: usize) -> String {
    let word = match ended.result {
        Ran::Passed => "ok   ",
        Ran::Failed => "FAIL ",
        Ran::Error => "ERROR",
        Ran::Skipped => "skip ",
    };
    let seconds = ended.time.as_secs_f64();
    let why = match ended.result {
        Ran::Passed => String::new(),
        // A guest may have had a say in it.
        _ => format!(": {}", logging::one_line(&ended.message)),
    };
    format!("{word} {name:width$} {seconds:7.2} s{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_say_why() {
        let mut ended = Ended::unfit(Ran::Passed, "a\nb".to_owned());
        ended.time = Duration::from_millis(1234);
        assert_eq!(line("one", &ended, 5), "ok    one      1.23 s");
        ended.result = Ran::Failed;
        assert_eq!(line("two", &ended, 5), "FAIL  two      1.23 s: a\\nb");
    }
}
