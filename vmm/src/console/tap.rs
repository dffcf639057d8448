//! The console's second reader: turns output into lines of text for [`crate::events`].
//!
//! It hangs on a ring and a thread of its own beside the console's ([`super::sink`]), so that it gets
//! every byte at once, whether or not anybody takes what goes to the terminal, file or client. Owned by
//! that thread.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::consumer::{Consumer, Offer, Policy, wait_any};
use super::lines::Lines;
use crate::events::{EventKind, EventSender};
use crate::flag::Flag;

/// The guest waits for whoever takes its events; one that takes none for this long loses the oldest.
pub(super) const POLICY: Policy = Policy {
    capacity: 64 << 10,
    patience: Duration::from_secs(10),
    expects_reader: true,
};

/// Splits what it is offered and sends it on.
#[derive(Debug)]
pub(super) struct Tap {
    lines: Lines,
    events: EventSender,
}

impl Tap {
    pub(super) fn new(events: EventSender) -> Self {
        Self {
            lines: Lines::default(),
            events,
        }
    }
}

impl Consumer for Tap {
    fn offer(&mut self, bytes: &[u8]) -> io::Result<Offer> {
        let now = Instant::now();
        let mut taken = 0;
        while taken < bytes.len() {
            if !self.events.has_room() {
                return Ok(match taken {
                    0 => Offer::Busy,
                    taken => Offer::Took(taken),
                });
            }
            let (count, line) = self.lines.take(&bytes[taken..]);
            taken += count;
            if let Some(text) = line {
                self.events.send(now, EventKind::Line(text));
            }
        }
        if let Some(text) = self.lines.rest() {
            self.events.send(now, EventKind::Unfinished(text));
        }
        Ok(Offer::Took(taken))
    }

    fn wait(&mut self, cancel: &Flag) {
        wait_any(&[(self.events.room(), PollFlags::IN)], cancel);
    }
}

impl Drop for Tap {
    /// Whatever the guest had begun to say is said when there is no more to come.
    fn drop(&mut self) {
        if let Some(text) = self.lines.rest() {
            self.events.send(Instant::now(), EventKind::Line(text));
        }
    }
}
