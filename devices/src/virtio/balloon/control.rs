//! A balloon's control from outside: what it should be, what it is, and what the guest tells.
//!
//! Shared by the face (vCPU threads), the worker (an I/O thread) and whoever controls the VM; all of it
//! is small state that each may read and write at any time.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::pages::PAGE;
use super::statistics::Statistics;
use super::{BalloonOptions, pages_of};
use crate::virtio::VirtioInterrupt;

/// Why a balloon cannot have a size.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a balloon of {wanted} bytes would leave nothing of the guest's {memory} bytes of memory")]
pub struct TooLarge {
    /// What was asked for.
    pub wanted: u64,
    /// What the guest has.
    pub memory: u64,
}

/// What the parts of a balloon share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: BalloonOptions,
    /// Pages the balloon should have.
    pub(super) target: AtomicU32,
    /// Pages it has, as the driver says.
    pub(super) actual: AtomicU32,
    /// What the driver fills free pages with, §5.5.4.
    pub(super) poison: AtomicU32,
    /// The way to the driver, once there is a transport.
    pub(super) interrupt: OnceLock<Arc<dyn VirtioInterrupt>>,
    latest: Mutex<Latest>,
    answered: Condvar,
    /// Wakes the worker to ask for statistics.
    pub(super) ask: EventFd,
    /// Wakes the worker at each interval.
    pub(super) timer: OwnedFd,
}

#[derive(Debug)]
struct Latest {
    statistics: Option<Statistics>,
    interval: Duration,
}

impl Shared {
    pub(super) fn new(options: BalloonOptions) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let shared = Self {
            options,
            target: AtomicU32::new(pages_of(options.target)),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            interrupt: OnceLock::new(),
            latest: Mutex::new(Latest {
                statistics: None,
                interval: Duration::ZERO,
            }),
            answered: Condvar::new(),
            ask: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
        };
        shared.set_interval(options.stats_interval)?;
        Ok(shared)
    }

    /// The guest has answered.
    pub(super) fn publish(&self, statistics: Statistics) {
        self.latest().statistics = Some(statistics);
        self.answered.notify_all();
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        // Replaced as a whole, so a panic elsewhere leaves nothing half-changed.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_interval(&self, interval: Duration) -> io::Result<()> {
        let mut latest = self.latest();
        let period = Timespec::try_from(interval).map_err(io::Error::other)?;
        let timer = Itimerspec {
            it_interval: period,
            it_value: period,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer)?;
        latest.interval = interval;
        Ok(())
    }
}

/// Controls a balloon from any thread. Cheap to clone; of no effect once the VM is over.
#[derive(Debug, Clone)]
pub struct BalloonControl(pub(super) Arc<Shared>);

impl BalloonControl {
    /// Asks the guest to give up or take back memory until the balloon has `bytes`, in whole pages. It
    /// does so at its own pace, and as far as it can; [`Self::actual`] tells.
    ///
    /// # Errors
    /// The guest does not have more memory than that.
    pub fn set_target(&self, bytes: u64) -> Result<(), TooLarge> {
        let memory = self.0.options.memory;
        if bytes >= memory {
            let wanted = bytes;
            return Err(TooLarge { wanted, memory });
        }
        self.0.target.store(pages_of(bytes), Ordering::Release);
        if let Some(interrupt) = self.0.interrupt.get()
            && let Err(error) = interrupt.config()
        {
            log::warn!("balloon: the guest is not told of its new size: {error}");
        }
        Ok(())
    }

    /// Bytes the balloon should have.
    #[must_use]
    pub fn target(&self) -> u64 {
        u64::from(self.0.target.load(Ordering::Acquire)) * PAGE
    }

    /// Bytes the balloon has, as the guest says.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::Acquire)) * PAGE
    }

    /// What the balloon was made with.
    #[must_use]
    pub fn options(&self) -> &BalloonOptions {
        &self.0.options
    }

    /// What the guest told last of its memory, if it ever did.
    #[must_use]
    pub fn statistics(&self) -> Option<Statistics> {
        self.0.latest().statistics
    }

    /// Asks the guest for its statistics and waits up to `limit` for them. A guest that does not answer
    /// leaves what it told before.
    #[must_use]
    pub fn ask_statistics(&self, limit: Duration) -> Option<Statistics> {
        let asked = Instant::now();
        // A saturated counter is a request already pending.
        let _ = self.0.ask.write(1);
        let old = |latest: &mut Latest| latest.statistics.is_none_or(|got| got.at < asked);
        let (latest, _) = self
            .0
            .answered
            .wait_timeout_while(self.0.latest(), limit, old)
            .unwrap_or_else(PoisonError::into_inner);
        latest.statistics
    }

    /// How often the guest is asked for its statistics; zero is never.
    #[must_use]
    pub fn statistics_interval(&self) -> Duration {
        self.0.latest().interval
    }

    /// Asks the guest for its statistics at each `interval` from now on, or never if that is zero.
    ///
    /// # Errors
    /// No clock counts that far.
    pub fn set_statistics_interval(&self, interval: Duration) -> io::Result<()> {
        self.0.set_interval(interval)
    }
}
