//! Pausing a VM: its vCPU threads stop at a gate, and the guest's clock stops with them.
//!
//! ```text
//! shut ─► kick ─► each vCPU leaves the guest and waits ─► the last to come reads the clock: still
//! open ─► the first to go sets the clock back ─► all go on, each telling its guest that it was stopped
//! ```
//!
//! What is beside the vCPUs goes on, as far as it can: a device takes what comes from outside as long as the
//! guest has left it room, and interrupts wait for the vCPUs. Only disks are stopped by themselves, so that
//! their images do not change. Whoever ends the VM opens the gate for good.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;

/// How long the vCPUs may take to come to the gate, and then the disks to end what they have begun. A vCPU in
/// the guest is there at once; one whose console is full waits for its reader first.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Why a VM could not be paused.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PauseError {
    /// It has ended.
    #[error("the VM has ended")]
    Over,
    /// A vCPU is held up where it cannot be stopped.
    #[error(
        "a vCPU has not stopped in time; does somebody read the console? the VM is paused once it has"
    )]
    Slow,
    /// The host holds up what a disk has begun.
    #[error("disk {0} has not ended what it had begun in time; is the host's disk stuck?")]
    Disk(String),
}

/// The guest's clock, as far as it can be stopped.
pub(crate) trait Clock: fmt::Debug + Send + Sync {
    /// What it shows; none if it cannot be read.
    fn read(&self) -> Option<u64>;
    /// Sets it.
    fn set(&self, time: u64);
}

/// Where the gate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Position {
    /// The VM runs.
    Open = 0,
    /// It is paused, or about to be.
    Shut = 1,
    /// It is over.
    Over = 2,
}

/// How a vCPU has come by the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It was open.
    Free,
    /// After a wait.
    Waited,
    /// The VM is over.
    Over,
}

