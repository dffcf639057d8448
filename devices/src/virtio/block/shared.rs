//! What a disk's face, its workers and its controls have in common: the image it stands on, and whether
//! requests are served.
//!
//! ```text
//! control: hold ─► bells ─► each worker: what is under way ends, the lane is closed ─► at rest
//!          … change the image, or leave it alone …
//! control: release ─► bells ─► each worker: what was kept, then what waits in its queues
//! ```
//!
//! There may be several reasons to hold at once; requests are served again when there is none left. They
//! wait in their queues meanwhile.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bitflags::bitflags;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::disk::{Disk, SECTOR};
use super::statistics::Tally;
use crate::virtio::VirtioInterrupt;

bitflags! {
    /// Why requests wait.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Holds: u8 {
        /// Somebody has paused the disk.
        const DISK = 1;
        /// Somebody has paused the VM.
        const MACHINE = 2;
        /// The host has failed a request, and that is to be seen to.
        const TROUBLE = 4;
        /// The image is being changed.
        const CHANGE = 8;
    }
}

/// What is done about the first request that fails.
type OnTrouble = Box<dyn Fn(&str) + Send + Sync>;

/// The parts of a disk share this.
pub(super) struct Shared {
    /// What it is called.
    pub(super) id: Arc<str>,
    /// Requests that the host fails are kept, and tried again when the disk goes on.
    pub(super) keeps_failed: bool,
    /// The way to the driver, once there is a transport.
    pub(super) interrupt: OnceLock<Arc<dyn VirtioInterrupt>>,
    /// What each lane has done, by the first of its queues. A lane counts, everybody reads.
    pub(super) tallies: Box<[Tally]>,
    /// Replaced by a control while no worker has a lane of it.
    disk: Mutex<Arc<dyn Disk>>,
    sectors: AtomicU64,
    /// [`Holds`], changed only under the lock of the desk.
    holds: AtomicU8,
    desk: Mutex<Desk>,
    rested: Condvar,
    /// Controls that change the image come one after the other.
    turn: Mutex<()>,
    on_trouble: OnceLock<OnTrouble>,
}

#[derive(Debug, Default)]
struct Desk {
    /// How often somebody has begun to hold.
    round: u64,
    seats: Vec<Entry>,
    next: u64,
    /// What the host has failed.
    trouble: Option<String>,
}

/// A worker that there is.
#[derive(Debug)]
struct Entry {
    number: u64,
    bell: Arc<EventFd>,
    /// In which round it was last at rest.
    rested: u64,
}

