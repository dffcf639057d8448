//! Noticing that a machine has halted for good.
//!
//! `halt -f` leaves every CPU in HLT with interrupts off. KVM keeps such a vCPU inside KVM_RUN and tells
//! nobody, so somebody must look. Looking costs a kick of each vCPU, and an idle machine must not be
//! woken: so mvm looks once, when the guest has made no exit for a while after having made some; a guest
//! that halts does so right after talking to its devices. A guest at rest is then left alone until its
//! next exit, as is one that is paused until it goes on. Runs on the I/O thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vmm_sys_util::epoll::EventSet;

use crate::lifecycle::{ExitReason, Lifecycle};
use crate::pause::Position;
use crate::vcpu::thread::{Observed, State};

/// How long a guest must be quiet before mvm looks.
const QUIET: Duration = Duration::from_millis(300);
/// How long the vCPUs get to answer.
const ANSWER: Duration = Duration::from_millis(20);

/// What the watch waits for.
const RESTING: u8 = 0;
const ACTIVE: u8 = 1;
const QUIETING: u8 = 2;
const ASKING: u8 = 3;

/// The side that vCPU threads touch: one relaxed load per exit.
#[derive(Debug)]
pub(crate) struct HaltWatch {
    phase: AtomicU8,
    /// Set by any vCPU thread when it wakes the watch, and by the I/O thread.
    timer: OwnedFd,
}

impl HaltWatch {
    /// A watch at rest, until the guest's first exit.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self {
            phase: AtomicU8::new(RESTING),
            timer,
        })
    }

    /// The guest did something.
    #[inline]
    pub fn note_exit(&self) {
        if self.phase.load(Ordering::Relaxed) != ACTIVE {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if self.phase.swap(ACTIVE, Ordering::AcqRel) == RESTING {
            self.arm(QUIET);
        }
    }

    fn arm(&self, after: Duration) {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(after).unwrap_or_default(),
        };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            log::debug!("halt watch: {error}");
        }
    }

    fn advance(&self, from: u8, to: u8) -> bool {
        self.phase
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// The side that looks. The lifecycle owns the watch, and the I/O thread that runs this ends before it.
pub(crate) struct HaltWatcher {
    vcpus: Vec<Arc<Observed>>,
    lifecycle: Arc<Lifecycle>,
}

impl HaltWatcher {
    /// Looks at the vCPUs behind `vcpus`.
    pub fn new(vcpus: Vec<Arc<Observed>>, lifecycle: Arc<Lifecycle>) -> Self {
        Self { vcpus, lifecycle }
    }

    fn tick(&self) {
        let watch = self.lifecycle.watch();
        let paused = || self.lifecycle.gate().position() == Position::Shut;
        if paused() {
            watch.phase.store(RESTING, Ordering::Release);
            // It may have gone on just now, and found the watch awake.
            if !paused() {
                watch.wake();
            }
            return;
        }
        // Each phase lasts one timer; an exit in between starts over.
        if watch.advance(ACTIVE, QUIETING) {
            watch.arm(QUIET);
        } else if watch.advance(QUIETING, ASKING) {
            self.vcpus.iter().for_each(|vcpu| vcpu.ask());
            self.lifecycle.kick();
            watch.arm(ANSWER);
        } else if watch.phase.load(Ordering::Acquire) == ASKING {
            self.judge();
        }
    }

    fn judge(&self) {
        let watch = self.lifecycle.watch();
        let states: Vec<State> = self.vcpus.iter().map(|vcpu| vcpu.state()).collect();
        if states.iter().all(|state| *state == State::Dead) {
            self.lifecycle.end(Ok(ExitReason::Halted));
        } else if states
            .iter()
            .all(|state| matches!(state, State::Dead | State::Idle))
        {
            // At rest: left alone until its next exit. One that came just now has set ACTIVE.
            if !watch.advance(ASKING, RESTING) {
                watch.arm(QUIET);
            }
        } else {
            // Still computing: it is awake anyway, so look again later.
            watch.advance(ASKING, QUIETING);
            watch.arm(QUIET);
        }
    }
}

impl MutEventSubscriber for HaltWatcher {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.lifecycle.watch().timer, EventSet::IN)) {
            log::warn!("a guest that halts for good will not be noticed: {error}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        if rustix::io::read(&self.lifecycle.watch().timer, &mut [0; 8]).is_ok() {
            self.tick();
        }
    }
}
