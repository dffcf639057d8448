//! What a block device stands on: the one trait behind which files, overlays and formats live, and the
//! one behind which engines do.
//!
//! A [`Disk`] is what all queues of a device share: an image of some format, opened once. A [`DiskLane`]
//! is one queue's own way to it, with an engine of its own, made when the driver is ready and gone at
//! its reset. Formats translate, engines move bytes, and neither knows the other.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::image::ImageError;
use crate::mem::GuestSlice;

/// Bytes in a sector, the unit of virtio-blk addresses whatever the block size (Virtio 1.2 §5.2.2).
pub const SECTOR: u64 = 512;

/// What a disk can do and how large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskInfo {
    /// Size in bytes, a multiple of [`SECTOR`].
    pub capacity: u64,
    /// The device refuses writes before they get here.
    pub read_only: bool,
    /// The block size that suits the host best, in bytes; a power of two from 512 up.
    pub block_size: u32,
    /// Discard and write-zeroes give space back to the host.
    pub discard: bool,
}

/// Why a disk cannot have a size.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// Its format, or an overlay, was made for a size.
    #[error("only a disk of one raw image, without an overlay, can have another size")]
    Fixed,
    /// A size that none can have.
    #[error("its size cannot be {bytes} bytes, only a multiple of {block}, and not 0")]
    Size {
        /// What was asked for.
        bytes: u64,
        /// What it must be a multiple of.
        block: u64,
    },
    /// It may not be written.
    #[error("it is read-only; change the image itself, then have the VM look at its size again")]
    ReadOnly,
    /// A block device is as large as it is.
    #[error("a block device is resized on the host; then have the VM look at its size again")]
    Device,
    /// The host refused.
    #[error("its image cannot be resized: {0}")]
    Host(#[source] io::Error),
}

/// Names an operation while it is under way. The device picks it; the lane hands it back. No two
/// operations under way in a lane have the same, and each is less than the lane's depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(pub u32);

/// One operation. Offsets and lengths are in bytes and were checked against the capacity.
#[derive(Debug, Clone, Copy)]
pub enum DiskOp<'a> {
    /// Fill `buffers` from `offset`.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Guest memory, in order.
        buffers: &'a [GuestSlice<'a>],
    },
    /// Store `buffers` at `offset`.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Guest memory, in order.
        buffers: &'a [GuestSlice<'a>],
        /// The data must be on stable storage before the write is reported done.
        through: bool,
    },
    /// Everything reported done before this is on stable storage when this is done.
    Flush,
    /// The contents of the range no longer matter.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// The range reads as zeroes from now on.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// The space may be given back to the host.
        unmap: bool,
        /// The zeroes must be on stable storage before they are reported done.
        through: bool,
    },
}

/// What became of a submitted operation.
#[derive(Debug)]
pub enum Progress {
    /// It ended, well or not.
    Done(io::Result<()>),
    /// It goes on; its tag comes out of [`DiskLane::completed`] later.
    Pending,
}

/// A disk image, whatever its format. Shared by the lanes of one block device.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Size and abilities.
    fn info(&self) -> DiskInfo;
    /// Makes on disk what has to be there before the driver comes. Until then the disk has changed
    /// nothing, so that everything else can be checked first.
    ///
    /// # Errors
    /// Nothing can be stored.
    fn begin(&self) -> Result<(), ImageError> {
        Ok(())
    }
    /// Whether several lanes may be open at once; otherwise the next is opened when the last is gone.
    fn is_parallel(&self) -> bool {
        false
    }
    /// Puts everything on stable storage that was reported done. May be called while lanes are in use.
    ///
    /// # Errors
    /// It is not there.
    fn flush(&self) -> io::Result<()>;
    /// Gives it a size, or finds out which one its image has now. Called while no lane is open.
    ///
    /// # Errors
    /// It keeps the one it has.
    fn resize(&self, _bytes: Option<u64>) -> Result<u64, ResizeError> {
        Err(ResizeError::Fixed)
    }
    /// A way to the data for one thread, with at most `depth` operations under way.
    ///
    /// # Errors
    /// The host lacks what the engine needs.
    fn lane(&self, depth: u16) -> io::Result<Box<dyn DiskLane>>;
}

/// Has a lane that completes operations later wake whoever waits at `wake`.
///
/// # Errors
/// The host lacks what that takes.
pub(in crate::virtio) fn watched(
    lane: Box<dyn DiskLane>,
    wake: &Epoll,
) -> io::Result<Box<dyn DiskLane>> {
    if let Some(event) = lane.completion_event() {
        wake.ctl(
            ControlOperation::Add,
            event,
            EpollEvent::new(EventSet::IN, 0),
        )?;
    }
    Ok(lane)
}

/// A way to a disk's data, called from one thread at a time. Operations under way may be done in any
/// order: a driver that cares waits for the first.
///
/// The slices of a pending operation are gone when [`submit`](Self::submit) returns, but the guest memory
/// behind them stays mapped until the operation completes, so an engine keeps their addresses. The device
/// takes every pending operation back before it lets go of the memory.
pub trait DiskLane: fmt::Debug + Send {
    /// Takes `op`. A synchronous lane ends it here; another may keep it until [`start`](Self::start).
    fn submit(&mut self, tag: Tag, op: DiskOp<'_>) -> Progress;
    /// Starts whatever was submitted and not started yet, all in one go.
    fn start(&mut self) {}
    /// Becomes readable when operations complete later; `None` for a lane that is always done at once.
    fn completion_event(&self) -> Option<RawFd> {
        None
    }
    /// Takes the operations that completed since the last call. With `wait`, and any pending, waits until
    /// there is at least one; to return none then is to say that the pending ones are lost.
    fn completed(&mut self, _wait: bool) -> Vec<(Tag, io::Result<()>)> {
        Vec::new()
    }
}
