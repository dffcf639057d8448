//! What is looked for in the guest's console, and what has been found.
//!
//! A pure state machine, fed with the VM's events and the clock by [`crate::run`], which does what it
//! finds. It decides once: the first line that settles the matter does.

mod kernel;
mod pattern;
mod printk;

use std::fmt;
use std::time::{Duration, Instant};

use vmm::events::{Event, EventKind};

pub use kernel::KernelErrors;
use kernel::{KernelWatch, Trouble};
use pattern::Extent;
pub use pattern::Pattern;

/// How long a line without an end must have rested before it counts as a prompt.
const PROMPT: Duration = Duration::from_millis(300);

/// What to look for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Each must match a line.
    pub expect: Vec<Pattern>,
    /// None may match a line.
    pub fail_on: Vec<Pattern>,
    /// What to make of the kernel's trouble; by default it is told where anything is looked for.
    pub kernel_errors: Option<KernelErrors>,
}

impl Wanted {
    /// Whether the console need not be looked at.
    pub fn is_nothing(&self) -> bool {
        let kernel_errors = self.kernel_errors.unwrap_or(KernelErrors::Ignore);
        self.expect.is_empty() && self.fail_on.is_empty() && kernel_errors == KernelErrors::Ignore
    }
}

/// What settles the matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything expected has come.
    Met,
    /// Something has come that must not.
    Failed,
    /// The kernel has panicked, and that is not waited out.
    Crashed,
}

/// An expectation and what became of it.
#[derive(Debug)]
struct Expectation {
    pattern: Pattern,
    /// When the first line matched it.
    met: Option<Instant>,
}

/// Looks for what is wanted.
#[derive(Debug)]
pub struct Watch {
    expected: Vec<Expectation>,
    fail_on: Vec<Pattern>,
    kernel_errors: KernelErrors,
    kernel: KernelWatch,
    /// The line that has not ended, and when it will have rested.
    unfinished: Option<(String, Instant)>,
    /// Fatal trouble of the kernel, whose report is still being made.
    trouble: Option<Verdict>,
    verdict: Option<Verdict>,
    /// Why the verdict is a failure.
    failure: Option<String>,
}

impl Watch {
    /// Nothing has been seen.
    pub fn new(wanted: Wanted) -> Self {
        let expected = wanted
            .expect
            .into_iter()
            .map(|pattern| Expectation { pattern, met: None });
        Self {
            expected: expected.collect(),
            fail_on: wanted.fail_on,
            kernel_errors: wanted.kernel_errors.unwrap_or(KernelErrors::Report),
            kernel: KernelWatch::default(),
            unfinished: None,
            trouble: None,
            verdict: None,
            failure: None,
        }
    }

    /// Something happened; the verdict, when it falls.
    pub fn on_event(&mut self, event: &Event) -> Option<Verdict> {
        match &event.kind {
            EventKind::Line(text) => {
                self.unfinished = None;
                let verdict = self.look(event.at, text, Extent::Whole);
                let trouble = self.look_for_trouble(event.at, text);
                verdict.or(trouble)
            }
            EventKind::Unfinished(text) => {
                self.unfinished = Some((text.clone(), event.at + PROMPT));
                self.look(event.at, text, Extent::Growing)
            }
            _ => None,
        }
    }

    /// When to call [`Self::on_time`] if nothing happens before.
    pub fn wakes_at(&self) -> Option<Instant> {
        let prompt = self.unfinished.as_ref().map(|(_, rested)| *rested);
        let trouble = self.trouble.and(self.kernel.quiet_at());
        prompt.into_iter().chain(trouble).min()
    }

    /// Time has passed; the verdict, when it falls.
    pub fn on_time(&mut self, now: Instant) -> Option<Verdict> {
        self.kernel.on_time(now);
        let rested = self.unfinished.take_if(|(_, rested)| *rested <= now);
        let verdict = rested.and_then(|(text, _)| self.look(now, &text, Extent::Resting));
        verdict.or_else(|| self.settle_trouble())
    }

    /// Nothing more will come; the verdict, if it falls now.
    pub fn on_end(&mut self) -> Option<Verdict> {
        self.trouble.take().and_then(|verdict| self.decide(verdict))
    }

    /// Holds a line against the patterns.
    fn look(&mut self, at: Instant, text: &str, extent: Extent) -> Option<Verdict> {
        if self.verdict.is_some() || self.trouble.is_some() {
            return None;
        }
        if let Some(pattern) = self.fail_on.iter().find(|it| it.matches(text, extent)) {
            self.failure = Some(format!("--fail-on '{pattern}' matched: {text}"));
            return self.decide(Verdict::Failed);
        }
        let open = self.expected.iter_mut().filter(|it| it.met.is_none());
        let mut matched = false;
        for expectation in open.filter(|it| it.pattern.matches(text, extent)) {
            expectation.met = Some(at);
            matched = true;
        }
        let met = matched && self.expected.iter().all(|it| it.met.is_some());
        met.then(|| self.decide(Verdict::Met)).flatten()
    }

    /// Looks for the kernel's trouble. A fatal one settles the matter, but its report is waited for.
    fn look_for_trouble(&mut self, at: Instant, text: &str) -> Option<Verdict> {
        if self.kernel_errors == KernelErrors::Ignore {
            return None;
        }
        let begun = self.kernel.on_line(at, text);
        if let Some(trouble) = begun
            && self.kernel_errors == KernelErrors::Fatal
            && self.verdict.is_none()
        {
            let (verdict, what) = match trouble {
                Trouble::Panic => (Verdict::Crashed, "the guest's kernel panicked"),
                _ => (Verdict::Failed, "the guest's kernel reported an error"),
            };
            self.failure = Some(format!("{what}: {text}"));
            self.trouble = Some(verdict);
        }
        self.settle_trouble()
    }

    /// The kernel's report is complete, or there is none.
    fn settle_trouble(&mut self) -> Option<Verdict> {
        let settled = self.trouble.take_if(|_| self.kernel.quiet_at().is_none());
        settled.and_then(|verdict| self.decide(verdict))
    }

    fn decide(&mut self, verdict: Verdict) -> Option<Verdict> {
        self.verdict = Some(verdict);
        self.verdict
    }

    /// Why it failed, or crashed, where it did.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// What is still expected, in words.
    pub fn unmet(&self) -> Option<String> {
        let unmet = self.expected.iter().filter(|it| it.met.is_none());
        let unmet: Vec<_> = unmet.map(|it| format!("'{}'", it.pattern)).collect();
        (!unmet.is_empty()).then(|| format!("no line matched --expect {}", unmet.join(", ")))
    }

    /// What is to be told of the kernel's trouble when all is over, where it did not end the VM.
    pub fn kernel_trouble(&self) -> Option<KernelTrouble<'_>> {
        if self.kernel_errors == KernelErrors::Fatal {
            return None;
        }
        let first = self.kernel.errors().first()?.text.first()?;
        Some(KernelTrouble {
            count: self.kernel.count(),
            first,
        })
    }
}

/// The kernel's trouble in one line.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelTrouble<'a> {
    count: usize,
    first: &'a str,
}

impl fmt::Display for KernelTrouble<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, first } = self;
        let errors = if *count == 1 { "error" } else { "errors" };
        write!(f, "the guest's kernel reported {count} {errors}: {first}")
    }
}

#[cfg(test)]
mod tests;
