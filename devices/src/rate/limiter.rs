//! The buckets of a device, the workers that draw from them, and who changes them meanwhile.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::Limits;
use super::bucket::Buckets;
use crate::virtio::{ActivateError, DeviceFault, QueueIndex, Source, Wake};

/// The shortest wait. At high rates of small requests a debt is paid within microseconds; several
/// requests then share one wake-up. It is well below what a bucket is allowed to be emptied in, so that
/// nothing is lost by it.
const WAIT_MIN: Duration = Duration::from_micros(500);
/// The longest wait before the worker looks again, whatever the debt.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// Where the time comes from.
pub(crate) trait Clock: fmt::Debug + Send + Sync {
    fn now(&self) -> Instant;
}

/// The host's monotonic clock.
#[derive(Debug)]
struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// The limit on one flow of a device, such as what a network card receives.
#[derive(Debug)]
pub struct Limiter {
    /// Whether there are limits: a device without any looks at this and nothing else.
    limited: AtomicBool,
    // The owners are the device's lanes, on their I/O threads, and whoever has the control.
    state: Mutex<State>,
    clock: Box<dyn Clock>,
}

#[derive(Debug, Default)]
struct State {
    limits: Limits,
    buckets: Buckets,
    /// One for each lane there is, which may be waiting for it.
    timers: Vec<Weak<Timer>>,
}

impl Limiter {
    /// A limiter that limits nothing yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_clock(Monotonic)
    }

    pub(crate) fn with_clock(clock: impl Clock + 'static) -> Arc<Self> {
        Arc::new(Self {
            limited: AtomicBool::new(false),
            state: Mutex::default(),
            clock: Box::new(clock),
        })
    }

    pub(super) fn set(&self, limits: Limits) {
        let mut state = self.state();
        state.limits = limits;
        state.buckets.change(limits, self.clock.now());
        self.limited.store(!limits.is_none(), Ordering::Release);
        // Under the lock: a worker that is about to wait by the old limits sets its timer before this, or
        // sees the new ones.
        for timer in state.timers.iter().filter_map(Weak::upgrade) {
            if let Err(error) = timer.set(Duration::ZERO) {
                log::warn!("rate limit: a waiting device learns of its new limit late: {error}");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Levels are numbers, any of which is possible.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lane's end of a [`Limiter`]. Owned by the lane's worker.
#[derive(Debug)]
pub struct Throttle {
    limiter: Arc<Limiter>,
    timer: Arc<Timer>,
    /// The queues that have to wait.
    waiting: Vec<QueueIndex>,
}

impl Throttle {
    /// An end for another lane.
    ///
    /// # Errors
    /// There is no descriptor left for its timer.
    pub fn new(limiter: &Arc<Limiter>) -> Result<Self, ActivateError> {
        let timer = Timer::new().map_err(|source| ActivateError {
            what: "the timer of its rate limit cannot be made",
            source: Some(source),
        })?;
        let timer = Arc::new(timer);
        let mut state = limiter.state();
        // Those of the lanes before the last reset.
        state.timers.retain(|timer| timer.strong_count() > 0);
        state.timers.push(Arc::downgrade(&timer));
        drop(state);
        Ok(Self {
            limiter: limiter.clone(),
            timer,
            waiting: Vec::new(),
        })
    }

    /// What wakes the worker when it may go on, after [`admits`](Self::admits) said no.
    #[must_use]
    pub fn source(&self, token: u32) -> Source {
        Source {
            fd: self.timer.0.as_raw_fd(),
            token,
            // The expiries need not be read, then.
            wake: Wake::Change,
        }
    }

    /// Whether a request of `queue` may pass now. If not, the worker leaves it where it is and will be
    /// woken.
    ///
    /// # Errors
    /// The timer cannot be set.
    pub fn admits(&mut self, queue: QueueIndex) -> Result<bool, DeviceFault> {
        if !self.limiter.limited.load(Ordering::Acquire) {
            return Ok(true);
        }
        let mut state = self.limiter.state();
        let wait = state.buckets.wait(self.limiter.clock.now());
        if wait.is_zero() {
            return Ok(true);
        }
        self.timer
            .set(wait.clamp(WAIT_MIN, WAIT_MAX))
            .map_err(|source| DeviceFault::Host {
                what: "timer of the rate limit",
                source,
            })?;
        if !self.waiting.contains(&queue) {
            self.waiting.push(queue);
        }
        Ok(false)
    }

    /// The queues that were left, to be served now that the [`source`](Self::source) woke. None is always
    /// the first of them.
    #[must_use]
    pub fn resume(&mut self) -> Vec<QueueIndex> {
        let mut queues = mem::take(&mut self.waiting);
        if !queues.is_empty() {
            queues.rotate_left(1);
        }
        queues
    }

    /// A request passed that moves so many bytes.
    pub fn charge(&self, bytes: u64) {
        if self.limiter.limited.load(Ordering::Acquire) {
            self.limiter.state().buckets.charge(bytes);
        }
    }
}

/// Changes the limits of a device while it runs, from any thread. Outlives the device without harm.
#[derive(Debug, Clone)]
pub struct RateControl {
    flows: Vec<Arc<Limiter>>,
}

impl RateControl {
    /// A control of a device's flows, which have their limits alike, each for itself.
    pub fn new(flows: impl IntoIterator<Item = Arc<Limiter>>) -> Self {
        Self {
            flows: flows.into_iter().collect(),
        }
    }

    /// Sets the limits, at once and also for requests that wait already.
    pub fn set(&self, limits: Limits) {
        self.flows.iter().for_each(|flow| flow.set(limits));
    }

    /// The limits.
    #[must_use]
    pub fn get(&self) -> Limits {
        self.flows
            .first()
            .map(|flow| flow.state().limits)
            .unwrap_or_default()
    }
}

/// A timer that a worker watches.
#[derive(Debug)]
struct Timer(OwnedFd);

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Expires `after` this, or at once.
    fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let after = after.max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(after).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}
