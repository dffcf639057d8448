//! What a guest did to a device, step by step, so that it can be done again: by a fuzzer, which begins
//! from tapes of the known attacks, and by whoever looks into what a fuzzer found.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// The driver initializes the device as it should, from a reset on, with all features.
    Start,
}

/// A recording, shared by all who act; off unless it is asked for.
#[derive(Debug, Clone, Default)]
pub struct Tape(Option<Arc<Mutex<Reel>>>);

#[derive(Debug, Default)]
struct Reel {
    steps: Vec<Step>,
    paused: bool,
}

impl Tape {
    /// A tape that records.
    #[must_use]
    pub fn recording() -> Self {
        Self(Some(Arc::default()))
    }

    /// Records a step, if anything is recorded.
    pub fn push(&self, step: impl FnOnce() -> Step) {
        let Some(mut reel) = self.reel() else { return };
        if reel.paused {
            return;
        }
        let step = step();
        // Waiting is many turns, and as good as one.
        if step != Step::Turn || reel.steps.last() != Some(&Step::Turn) {
            reel.steps.push(step);
        }
    }

    /// Records nothing more until [`resume`](Self::resume).
    pub fn pause(&self) {
        if let Some(mut reel) = self.reel() {
            reel.paused = true;
        }
    }

    /// Records again.
    pub fn resume(&self) {
        if let Some(mut reel) = self.reel() {
            reel.paused = false;
        }
    }

    /// What was recorded so far.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        self.reel().map_or_else(Vec::new, |reel| reel.steps.clone())
    }

    fn reel(&self) -> Option<MutexGuard<'_, Reel>> {
        let reel = self.0.as_ref()?;
        Some(reel.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