/// A worker's seat. Given up with it.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) shared: Arc<Shared>,
    number: u64,
    /// Wakes the worker when it is to rest or to go on.
    pub(super) bell: Arc<EventFd>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here is half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(disk: Arc<dyn Disk>, id: &str, queues: u16, keeps_failed: bool) -> Arc<Self> {
        Arc::new(Self {
            id: id.into(),
            keeps_failed,
            interrupt: OnceLock::new(),
            tallies: (0..queues).map(|_| Tally::default()).collect(),
            sectors: AtomicU64::new(disk.info().capacity / SECTOR),
            disk: Mutex::new(disk),
            holds: AtomicU8::new(0),
            desk: Mutex::default(),
            rested: Condvar::new(),
            turn: Mutex::default(),
            on_trouble: OnceLock::new(),
        })
    }

    /// The image it stands on now.
    pub(super) fn disk(&self) -> Arc<dyn Disk> {
        lock(&self.disk).clone()
    }

    /// Sectors that the driver may use.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Why requests wait.
    pub(super) fn holds(&self) -> Holds {
        Holds::from_bits_truncate(self.holds.load(Ordering::Acquire))
    }

    /// What the host has failed that nobody has seen to yet.
    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.desk).trouble.clone()
    }

    /// Says what is to be done about a request that fails; once.
    pub(super) fn set_on_trouble(&self, what: OnTrouble) {
        let _ = self.on_trouble.set(what);
    }

    /// Has requests wait from now on; does not wait for those under way.
    pub(super) fn hold(&self, why: Holds) {
        let mut desk = lock(&self.desk);
        self.holds.fetch_or(why.bits(), Ordering::AcqRel);
        desk.round += 1;
        desk.ring();
    }

    /// Has them go on, if no other reason is left.
    pub(super) fn release(&self, why: Holds) {
        let mut desk = lock(&self.desk);
        if why.contains(Holds::TROUBLE) {
            desk.trouble = None;
        }
        let before = self.holds.fetch_and(!why.bits(), Ordering::AcqRel);
        if before != 0 && before & !why.bits() == 0 {
            desk.ring();
        }
    }

    /// Waits until no request is under way, for `limit` at most; whether that is so.
    pub(super) fn wait_for_rest(&self, limit: Duration) -> bool {
        let busy = |desk: &mut Desk| desk.seats.iter().any(|seat| seat.rested < desk.round);
        let (_desk, waited) = self
            .rested
            .wait_timeout_while(lock(&self.desk), limit, busy)
            .unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    /// Does something to the image while no request is under way; none if those do not end in time.
    pub(super) fn alone<T>(&self, limit: Duration, work: impl FnOnce() -> T) -> Option<T> {
        let _turn = lock(&self.turn);
        self.hold(Holds::CHANGE);
        let done = self.wait_for_rest(limit).then(work);
        self.release(Holds::CHANGE);
        done
    }

    /// Stands on another image from now on; only [alone](Self::alone).
    pub(super) fn replace(&self, disk: Arc<dyn Disk>) {
        let old = std::mem::replace(&mut *lock(&self.disk), disk);
        // It may have much to write.
        drop(old);
    }

    /// The driver may use so many sectors from now on, and is told so.
    pub(super) fn set_capacity(&self, bytes: u64) {
        self.sectors.store(bytes / SECTOR, Ordering::Release);
        if let Some(interrupt) = self.interrupt.get()
            && let Err(error) = interrupt.config()
        {
            log::warn!(
                "disk {}: the guest is not told of its size: {error}",
                self.id
            );
        }
    }

    /// A seat for another worker.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn seat(self: &Arc<Self>) -> io::Result<Seat> {
        let bell = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let mut desk = lock(&self.desk);
        let number = desk.next;
        desk.next += 1;
        // It has nothing under way, and will find out by itself whether it may have.
        let rested = desk.round;
        desk.seats.push(Entry {
            number,
            bell: bell.clone(),
            rested,
        });
        Ok(Seat {
            shared: self.clone(),
            number,
            bell,
        })
    }
}

impl Desk {
    fn ring(&self) {
        for seat in &self.seats {
            // A saturated counter is a bell that rings already.
            let _ = seat.bell.write(1);
        }
    }
}

impl Seat {
    /// Whether requests wait.
    #[inline]
    pub(super) fn is_held(&self) -> bool {
        !self.shared.holds().is_empty()
    }

    /// This worker has nothing under way, and no lane.
    pub(super) fn rest(&self) {
        let mut desk = lock(&self.shared.desk);
        let round = desk.round;
        let own = desk
            .seats
            .iter_mut()
            .find(|seat| seat.number == self.number);
        if let Some(seat) = own {
            seat.rested = round;
        }
        self.shared.rested.notify_all();
    }

    /// The host has failed a request, which is kept: nothing more is begun until somebody has seen to it.
    pub(super) fn stop(&self, what: &str, error: &io::Error) {
        let shared = &self.shared;
        let trouble = format!("disk {}: {what} failed: {error}", shared.id);
        {
            let mut desk = lock(&shared.desk);
            let before = shared
                .holds
                .fetch_or(Holds::TROUBLE.bits(), Ordering::AcqRel);
            if before & Holds::TROUBLE.bits() != 0 {
                return;
            }
            desk.trouble = Some(trouble.clone());
        }
        match shared.on_trouble.get() {
            Some(tell) => tell(&trouble),
            None => log::error!("{trouble}; it waits until it is resumed"),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.shared.desk)
            .seats
            .retain(|seat| seat.number != self.number);
        self.shared.rested.notify_all();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("id", &self.id)
            .field("holds", &self.holds())
            .finish_non_exhaustive()
    }
}
