//! Console output on its way from vCPU threads to a consumer of any speed.
//!
//! A bounded ring between the two, drained by one thread. A guest may print faster than anyone reads:
//!
//! ```text
//!            room in the ring         consumer took something
//!   ┌──────┐  push, no wait   ┌──────┐ ◄───────────────────── ┌─────────┐
//!   │ open │ ───────────────► │ full │                        │ stalled │
//!   └──────┘ ◄─────────────── └──────┘ ─────────────────────► └─────────┘
//!              vCPU waits               took nothing for          no waits,
//!                                       `patience`                oldest bytes go
//! ```
//! A slow consumer gets every byte. One that has stopped costs the guest one wait, after which the
//! newest output is kept and the oldest dropped, so that the last words of a dying guest are there for
//! whoever comes to look. A consumer that fails loses the output; the guest goes on.
//!
//! Log lines are written by the writer thread: the log may go to the same blocked terminal, which must
//! not block a vCPU.

mod ring;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use self::ring::{MarkGone, Ring, Writer};
use super::bell::Bell;
use super::consumer::{Consumer, Policy};

/// Most that is offered to a consumer at once. A pipe that polls as writable takes it without blocking
/// (it is below PIPE_BUF), and a terminal on a 9600 baud line needs about a second for it, so that its
/// progress is seen in time.
pub(super) const CHUNK: usize = 1024;

/// How long a cancelled writer thread may take to notice.
const GRACE: Duration = Duration::from_millis(200);

/// A guest's end of the ring. Writing never fails; it waits as the policy says.
#[derive(Debug, Clone)]
pub(super) struct SinkWriter(Arc<Ring>);

/// For one who cannot wait.
impl SinkWriter {
    /// How many of `wanted` bytes can be [put](Self::put) now. If none, `bell` rings when it pays to ask
    /// again.
    pub(super) fn room(&self, wanted: usize, bell: &Arc<Bell>) -> usize {
        let mut state = self.0.lock();
        if !state.is_open() {
            return wanted;
        }
        self.0.room(&mut state, wanted).unwrap_or_else(|left| {
            bell.ring_after(left);
            state.turned_away = Some(Arc::clone(bell));
            0
        })
    }

    /// Puts bytes for which there is room. What others have put there in between is not waited for.
    pub(super) fn put(&self, bytes: &[u8]) {
        let mut state = self.0.lock();
        let wake = state.is_open() && self.0.put(&mut state, bytes);
        drop(state);
        if wake {
            self.0.wake();
        }
    }
}

impl Write for SinkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The ring and its thread, owned by the end that closes it.
pub(super) struct Sink {
    ring: Arc<Ring>,
    /// Until the thread begins: its name, and what it will write to.
    idle: Option<(&'static str, Box<dyn Consumer>)>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// A ring that keeps what it is given until a thread called `thread` begins. `name` is what the log
    /// calls the consumer.
    pub(super) fn new(
        thread: &'static str,
        consumer: Box<dyn Consumer>,
        policy: Policy,
        name: String,
    ) -> io::Result<Self> {
        Ok(Self {
            ring: Arc::new(Ring::new(policy, name)?),
            idle: Some((thread, consumer)),
            thread: None,
        })
    }

    /// Starts the writer thread, once.
    pub(super) fn start(&mut self) -> io::Result<()> {
        if let Some((name, mut consumer)) = self.idle.take() {
            let mark = MarkGone(Arc::clone(&self.ring));
            let thread = thread::Builder::new().name(name.to_owned());
            let thread = thread.spawn(move || {
                let mark = mark;
                mark.0.run(consumer.as_mut());
            })?;
            self.thread = Some(thread);
        }
        Ok(())
    }

    /// A guest's end. Any number may be used at the same time.
    pub(super) fn writer(&self) -> SinkWriter {
        SinkWriter(Arc::clone(&self.ring))
    }

    /// Lets go of every vCPU that waits here, and makes none wait from now on.
    pub(super) fn release(&self) {
        let mut state = self.ring.lock();
        state.hurry = true;
        self.ring.tell(&mut state);
    }

    /// Accepts no more, and gives the consumer up to `limit` to take what is there. Then the writer
    /// thread ends; it is left behind only if it is stuck in a write.
    pub(super) fn close(&mut self, limit: Duration) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        let ring = &*self.ring;
        let start = Instant::now();
        let mut state = ring.lock();
        state.closed = true;
        ring.work.notify_one();
        ring.tell(&mut state);
        while state.writer != Writer::Gone {
            let left = limit.saturating_sub(start.elapsed());
            let left = if ring.policy.expects_reader || state.in_flight == 0 {
                left
            } else if state.stalled {
                // Nobody may be reading, which is no reason to keep the VM's end waiting.
                Duration::ZERO
            } else {
                let waited = state.progress.elapsed();
                left.min(ring.policy.patience.saturating_sub(waited))
            };
            if left.is_zero() {
                break;
            }
            (state, _) = ring
                .change
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.writer != Writer::Gone {
            let unsent = (state.bytes.len() + state.in_flight) as u64;
            state.dropped = state.dropped.saturating_add(unsent);
            state.bytes = VecDeque::new();
            state.cancelled = true;
            ring.work.notify_one();
            ring.cancel.raise();
            (state, _) = ring
                .change
                .wait_timeout_while(state, GRACE, |state| state.writer != Writer::Gone)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let gone = state.writer == Writer::Gone;
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        ring.note_dropped(dropped);
        if gone {
            // It has nothing left to do; a panic of a custom consumer has been printed already.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink")
            .field("ring", &self.ring)
            .field("thread", &self.thread)
            .finish_non_exhaustive()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests;
