//! virtio-fs, Virtio 1.2 §5.11: a directory of the host's in the guest.
//!
//! ```text
//! chain ─► bridge ─► Server (FUSE messages) ─► Guard (what a guest may) ─► PassthroughFs ─► the host
//! ```
//!
//! Requests are FUSE messages. They are read and obeyed by the crate fuse-backend-rs; a [`guard`] between
//! its two halves refuses what a guest must not do. The guest names files by numbers that it was given and
//! single names in directories; the server looks these up relative to a descriptor of the directory, one
//! at a time and without following links, so that there is no way out of the shared directory, whatever
//! is renamed at the same time on either side. Symbolic links are the guest's to follow.
//!
//! The device has one request queue and no DAX window, offers no notifications, and has an I/O thread of
//! its own, as calls to a file system may block.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use fuse_backend_rs::api::server::Server;
use rustix::fs::{CWD, Mode, OFlags};

use self::guard::Guard;
use self::worker::Worker;
use super::{ActivateError, Features, Lane, VirtioDevice, VirtioKind, read_from};

mod bridge;
mod guard;
mod limit;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod worker;

/// The longest tag, §5.11.4.
pub const MAX_TAG: usize = 36;
/// §5.11.2: one queue for requests that must not wait, of which Linux sends FORGET there, and this many
/// for the others.
const REQUEST_QUEUES: u32 = 1;
/// Requests under way; an indirect chain may be as long, and Linux makes none of more than 256 pages.
const QUEUE_SIZE: u16 = bridge::MAX_BUFFERS;

/// How a directory is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareOptions {
    /// The guest may change nothing.
    pub read_only: bool,
    /// The most descriptors that it may have this process hold: one for each file it knows of or has open.
    pub max_files: usize,
}

/// A shared directory. Owned by its transport.
#[derive(Debug)]
pub struct Share {
    root: Arc<OwnedFd>,
    tag: [u8; MAX_TAG],
    options: ShareOptions,
}

impl Share {
    /// Shares `directory`, also if it is moved later, under `tag`, of which the first [`MAX_TAG`] bytes count.
    ///
    /// # Errors
    /// There is no such directory, or it may not be looked at.
    pub fn open(directory: &Path, tag: &str, options: ShareOptions) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
        let mut padded = [0; MAX_TAG];
        for (to, from) in padded.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        Ok(Self {
            root: Arc::new(root),
            tag: padded,
            options,
        })
    }
}

impl VirtioDevice for Share {
    fn kind(&self) -> VirtioKind {
        VirtioKind::FileSystem
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 1 + REQUEST_QUEUES as usize]
    }

    fn features(&self) -> Features {
        Features::VERSION_1 | Features::INDIRECT_DESC | Features::EVENT_IDX
    }

    /// §5.11.4, `struct virtio_fs_config`: the tag and the number of request queues.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.tag.into_iter().chain(REQUEST_QUEUES.to_le_bytes());
        read_from(bytes, offset, data);
    }

    fn blocks(&self) -> bool {
        true
    }

    fn activate(&mut self, _acked: Features) -> Result<Vec<Lane>, ActivateError> {
        let guard =
            Guard::new(self.root.clone(), self.options).map_err(|source| ActivateError {
                what: "shared directory",
                source: Some(source),
            })?;
        Ok(Lane::whole(Worker::new(Arc::new(Server::new(guard)))))
    }
}