/// The gate of one VM.
#[derive(Debug)]
pub(crate) struct Gate {
    /// A [`Position`], changed only under the lock.
    position: AtomicU8,
    crowd: Mutex<Crowd>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Crowd {
    /// vCPUs that come by.
    all: usize,
    /// Those that wait.
    waiting: usize,
    /// The clock when the last of them came.
    clock: Option<u64>,
}

impl Gate {
    pub fn new() -> Self {
        Self {
            position: AtomicU8::new(Position::Open as u8),
            crowd: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        // Counts, each of which is right by itself.
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn position(&self) -> Position {
        match self.position.load(Ordering::Acquire) {
            0 => Position::Open,
            1 => Position::Shut,
            _ => Position::Over,
        }
    }

    /// Under the lock.
    fn turn(&self, to: Position) {
        self.position.store(to as u8, Ordering::Release);
        self.changed.notify_all();
    }

    /// So many vCPUs will come by. Until this is said, the gate may be shut already.
    pub fn expect(&self, vcpus: usize) {
        self.crowd().all = vcpus;
    }

    /// Whether vCPUs are known to it.
    pub fn is_expecting(&self) -> bool {
        self.crowd().all > 0
    }

    /// Shuts it, if it is open: whoever is in the guest must be kicked then.
    pub fn shut(&self) -> bool {
        let _crowd = self.crowd();
        let open = self.position() == Position::Open;
        if open {
            self.turn(Position::Shut);
        }
        open
    }

    /// Opens it, if it is shut.
    pub fn open(&self) -> bool {
        let _crowd = self.crowd();
        let shut = self.position() == Position::Shut;
        if shut {
            self.turn(Position::Open);
        }
        shut
    }

    /// Lets nobody pass any more, and nobody wait.
    pub fn end(&self) {
        let _crowd = self.crowd();
        self.turn(Position::Over);
    }

    /// A vCPU comes by, and waits while the gate is shut.
    #[inline]
    pub fn pass(&self, clock: &dyn Clock) -> Passage {
        match self.position() {
            Position::Open => Passage::Free,
            Position::Shut => self.wait(clock),
            Position::Over => Passage::Over,
        }
    }

    #[cold]
    fn wait(&self, clock: &dyn Clock) -> Passage {
        let mut crowd = self.crowd();
        crowd.waiting += 1;
        if crowd.waiting == crowd.all {
            crowd.clock = clock.read();
            self.changed.notify_all();
        }
        let mut crowd = self
            .changed
            .wait_while(crowd, |_| self.position() == Position::Shut)
            .unwrap_or_else(PoisonError::into_inner);
        crowd.waiting -= 1;
        if self.position() == Position::Over {
            return Passage::Over;
        }
        // Under the lock: nobody else has left yet.
        if let Some(time) = crowd.clock.take() {
            clock.set(time);
        }
        Passage::Waited
    }

    /// Waits until all vCPUs wait at the shut gate, for `limit` at most.
    pub fn wait_until_still(&self, limit: Duration) -> Result<(), PauseError> {
        let coming =
            |crowd: &mut Crowd| self.position() == Position::Shut && crowd.waiting < crowd.all;
        let (_crowd, waited) = self
            .changed
            .wait_timeout_while(self.crowd(), limit, coming)
            .unwrap_or_else(PoisonError::into_inner);
        match self.position() {
            Position::Over => Err(PauseError::Over),
            Position::Shut if !waited.timed_out() => Ok(()),
            Position::Shut | Position::Open => Err(PauseError::Slow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    /// A clock that goes on by one each time somebody looks, and what was last set.
    #[derive(Debug, Default)]
    struct Ticks {
        now: AtomicU64,
        set: Mutex<Vec<u64>>,
    }

    impl Clock for Ticks {
        fn read(&self) -> Option<u64> {
            Some(self.now.fetch_add(1, Ordering::Relaxed) + 1)
        }
        fn set(&self, time: u64) {
            self.set.lock().unwrap().push(time);
        }
    }

    fn vcpus(gate: &Arc<Gate>, clock: &Arc<Ticks>, count: usize) -> Vec<thread::JoinHandle<u32>> {
        gate.expect(count);
        (0..count)
            .map(|_| {
                let (gate, clock) = (gate.clone(), clock.clone());
                thread::spawn(move || {
                    let mut waits = 0;
                    loop {
                        match gate.pass(clock.as_ref()) {
                            Passage::Free => thread::yield_now(),
                            Passage::Waited => waits += 1,
                            Passage::Over => return waits,
                        }
                    }
                })
            })
            .collect()
    }

    #[test]
    fn all_stop_and_the_clock_stops_with_the_last() {
        let (gate, clock) = (Arc::new(Gate::new()), Arc::new(Ticks::default()));
        let threads = vcpus(&gate, &clock, 3);
        for round in 1..=100 {
            assert!(gate.shut() && !gate.shut());
            assert_eq!(gate.wait_until_still(LONG), Ok(()));
            assert_eq!(clock.now.load(Ordering::Relaxed), round);
            assert!(gate.open() && !gate.open());
            // Until somebody has left, which may be after it is shut again, it is one stop.
            while clock.set.lock().unwrap().len() < usize::try_from(round).unwrap() {
                thread::yield_now();
            }
        }
        assert_eq!(*clock.set.lock().unwrap(), (1..=100).collect::<Vec<_>>());
        gate.shut();
        assert_eq!(gate.wait_until_still(LONG), Ok(()));
        gate.end();
        for thread in threads {
            // A thread that was slow to leave may have slept through some.
            assert!(thread.join().unwrap() <= 100);
        }
        assert!(!gate.shut() && !gate.open());
        assert_eq!(gate.wait_until_still(LONG), Err(PauseError::Over));
        assert_eq!(clock.set.lock().unwrap().len(), 100, "nobody goes on");
    }

    #[test]
    fn a_gate_that_is_reopened_before_anybody_left_has_been_shut_all_the_time() {
        let (gate, clock) = (Arc::new(Gate::new()), Arc::new(Ticks::default()));
        assert!(!gate.is_expecting());
        // Before there are any vCPUs, too.
        gate.shut();
        assert_eq!(gate.wait_until_still(LONG), Ok(()));
        let threads = vcpus(&gate, &clock, 1);
        assert_eq!(gate.wait_until_still(LONG), Ok(()));
        {
            let _crowd = gate.crowd();
            gate.turn(Position::Open);
            gate.turn(Position::Shut);
        }
        assert_eq!(gate.wait_until_still(LONG), Ok(()));
        gate.end();
        for thread in threads {
            assert!(thread.join().unwrap() <= 1);
        }
        assert_eq!(clock.now.load(Ordering::Relaxed), 1, "one stop");
    }

    #[test]
    fn whoever_waits_for_it_learns_that_it_is_not_still() {
        let gate = Gate::new();
        gate.expect(1);
        assert_eq!(
            gate.wait_until_still(LONG),
            Err(PauseError::Slow),
            "it is open"
        );
        gate.shut();
        let soon = Duration::from_millis(10);
        assert_eq!(gate.wait_until_still(soon), Err(PauseError::Slow));
    }
}
