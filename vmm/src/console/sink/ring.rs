//! The ring itself and its writer thread's body; who may put bytes into it, and when.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::bell::Bell;
use super::super::consumer::{Consumer, Offer, Policy};
use super::CHUNK;
use crate::flag::Flag;

/// How long the writer thread collects after it has written, so that a chatty guest costs a system call
/// per batch and not per byte. The first byte after a silence goes out at once.
const LINGER: Duration = Duration::from_millis(1);

/// Capacity that an empty ring keeps.
pub(super) const KEEP: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// Offers bytes, or is about to look for some.
    Busy,
    /// Collects for at most [`LINGER`].
    Lingers,
    /// Sleeps until it is woken.
    Sleeps,
    /// Has ended; nobody takes output any more.
    Gone,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) bytes: VecDeque<u8>,
    /// Bytes out of the ring that the consumer has not taken yet.
    pub(super) in_flight: usize,
    /// When the consumer last took something, or was first offered what it has before it now.
    pub(super) progress: Instant,
    /// Nobody waits for the consumer until it takes something.
    pub(super) stalled: bool,
    /// Bytes dropped since the consumer last took something.
    pub(super) dropped: u64,
    pub(super) writer: Writer,
    /// Nobody waits for the consumer any more.
    pub(super) hurry: bool,
    /// No more output is accepted; what is there is written.
    pub(super) closed: bool,
    /// Nor is that.
    pub(super) cancelled: bool,
    /// Rung for one who was turned away and cannot wait here.
    pub(super) turned_away: Option<Arc<Bell>>,
}

impl State {
    /// Whether there is any use in more output.
    pub(super) fn is_open(&self) -> bool {
        !self.closed && self.writer != Writer::Gone
    }

    /// Gives the writer thread something to do; whether it has to be woken for it.
    fn rouse(&mut self) -> bool {
        let rests = matches!(self.writer, Writer::Lingers | Writer::Sleeps);
        if rests {
            self.writer = Writer::Busy;
        }
        rests
    }

    /// What of the capacity is taken.
    fn used(&self) -> usize {
        self.bytes.len() + self.in_flight
    }
}

#[derive(Debug)]
pub(super) struct Ring {
    /// Two owners: the vCPU threads (and the VM's end) on one side, the writer thread on the other.
    pub(super) state: Mutex<State>,
    /// Wakes the writer thread.
    pub(super) work: Condvar,
    /// Wakes everybody else: the consumer took something, or the state changed.
    pub(super) change: Condvar,
    /// Wakes the writer thread out of a consumer's wait.
    pub(super) cancel: Flag,
    pub(super) policy: Policy,
    /// What the log calls the consumer.
    pub(super) name: String,
}

