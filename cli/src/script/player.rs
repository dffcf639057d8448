//! Plays a script: a pure state machine over the console's lines and the clock.
//!
//! Each step begins where the one before was found, on the same line if there is more of it, and its time
//! begins then too.

use std::time::Instant;

use super::{Action, Script, Step};
use crate::watch::Extent;

/// A script and how far it has come.
#[derive(Debug)]
pub struct Player {
    script: Script,
    /// When each step was done, as far as it has come.
    done: Vec<Instant>,
    /// When the step that is next began; `None` before the guest runs.
    began: Option<Instant>,
    /// When the guest ended by itself.
    ended: Option<Instant>,
    /// How much of the present line belongs to steps that are done.
    consumed: usize,
    /// What is to be typed.
    typed: Vec<u8>,
}

/// A step as it was played.
#[derive(Debug)]
pub struct Played<'a> {
    /// The step.
    pub step: &'a Step,
    /// When it was done, if it was.
    pub done: Option<Instant>,
}

impl Player {
    /// Nothing is done.
    pub fn new(script: Script) -> Self {
        Self {
            script,
            done: Vec::new(),
            began: None,
            ended: None,
            consumed: 0,
            typed: Vec::new(),
        }
    }

    /// The guest runs.
    pub fn on_start(&mut self, at: Instant) {
        self.began = Some(at);
        self.go_on(at);
    }

    /// The guest has printed a line, or more of it; whether that was the last that was waited for.
    pub fn on_text(&mut self, at: Instant, text: &str, extent: Extent) -> bool {
        let was_done = self.is_done();
        while let Some(Action::Expect(pattern, _)) = self.next().map(|step| &step.action)
            && let Some(end) = pattern.find(text, self.consumed, extent)
        {
            self.consumed = end;
            self.done.push(at);
            self.began = Some(at);
            self.go_on(at);
        }
        if extent == Extent::Whole {
            self.consumed = 0;
        }
        self.is_done() && !was_done
    }

    /// Does what comes next as far as it need not be waited for.
    fn go_on(&mut self, at: Instant) {
        while let Some(step) = self.script.steps.get(self.done.len()) {
            match &step.action {
                Action::Send(text) => self.typed.extend(text.as_bytes()),
                Action::End(_) if self.ended.is_some() => {}
                Action::Expect(..) | Action::End(_) => return,
            }
            self.done.push(at);
        }
    }

    /// What is to be typed now.
    pub fn take_typed(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.typed)
    }

    fn next(&self) -> Option<&Step> {
        self.script.steps.get(self.done.len())
    }

    /// Whether there is no step left.
    pub fn is_done(&self) -> bool {
        self.next().is_none()
    }

    /// The guest ended by itself. What it had printed may still follow.
    pub fn on_end(&mut self, at: Instant) {
        self.ended = Some(at);
        self.go_on(at);
    }

    /// When the next step's time is up.
    pub fn deadline(&self) -> Option<Instant> {
        let (Action::Expect(_, limit) | Action::End(limit)) = &self.next()?.action else {
            return None;
        };
        self.began?.checked_add(limit.duration())
    }

    /// Why it fails, if the next step's time is up.
    pub fn on_time(&self, now: Instant) -> Option<String> {
        self.deadline().filter(|deadline| *deadline <= now)?;
        let step = self.next()?;
        let (what, limit) = match &step.action {
            Action::Expect(pattern, limit) => (format!("'{pattern}' did not come"), limit),
            Action::End(limit) => ("the guest did not end".to_owned(), limit),
            Action::Send(_) => return None,
        };
        Some(format!("{}: {what} within {limit}", self.place(step)))
    }

    /// What it still waits for, in words.
    pub fn waits_for(&self) -> Option<String> {
        let step = self.next()?;
        Some(format!(
            "{}: {} was not reached",
            self.place(step),
            step.action
        ))
    }

    fn place(&self, step: &Step) -> String {
        format!("script {}, line {}", self.script.path.display(), step.line)
    }

    /// All steps.
    pub fn steps(&self) -> impl Iterator<Item = Played<'_>> {
        let steps = self.script.steps.iter().enumerate();
        steps.map(|(number, step)| Played {
            step,
            done: self.done.get(number).copied(),
        })
    }
}
