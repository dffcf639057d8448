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

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::consumer::{Consumer, Offer, Policy};
use crate::flag::Flag;

/// Most that is offered to a consumer at once. A pipe that polls as writable takes it without blocking
/// (it is below PIPE_BUF), and a terminal on a 9600 baud line needs about a second for it, so that its
/// progress is seen in time.
pub(super) const CHUNK: usize = 1024;

/// How long the writer thread collects after it has written, so that a chatty guest costs a system call
/// per batch and not per byte. The first byte after a silence goes out at once.
const LINGER: Duration = Duration::from_millis(1);

/// Capacity that an empty ring keeps.
const KEEP: usize = 16 << 10;

/// How long a cancelled writer thread may take to notice.
const GRACE: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
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
struct State {
    ring: VecDeque<u8>,
    /// Bytes out of the ring that the consumer has not taken yet.
    in_flight: usize,
    /// When the consumer last took something, or was first offered what it has before it now.
    progress: Instant,
    /// Nobody waits for the consumer until it takes something.
    stalled: bool,
    /// Bytes dropped since the consumer last took something.
    dropped: u64,
    writer: Writer,
    /// Nobody waits for the consumer any more.
    hurry: bool,
    /// No more output is accepted; what is there is written.
    closed: bool,
    /// Nor is that.
    cancelled: bool,
}

