//! What a block device stands on: the one trait behind which files, overlays and formats live.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

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

/// Names an operation while it is under way. The device picks it; the disk hands it back. No two
/// operations under way have the same.
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
    /// It goes on; its tag comes out of [`Disk::completed`] later.
    Pending,
}

/// A disk image, whatever its format or engine. Owned by one block device and called from one thread at
/// a time. Operations under way may be done in any order: a driver that cares waits for the first.
///
/// The slices of a pending operation are gone when [`submit`](Self::submit) returns, but the guest memory
/// behind them stays mapped until the operation completes, so an engine keeps their addresses. The device
/// takes every pending operation back before it lets go of the memory.
pub trait Disk: fmt::Debug + Send {
    /// Size and abilities. Must not change while a driver is attached.
    fn info(&self) -> DiskInfo;
    /// Up to 20 bytes that name the disk to the guest (Virtio 1.2 §5.2.6, VIRTIO_BLK_T_GET_ID).
    fn id(&self) -> &str;
    /// Starts `op`. A synchronous disk ends it here.
    fn submit(&mut self, tag: Tag, op: DiskOp<'_>) -> Progress;
    /// Becomes readable when operations complete later; `None` for a disk that is always done at once.
    fn completion_event(&self) -> Option<RawFd> {
        None
    }
    /// Takes the operations that completed since the last call. With `wait`, and any pending, waits until
    /// there is at least one; to return none then is to say that the pending ones are lost.
    fn completed(&mut self, _wait: bool) -> Vec<(Tag, io::Result<()>)> {
        Vec::new()
    }
}
