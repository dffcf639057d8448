//! A request that the disk has, from when it is begun to its answer.

use std::time::Instant;

use vm_memory::Bytes;

use super::disk::DiskOp;
use super::request::{Clear, ID_BYTES, Range, Status};
use super::statistics::Operation;
use crate::io::QueueIo;
use crate::iovec::{self, IoVec};
use crate::mem::{GuestAddress, GuestMemory, GuestSlice};
use crate::virtio::{DeviceFault, QueueIndex};

/// A request that the disk has.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) queue: QueueIndex,
    pub(super) head: u16,
    pub(super) status: GuestAddress,
    pub(super) room: u32,
    /// Bytes of the room that are filled when all goes well.
    pub(super) fills: u32,
    /// For the log and the statistics.
    pub(super) operation: Operation,
    pub(super) bytes: u64,
    pub(super) began: Instant,
    /// Segments still to do, last one first.
    pub(super) rest: Vec<Range>,
}

impl Flight {
    /// Answers the request.
    ///
    /// The used length promises that this many bytes *from the start* of the writable buffers were
    /// written (§2.7.8.2), so the status byte counts only where everything before it was filled.
    pub(super) fn land(self, status: Status, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        put_status(io.memory(), self.status, status)
            .map_err(|_| fault(self.queue, "the status byte lies outside guest memory"))?;
        let len = if self.fills == self.room {
            self.fills.saturating_add(1)
        } else {
            self.fills
        };
        io.complete(self.queue, self.head, len)
    }
}

impl Clear {
    pub(super) fn operation(self) -> Operation {
        match self {
            Self::Discard => Operation::Discard,
            Self::Zero { .. } => Operation::WriteZeroes,
        }
    }
}

pub(super) fn clear_op(range: Range, through: bool) -> DiskOp<'static> {
    let Range { offset, len, clear } = range;
    match clear {
        Clear::Discard => DiskOp::Discard { offset, len },
        Clear::Zero { unmap } => DiskOp::WriteZeroes {
            offset,
            len,
            unmap,
            through,
        },
    }
}

/// Writes the disk's name, padded with zeroes, as far as there is room; returns how many bytes.
pub(super) fn put_id(id: &str, buffers: &[GuestSlice<'_>]) -> u32 {
    let mut name = [0; ID_BYTES];
    for (to, from) in name.iter_mut().zip(id.bytes()) {
        *to = from;
    }
    let buffers: Vec<_> = buffers.iter().map(IoVec::new).collect();
    // At most ID_BYTES.
    u32::try_from(iovec::scatter(&buffers, 0, &name)).unwrap_or(0)
}

fn put_status(
    memory: &GuestMemory,
    at: GuestAddress,
    status: Status,
) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(status as u8, at)
}

pub(super) fn fault(queue: QueueIndex, reason: &'static str) -> DeviceFault {
    DeviceFault::Request { queue, reason }
}
