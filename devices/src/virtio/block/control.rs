//! A disk's control: what can be done to it from any thread while its guest uses it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::disk::{Disk, ResizeError, SECTOR};
use super::image::ImageError;
use super::shared::{Holds, Shared};
use super::statistics::DiskStatistics;

/// How long requests under way may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why something cannot be done to a disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiskControlError {
    /// The host is slow.
    #[error("requests under way have not ended in time; is the host's disk stuck?")]
    Busy,
    /// Its size.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// The new image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The guest was told what it may do.
    #[error("the new image is {new}, and the guest was told that its disk is {old}")]
    Kind {
        /// What it can do.
        new: &'static str,
        /// What the old one could.
        old: &'static str,
    },
}

/// Whether a disk serves its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskState {
    /// It does.
    Running,
    /// It was paused, or its VM was.
    Paused,
    /// The host has failed a request, which is kept: what, on which disk, and why.
    Stopped(String),
}

/// Controls a disk. Cheap to clone, and of no use once the device is gone.
#[derive(Debug, Clone)]
pub struct DiskControl(pub(super) Arc<Shared>);

impl DiskControl {
    /// Makes on disk what has to be there before the guest runs: everything else has been checked.
    ///
    /// # Errors
    /// Nothing can be stored.
    pub fn begin(&self) -> Result<(), ImageError> {
        self.0.disk().begin()
    }

    /// What it is called: the serial number that the guest sees.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Its size in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.0.sectors() * SECTOR
    }

    /// Whether the guest may only read it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.0.disk().info().read_only
    }

    /// Whether it serves its guest.
    #[must_use]
    pub fn state(&self) -> DiskState {
        match self.0.trouble() {
            Some(trouble) => DiskState::Stopped(trouble),
            None if self.0.holds().intersects(Holds::DISK | Holds::MACHINE) => DiskState::Paused,
            None => DiskState::Running,
        }
    }

    /// What it has done so far.
    #[must_use]
    pub fn statistics(&self) -> DiskStatistics {
        let mut all = DiskStatistics::default();
        self.0
            .tallies
            .iter()
            .for_each(|tally| tally.add_to(&mut all));
        all
    }

    /// Has the guest's requests wait. When this returns, none is under way and the image stays as it is,
    /// though what was not flushed may be in the host's memory.
    ///
    /// # Errors
    /// Those under way have not ended in time; the disk is paused when they have.
    pub fn pause(&self) -> Result<(), DiskControlError> {
        self.0.hold(Holds::DISK);
        match self.0.wait_for_rest(PATIENCE) {
            true => Ok(()),
            false => Err(DiskControlError::Busy),
        }
    }

    /// Serves the guest's requests again, those first that the host had failed.
    pub fn resume(&self) {
        self.0.release(Holds::DISK | Holds::TROUBLE);
    }

    /// Has requests wait from now on, for the whole VM; [`is_at_rest`](Self::is_at_rest) tells when none is
    /// under way any more.
    pub fn pause_with_machine(&self) {
        self.0.hold(Holds::MACHINE);
    }

    /// Waits until no request is under way, where they are made to wait; whether that was so within `limit`.
    #[must_use]
    pub fn is_at_rest(&self, limit: Duration) -> bool {
        self.0.wait_for_rest(limit)
    }

    /// As [`resume`](Self::resume), for the whole VM.
    pub fn resume_with_machine(&self) {
        self.0.release(Holds::MACHINE | Holds::TROUBLE);
    }

    /// Puts everything on stable storage that the guest was told is written.
    ///
    /// # Errors
    /// It is not there.
    pub fn flush(&self) -> io::Result<()> {
        self.0.disk().flush()
    }

    /// Gives the disk a size, or without one that which its image has now; the guest is told. Returns the
    /// size. What a smaller disk had beyond its end is lost, and with the guest's file systems in mind it is
    /// for the guest to shrink those first.
    ///
    /// # Errors
    /// The image cannot have it; nothing has changed.
    pub fn resize(&self, bytes: Option<u64>) -> Result<u64, DiskControlError> {
        let resize = || -> Result<u64, DiskControlError> {
            let capacity = self.0.disk().resize(bytes)?;
            self.0.set_capacity(capacity);
            Ok(capacity)
        };
        let done = self.0.alone(PATIENCE, resize);
        done.unwrap_or(Err(DiskControlError::Busy))
    }

    /// Stands on another image from now on, which was opened like the old one; the guest is told to look at
    /// its size again. When this returns the old one is closed and unlocked.
    ///
    /// # Errors
    /// It cannot take the place of the old one, which stays.
    pub fn replace(&self, disk: Arc<dyn Disk>) -> Result<(), DiskControlError> {
        let kind = |disk: &dyn Disk| match disk.info().read_only {
            true => "read-only",
            false => "writable",
        };
        let old = self.0.disk();
        let (new, old_kind) = (kind(disk.as_ref()), kind(old.as_ref()));
        if new != old_kind {
            return Err(DiskControlError::Kind { new, old: old_kind });
        }
        if self.0.tallies.len() > 1 && old.is_parallel() && !disk.is_parallel() {
            return Err(DiskControlError::Kind {
                new: "one for a single queue",
                old: "served by several",
            });
        }
        drop(old);
        disk.begin()?;
        let replace = || {
            let capacity = disk.info().capacity;
            self.0.replace(disk);
            self.0.set_capacity(capacity);
        };
        let done = self.0.alone(PATIENCE, replace);
        done.ok_or(DiskControlError::Busy)
    }

    /// Says what to do when the host fails a request of a disk that keeps those: `what` is told which disk,
    /// which request and why, on an I/O thread, so it must not wait. Once in the life of a disk.
    pub fn on_trouble(&self, what: impl Fn(&str) + Send + Sync + 'static) {
        self.0.set_on_trouble(Box::new(what));
    }
}