impl Ring {
    /// An empty ring, whose writer thread has not begun.
    pub(super) fn new(policy: Policy, name: String) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State {
                bytes: VecDeque::new(),
                in_flight: 0,
                progress: Instant::now(),
                stalled: false,
                dropped: 0,
                writer: Writer::Sleeps,
                hurry: false,
                closed: false,
                cancelled: false,
                turned_away: None,
            }),
            work: Condvar::new(),
            change: Condvar::new(),
            cancel: Flag::new()?,
            policy: Policy {
                capacity: policy.capacity.max(2 * CHUNK),
                ..policy
            },
            name,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whoever waits for the consumer that it is worth another look.
    pub(super) fn tell(&self, state: &mut State) {
        if let Some(bell) = state.turned_away.take() {
            bell.ring();
        }
        self.change.notify_all();
    }

    /// Wakes the writer thread. Best done without the state: it would wake up only to wait for that.
    pub(super) fn wake(&self) {
        self.work.notify_one();
    }

    /// Called by vCPU threads. Waits as long as the policy allows, and never fails.
    pub(super) fn push(&self, mut bytes: &[u8]) {
        let mut wake = false;
        let mut state = self.lock();
        while !bytes.is_empty() && state.is_open() {
            match self.room(&mut state, bytes.len()) {
                Ok(room) => {
                    let (now, later) = bytes.split_at(room);
                    wake |= self.put(&mut state, now);
                    bytes = later;
                }
                Err(left) => {
                    if std::mem::take(&mut wake) {
                        self.wake();
                    }
                    (state, _) = self
                        .change
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        drop(state);
        if wake {
            self.wake();
        }
    }

    /// How many of `wanted` bytes may be put into the ring now; if none, how long it may stay so.
    pub(super) fn room(&self, state: &mut State, wanted: usize) -> Result<usize, Duration> {
        let room = self.policy.capacity.saturating_sub(state.used());
        if room > 0 {
            return Ok(room.min(wanted));
        }
        if !(state.stalled || state.hurry) {
            if state.rouse() {
                self.wake();
            }
            let waited = if state.in_flight == 0 {
                // The writer is about to come for it; only then does the consumer's time begin.
                Duration::ZERO
            } else {
                state.progress.elapsed()
            };
            if let Some(left) = self.policy.patience.checked_sub(waited) {
                return Err(left);
            }
            state.stalled = true;
        }
        // The oldest makes room for the newest.
        Ok(wanted.min(self.policy.capacity - state.in_flight))
    }

    /// Puts bytes into the ring. Where nobody waits, the oldest go for them; otherwise there is room, or
    /// was a moment ago. Whether the writer thread is now to be [woken](Self::wake).
    #[must_use]
    pub(super) fn put(&self, state: &mut State, bytes: &[u8]) -> bool {
        if state.stalled || state.hurry {
            let excess = (state.used() + bytes.len()).saturating_sub(self.policy.capacity);
            let excess = excess.min(state.bytes.len());
            state.bytes.drain(..excess);
            state.dropped = state.dropped.saturating_add(excess as u64);
        }
        state.bytes.extend(bytes);
        (state.writer == Writer::Sleeps || state.bytes.len() >= CHUNK) && state.rouse()
    }

    /// The writer thread's body.
    pub(super) fn run(&self, consumer: &mut dyn Consumer) {
        let mut buffer = [0; CHUNK];
        // What came before this thread did goes out at once.
        self.lock().writer = Writer::Sleeps;
        while let Some(count) = self.take(&mut buffer) {
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                match consumer.offer(rest) {
                    Ok(Offer::Took(0)) => return self.fail(&io::ErrorKind::WriteZero.into()),
                    Ok(Offer::Took(count)) => {
                        let count = count.min(rest.len());
                        rest = &rest[count..];
                        self.took(count);
                    }
                    Ok(Offer::Busy) => consumer.wait(&self.cancel),
                    Ok(Offer::Absent) => {
                        let mut state = self.lock();
                        state.stalled = true;
                        self.tell(&mut state);
                        drop(state);
                        consumer.wait(&self.cancel);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return self.fail(&error),
                }
                if self.lock().cancelled {
                    return;
                }
            }
        }
    }

    /// The writer thread asks for its next bytes. `None` is the end.
    fn take(&self, buffer: &mut [u8; CHUNK]) -> Option<usize> {
        let mut state = self.lock();
        if state.bytes.len() < CHUNK && !state.closed && state.writer == Writer::Busy {
            state.writer = Writer::Lingers;
            (state, _) = self
                .work
                .wait_timeout_while(state, LINGER, |state| {
                    state.writer == Writer::Lingers && !state.closed
                })
                .unwrap_or_else(PoisonError::into_inner);
        }
        while state.bytes.is_empty() && !state.closed {
            if state.bytes.capacity() > KEEP {
                state.bytes = VecDeque::new();
            }
            state.writer = Writer::Sleeps;
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.writer = Writer::Busy;
        let count = state.bytes.len().min(CHUNK);
        if count == 0 || state.cancelled {
            return None;
        }
        for (slot, byte) in buffer.iter_mut().zip(state.bytes.drain(..count)) {
            *slot = byte;
        }
        state.in_flight = count;
        state.progress = Instant::now();
        Some(count)
    }

    /// The consumer took `count` bytes.
    fn took(&self, count: usize) {
        let mut state = self.lock();
        state.in_flight -= count;
        state.progress = Instant::now();
        state.stalled = false;
        let dropped = std::mem::take(&mut state.dropped);
        self.tell(&mut state);
        drop(state);
        self.note_dropped(dropped);
    }

    pub(super) fn note_dropped(&self, dropped: u64) {
        if dropped == 0 {
            return;
        }
        let level = if self.policy.expects_reader {
            log::Level::Warn
        } else {
            log::Level::Debug
        };
        log::log!(
            level,
            "console output to {} stalled: {dropped} bytes were dropped",
            self.name
        );
    }

    fn fail(&self, error: &io::Error) {
        log::warn!(
            "console output to {} failed and is dropped from here on: {error}",
            self.name
        );
    }
}

/// Marks the writer thread as gone however it ends, so that nobody waits for it.
pub(super) struct MarkGone(pub(super) Arc<Ring>);

impl Drop for MarkGone {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.writer = Writer::Gone;
        state.in_flight = 0;
        state.bytes = VecDeque::new();
        self.0.tell(&mut state);
    }
}
