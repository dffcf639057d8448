//! How much of the host's a guest can hold through a share: descriptors, and the memory that goes with
//! them.
//!
//! The server keeps a descriptor for every file the guest knows of and for every one it has open. The
//! guest decides how many that is, so they are counted here, and beyond the limit it is told ENFILE.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Inode numbers above this (which some file systems have, such as NFS) are remembered by the server even
/// after the guest forgot the file.
const LARGEST_FORGOTTEN: u64 = (1 << 47) - 1;
/// How many of those there may be.
const MAX_REMEMBERED: usize = 1 << 20;

/// What a guest holds, and may hold.
#[derive(Debug)]
pub(super) struct Limit {
    most: usize,
    held: AtomicUsize,
    /// Files that the guest knows of, and how often it was told of each. Shared by the lanes of a device.
    known: Mutex<HashMap<u64, u64>>,
    remembered: AtomicUsize,
}

fn full() -> io::Error {
    io::Error::from_raw_os_error(libc::ENFILE)
}

impl Limit {
    /// A guest that may hold `most` descriptors.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            held: AtomicUsize::new(0),
            known: Mutex::default(),
            remembered: AtomicUsize::new(0),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        // Each change is a single step, so a panic elsewhere leaves none half made.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one descriptor more.
    pub fn take(&self) -> io::Result<()> {
        let held = self.held.fetch_add(1, Ordering::Relaxed);
        if held < self.most {
            return Ok(());
        }
        self.give_back();
        Err(full())
    }

    /// Gives one back.
    pub fn give_back(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// The guest is to be told of `inode`, with the host's number `number`.
    pub fn tell(&self, inode: u64, number: u64) -> io::Result<()> {
        match self.known().entry(inode) {
            Entry::Occupied(mut times) => *times.get_mut() = times.get().saturating_add(1),
            Entry::Vacant(new) => {
                if number > LARGEST_FORGOTTEN
                    && self.remembered.fetch_add(1, Ordering::Relaxed) >= MAX_REMEMBERED
                {
                    return Err(full());
                }
                self.take()?;
                new.insert(1);
            }
        }
        Ok(())
    }

    /// The guest forgets that it was told of `inode` so many `times`.
    pub fn forget(&self, inode: u64, times: u64) {
        if let Entry::Occupied(mut told) = self.known().entry(inode) {
            if *told.get() > times {
                *told.get_mut() -= times;
            } else {
                told.remove();
                self.give_back();
            }
        }
    }

    /// The guest holds nothing any more.
    pub fn clear(&self) {
        self.known().clear();
        self.held.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_held_than_may_be() {
        let limit = Limit::new(3);
        limit.tell(7, 7).unwrap();
        limit.tell(7, 7).unwrap();
        limit.tell(8, 8).unwrap();
        limit.take().unwrap();
        for refused in [limit.tell(9, 9), limit.take()] {
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENFILE));
        }
        limit.tell(8, 8).unwrap();
        limit.forget(7, 1);
        assert!(limit.take().is_err(), "it was told of 7 twice");
        limit.forget(7, u64::MAX);
        limit.forget(7, 1);
        limit.take().unwrap();
        assert!(limit.take().is_err());
        limit.give_back();
        limit.tell(9, 9).unwrap();
        assert!(limit.tell(10, 10).is_err());
        limit.clear();
        limit.tell(10, 10).unwrap();
    }

    #[test]
    fn what_the_server_remembers_is_bounded_too() {
        let limit = Limit::new(2);
        limit
            .remembered
            .store(MAX_REMEMBERED - 1, Ordering::Relaxed);
        limit.tell(1, LARGEST_FORGOTTEN + 1).unwrap();
        assert!(limit.tell(2, LARGEST_FORGOTTEN + 1).is_err());
        limit.tell(2, LARGEST_FORGOTTEN).unwrap();
    }
}
