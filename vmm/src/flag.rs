//! An eventfd used as a flag that `poll` can wait for: how threads of a process wake each other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};

/// A flag to raise, poll and lower, from any thread.
#[derive(Debug)]
pub struct Flag(OwnedFd);

impl Flag {
    /// Lowered.
    ///
    /// # Errors
    /// This process has too many descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Raises it, once more where it is raised already.
    pub fn raise(&self) {
        // It can fail only by its counter being saturated, when it is raised anyway.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Lowers it; how often it had been raised.
    pub fn lower(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            // It is not raised.
            Err(_) => 0,
        }
    }
}

impl AsFd for Flag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Flag {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
