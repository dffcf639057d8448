//! Who follows the VM's events, for what is looked for in its console and for the record.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use vmm::events::Events;

use super::typist::Typist;
use crate::record::Record;
use crate::watch::Verdict;

/// Takes events and tells them to the record.
#[derive(Debug)]
pub struct Follower<'a> {
    events: Events,
    record: &'a mut Record,
    typist: Option<Typist>,
}

impl<'a> Follower<'a> {
    /// Nothing has been taken yet.
    pub fn new(events: Events, record: &'a mut Record, typist: Option<Typist>) -> Self {
        Self {
            events,
            record,
            typist,
        }
    }

    /// Looks at what has happened, and at the clock.
    pub fn look(&mut self) -> Option<Verdict> {
        let mut verdict = None;
        while let Some(event) = self.events.try_next() {
            verdict = verdict.or(self.record.on_event(&event));
        }
        let verdict = verdict.or(self.record.watch.on_time(Instant::now()));
        if let Some(typist) = &mut self.typist {
            typist.type_in(&self.record.watch.take_typed());
        }
        verdict
    }

    /// What else to look for: room for what is to be typed.
    pub fn waits(&self) -> Option<BorrowedFd<'_>> {
        self.typist.as_ref().and_then(Typist::waits)
    }

    /// When to look if nothing happens before.
    pub fn wakes_at(&self) -> Option<Instant> {
        self.record.watch.wakes_at()
    }

    /// Looks at what is left when the VM has ended.
    pub fn finish(mut self) -> Option<Verdict> {
        let mut verdict = None;
        for event in &mut self.events {
            verdict = verdict.or(self.record.on_event(&event));
        }
        verdict.or(self.record.watch.on_end())
    }
}

impl AsFd for Follower<'_> {
    /// Readable when there is something to look at.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}
