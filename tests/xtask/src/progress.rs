//! What a long step says while it runs: a spinner at a terminal, plain lines otherwise. Everything goes to
//! standard error; standard output is for results that scripts read.

use std::fmt;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A step that is going on. Dropped without [`Step::done`], it failed, and leaves its last words standing.
#[derive(Debug)]
pub struct Step {
    what: String,
    start: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Says that `what` begins.
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if spinner.is_none() {
            eprintln!("{what} ...");
        }
        Self {
            what,
            start: Instant::now(),
            spinner,
        }
    }

    /// Leaves the terminal to a program that shows its own progress.
    pub fn hide(&self) {
        if let Some(bar) = &self.spinner {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
    }

    /// What the step is at: shown beside the spinner, and not at all where there is none.
    pub fn at(&self, detail: impl Into<String>) {
        if let Some(bar) = &self.spinner {
            bar.set_message(detail.into());
        }
    }

    /// The step is over; how long it took.
    pub fn done(mut self) -> Duration {
        let took = self.start.elapsed();
        if let Some(bar) = self.spinner.take() {
            bar.finish_and_clear();
        }
        eprintln!("{}: {}", self.what, Seconds(took));
        took
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.spinner {
            bar.abandon();
        }
    }
}

/// A duration as people read it.
#[derive(Debug, Clone, Copy)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}