#[derive(Debug)]
struct Shared {
    /// Two owners: the vCPU threads (and the VM's end) on one side, the writer thread on the other.
    state: Mutex<State>,
    /// Wakes the writer thread.
    work: Condvar,
    /// Wakes everybody else: the consumer took something, or the state changed.
    change: Condvar,
    /// Wakes the writer thread out of a consumer's wait.
    cancel: Flag,
    policy: Policy,
    /// What the log calls the consumer.
    name: String,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, state: &mut State) {
        if matches!(state.writer, Writer::Lingers | Writer::Sleeps) {
            state.writer = Writer::Busy;
            self.work.notify_one();
        }
    }

    /// Called by vCPU threads. Waits as long as the policy allows, and never fails.
    fn push(&self, mut bytes: &[u8]) {
        let mut state = self.lock();
        while !bytes.is_empty() && !state.closed && state.writer != Writer::Gone {
            let used = state.ring.len() + state.in_flight;
            let room = self.policy.capacity.saturating_sub(used);
            if room > 0 {
                let (now, later) = bytes.split_at(room.min(bytes.len()));
                state.ring.extend(now);
                bytes = later;
                if state.writer == Writer::Sleeps || state.ring.len() >= CHUNK {
                    self.wake(&mut state);
                }
            } else if state.stalled || state.hurry {
                let excess = bytes.len().min(state.ring.len());
                state.ring.drain(..excess);
                state.dropped = state.dropped.saturating_add(excess as u64);
            } else {
                state = self.wait_for_room(state);
            }
        }
    }

    fn wait_for_room<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.wake(&mut state);
        let waited = if state.in_flight == 0 {
            // The writer is about to come for it; only then does the consumer's time begin.
            Duration::ZERO
        } else {
            state.progress.elapsed()
        };
        let Some(left) = self.policy.patience.checked_sub(waited) else {
            state.stalled = true;
            return state;
        };
        let (state, _) = self
            .change
            .wait_timeout(state, left)
            .unwrap_or_else(PoisonError::into_inner);
        state
    }

    /// The writer thread's body.
    fn run(&self, consumer: &mut dyn Consumer) {
        let mut buffer = [0; CHUNK];
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
                        self.lock().stalled = true;
                        self.change.notify_all();
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
        if state.ring.len() < CHUNK && !state.closed && state.writer == Writer::Busy {
            state.writer = Writer::Lingers;
            (state, _) = self
                .work
                .wait_timeout_while(state, LINGER, |state| {
                    state.writer == Writer::Lingers && !state.closed
                })
                .unwrap_or_else(PoisonError::into_inner);
        }
        while state.ring.is_empty() && !state.closed {
            if state.ring.capacity() > KEEP {
                state.ring = VecDeque::new();
            }
            state.writer = Writer::Sleeps;
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.writer = Writer::Busy;
        let count = state.ring.len().min(CHUNK);
        if count == 0 || state.cancelled {
            return None;
        }
        for (slot, byte) in buffer.iter_mut().zip(state.ring.drain(..count)) {
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
        drop(state);
        self.change.notify_all();
        self.note_dropped(dropped);
    }

    fn note_dropped(&self, dropped: u64) {
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
struct MarkGone(Arc<Shared>);

impl Drop for MarkGone {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.writer = Writer::Gone;
        state.in_flight = 0;
        state.ring = VecDeque::new();
        drop(state);
        self.0.change.notify_all();
    }
}

/// A guest's end of the ring. Writing never fails; it waits as the policy says.
#[derive(Debug, Clone)]
pub(super) struct SinkWriter(Arc<Shared>);

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
#[derive(Debug)]
pub(super) struct Sink {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Starts a writer thread called `thread`. `name` is what the log calls the consumer.
    pub(super) fn start(
        thread: &str,
        mut consumer: Box<dyn Consumer>,
        policy: Policy,
        name: String,
    ) -> io::Result<Self> {
        let policy = Policy {
            capacity: policy.capacity.max(2 * CHUNK),
            ..policy
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                ring: VecDeque::new(),
                in_flight: 0,
                progress: Instant::now(),
                stalled: false,
                dropped: 0,
                writer: Writer::Sleeps,
                hurry: false,
                closed: false,
                cancelled: false,
            }),
            work: Condvar::new(),
            change: Condvar::new(),
            cancel: Flag::new()?,
            policy,
            name,
        });
        let mark = MarkGone(Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name(thread.to_owned())
            .spawn(move || {
                let mark = mark;
                mark.0.run(consumer.as_mut());
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// A guest's end. Any number may be used at the same time.
    pub(super) fn writer(&self) -> SinkWriter {
        SinkWriter(Arc::clone(&self.shared))
    }

    /// Lets go of every vCPU that waits here, and makes none wait from now on.
    pub(super) fn release(&self) {
        self.shared.lock().hurry = true;
        self.shared.change.notify_all();
    }

    /// Accepts no more, and gives the consumer up to `limit` to take what is there. Then the writer
    /// thread ends; it is left behind only if it is stuck in a write.
    pub(super) fn close(&mut self, limit: Duration) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        let shared = &*self.shared;
        let start = Instant::now();
        let mut state = shared.lock();
        state.closed = true;
        shared.work.notify_one();
        shared.change.notify_all();
        while state.writer != Writer::Gone {
            let left = limit.saturating_sub(start.elapsed());
            let left = if shared.policy.expects_reader || state.in_flight == 0 {
                left
            } else if state.stalled {
                // Nobody may be reading, which is no reason to keep the VM's end waiting.
                Duration::ZERO
            } else {
                let waited = state.progress.elapsed();
                left.min(shared.policy.patience.saturating_sub(waited))
            };
            if left.is_zero() {
                break;
            }
            (state, _) = shared
                .change
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.writer != Writer::Gone {
            let unsent = (state.ring.len() + state.in_flight) as u64;
            state.dropped = state.dropped.saturating_add(unsent);
            state.ring = VecDeque::new();
            state.cancelled = true;
            shared.work.notify_one();
            shared.cancel.raise();
            (state, _) = shared
                .change
                .wait_timeout_while(state, GRACE, |state| state.writer != Writer::Gone)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let gone = state.writer == Writer::Gone;
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        shared.note_dropped(dropped);
        if gone {
            // It has nothing left to do; a panic of a custom consumer has been printed already.
            let _ = thread.join();
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests;
