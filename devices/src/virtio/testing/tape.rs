//! What a guest did to a device, step by step, so that it can be done again: by a fuzzer, which begins
//! from tapes of the known attacks, and by whoever looks into what a fuzzer found.

use std::sync::{Arc, Mutex, PoisonError};

/// One thing that a guest, or the world behind its device, does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The guest writes its own memory.
    Memory {
        /// Where.
        address: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// The guest writes a register or configuration space.
    Write {
        /// Where in the device's page.
        offset: u16,
        /// 1, 2, 4 or 8 bytes.
        data: Vec<u8>,
    },
    /// The guest reads a register or configuration space.
    Read {
        /// Where in the device's page.
        offset: u16,
        /// 1, 2, 4 or 8 bytes.
        len: u8,
    },
    /// The guest rings the doorbell of a queue.
    Kick(u8),
    /// The host side does something: a packet arrives, a timer runs out.
    Poke(u8),
    /// The I/O thread gets its turn.
    Turn,
}

/// A recording, shared by all who act; off unless it is asked for.
#[derive(Debug, Clone, Default)]
pub struct Tape(Option<Arc<Mutex<Vec<Step>>>>);

impl Tape {
    /// A tape that records.
    #[must_use]
    pub fn recording() -> Self {
        Self(Some(Arc::default()))
    }

    /// Records a step, if anything is recorded.
    pub fn push(&self, step: impl FnOnce() -> Step) {
        if let Some(steps) = &self.0 {
            let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
            let step = step();
            // Waiting is many turns, and as good as one.
            if step != Step::Turn || steps.last() != Some(&Step::Turn) {
                steps.push(step);
            }
        }
    }

    /// What was recorded so far.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        self.0.as_ref().map_or_else(Vec::new, |steps| {
            steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }
}
