//! Who moves the bytes: system calls that are done when they return, or io_uring. Both serve any
//! [`Store`].

use std::io;
use std::sync::Arc;

use super::disk::DiskLane;
use super::store::Store;

pub(super) mod sync;
mod uring;

/// Which engine moves the data of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring where the host's kernel has it, found out when the driver is ready.
    #[default]
    Auto,
    /// One system call after the other.
    Sync,
    /// io_uring: many requests with one system call, and nobody waits for a disk.
    IoUring,
}

impl Engine {
    /// Whether the host's kernel has what the engine needs.
    ///
    /// # Errors
    /// Why not.
    pub fn check(self) -> io::Result<()> {
        match self {
            Self::Auto | Self::Sync => Ok(()),
            Self::IoUring => uring::check(),
        }
    }
}

/// A lane of `store`, with at most `depth` operations under way.
pub(super) fn lane(
    engine: Engine,
    store: &Arc<dyn Store>,
    depth: u16,
) -> io::Result<Box<dyn DiskLane>> {
    let sync = || -> Box<dyn DiskLane> { Box::new(sync::SyncLane::new(store.clone())) };
    let uring = || -> io::Result<Box<dyn DiskLane>> {
        Ok(Box::new(uring::UringLane::new(store.clone(), depth)?))
    };
    match engine {
        // A store that reads and writes by itself has no use for a ring.
        _ if store.file_count() == 0 => Ok(sync()),
        Engine::Sync => Ok(sync()),
        Engine::IoUring => uring(),
        Engine::Auto => Ok(uring().unwrap_or_else(|error| {
            log::debug!("no io_uring, so disks use plain system calls: {error}");
            sync()
        })),
    }
}
