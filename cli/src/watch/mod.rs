//! What is looked for in the guest's console, and what has been found.
//!
//! A pure state machine, fed with the VM's events and the clock by [`crate::run`], which does what it
//! finds. It decides once: the first line that settles the matter does.

mod kernel;
mod pattern;
pub mod printk;
mod sought;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use vmm::ExitReason;
use vmm::events::{Event, EventKind};

use crate::script::{Played, Player, Script};

use kernel::KernelWatch;
pub use kernel::{KernelError, KernelErrors, Trouble};
pub use pattern::{Extent, Pattern, PatternError};
pub use sought::Sought;

/// How many of the console's last lines are kept.
pub const TAIL: usize = 50;

/// How long a line without an end must have rested before it counts as a prompt.
const PROMPT: Duration = Duration::from_millis(300);

/// What to look for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Each must match a line.
    pub expect: Vec<Pattern>,
    /// None may match a line.
    pub fail_on: Vec<Pattern>,
    /// What to type, and what to wait for in between.
    pub script: Option<Script>,
    /// A command runs in the guest, whose end is waited for when everything has come.
    pub has_command: bool,
    /// What to make of the kernel's trouble; by default it is told where anything is looked for.
    pub kernel_errors: Option<KernelErrors>,
}

impl Wanted {
    /// Whether the console need not be looked at.
    pub fn is_nothing(&self) -> bool {
        let kernel_errors = self.kernel_errors.unwrap_or(KernelErrors::Ignore);
        self.expect.is_empty()
            && self.fail_on.is_empty()
            && self.script.is_none()
            && kernel_errors == KernelErrors::Ignore
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

/// Looks for what is wanted.
#[derive(Debug)]
pub struct Watch {
    expected: Vec<Sought>,
    forbidden: Vec<Sought>,
    player: Option<Player>,
    has_command: bool,
    kernel_errors: KernelErrors,
    kernel: KernelWatch,
    tail: VecDeque<String>,
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
        Self {
            expected: Sought::all(wanted.expect),
            forbidden: Sought::all(wanted.fail_on),
            player: wanted.script.map(Player::new),
            has_command: wanted.has_command,
            kernel_errors: wanted.kernel_errors.unwrap_or(KernelErrors::Report),
            kernel: KernelWatch::default(),
            tail: VecDeque::new(),
            unfinished: None,
            trouble: None,
            verdict: None,
            failure: None,
        }
    }

    /// Something happened; the verdict, when it falls.
    pub fn on_event(&mut self, event: &Event) -> Option<Verdict> {
        match &event.kind {
            EventKind::Started => {
                self.player.iter_mut().for_each(|it| it.on_start(event.at));
                None
            }
            EventKind::Ended(Some(
                ExitReason::PoweredOff | ExitReason::Rebooted | ExitReason::Halted,
            )) => {
                self.player.iter_mut().for_each(|it| it.on_end(event.at));
                None
            }
            EventKind::Line(text) => {
                self.unfinished = None;
                self.keep(text);
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
        let step = self.player.as_ref().and_then(Player::deadline);
        let step = step.filter(|_| self.verdict.is_none());
        prompt.into_iter().chain(trouble).chain(step).min()
    }

    /// Time has passed; the verdict, when it falls.
    pub fn on_time(&mut self, now: Instant) -> Option<Verdict> {
        self.kernel.on_time(now);
        let rested = self.unfinished.take_if(|(_, rested)| *rested <= now);
        let verdict = rested.and_then(|(text, _)| self.look(now, &text, Extent::Resting));
        verdict
            .or_else(|| self.settle_trouble())
            .or_else(|| self.give_up(now))
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
        // What must not come is told by its whole line, and wins on it: so where anything must not come, what
        // must come waits for the line's end too.
        let mut news = false;
        if extent != Extent::Growing || self.forbidden.is_empty() {
            let mut forbidden = self.forbidden.iter_mut();
            let matched = forbidden.find_map(|it| it.look(at, text, extent).then_some(&it.pattern));
            if let Some(pattern) = matched {
                self.failure = Some(format!("--fail-on '{pattern}' matched: {text}"));
                return self.decide(Verdict::Failed);
            }
            for expected in &mut self.expected {
                news |= expected.look(at, text, extent);
            }
        }
        if let Some(player) = &mut self.player {
            news |= player.on_text(at, text, extent);
        }
        let met = news
            && !self.has_command
            && self.expected.iter().all(|it| it.found.is_some())
            && self.player.as_ref().is_none_or(Player::is_done);
        met.then(|| self.decide(Verdict::Met)).flatten()
    }

    /// Keeps the console's last lines.
    fn keep(&mut self, text: &str) {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(text.to_owned());
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

    /// A step of the script has waited for too long.
    fn give_up(&mut self, now: Instant) -> Option<Verdict> {
        if self.verdict.is_some() || self.trouble.is_some() {
            return None;
        }
        self.failure = Some(self.player.as_ref()?.on_time(now)?);
        self.decide(Verdict::Failed)
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
        let unmet = self.expected.iter().filter(|it| it.found.is_none());
        let unmet: Vec<_> = unmet.map(|it| format!("'{}'", it.pattern)).collect();
        let lines =
            (!unmet.is_empty()).then(|| format!("no line matched --expect {}", unmet.join(", ")));
        let step = self.player.as_ref().and_then(Player::waits_for);
        let unmet: Vec<_> = step.into_iter().chain(lines).collect();
        (!unmet.is_empty()).then(|| unmet.join("; "))
    }

    /// What is to be typed into the console now.
    pub fn take_typed(&mut self) -> Vec<u8> {
        let player = self.player.as_mut();
        player.map_or_else(Vec::new, Player::take_typed)
    }

    /// The steps of the script.
    pub fn steps(&self) -> impl Iterator<Item = Played<'_>> {
        self.player.iter().flat_map(Player::steps)
    }

    /// What must come.
    pub fn expected(&self) -> &[Sought] {
        &self.expected
    }

    /// What must not come.
    pub fn forbidden(&self) -> &[Sought] {
        &self.forbidden
    }

    /// The kernel's reports of trouble.
    pub fn kernel_errors(&self) -> &[KernelError] {
        self.kernel.errors()
    }

    /// The console's last lines.
    pub fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
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
