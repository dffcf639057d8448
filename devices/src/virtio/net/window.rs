//! The receive buffers a card holds ready: popped once, filled frame by frame.
//!
//! How long the next frame is nobody knows before it is there, so the window holds room for the longest.
//! What a frame leaves over waits in the window for the next one, across events too; chains are parsed
//! once, however many frames come. Before a reset or a pause they go back into the queue.
//!
//! ```text
//! avail ring ──pop──► [ chain chain chain chain chain ] ◄── readv ── tap
//!                       └─ frame, 2 buffers ─┘  ▲
//!                          used ring ◄──────────┘ the rest stays
//! ```

use std::collections::VecDeque;

use super::backend::HEADER;
use crate::io::QueueIo;
use crate::iovec::{self, HeldBuffers, IoVec, MAX_BUFFERS};
use crate::virtio::{DeviceFault, QueueIndex};

/// Offset of `num_buffers` in `struct virtio_net_hdr`. Virtio 1.2 §5.1.6.
const NUM_BUFFERS: usize = 10;
/// A chain has at most a quarter of what the kernel takes at once, a seam in guest memory included; so
/// up to here there is room for one more.
const FULL: usize = MAX_BUFFERS / 2;

/// A chain in the window.
#[derive(Debug)]
struct Held {
    head: u16,
    buffers: usize,
    bytes: usize,
}

/// The window of one receive queue.
#[derive(Debug)]
pub(super) struct Window {
    queue: QueueIndex,
    /// VIRTIO_NET_F_MRG_RXBUF: a frame may go on in the next chain.
    mergeable: bool,
    chains: VecDeque<Held>,
    buffers: HeldBuffers,
    /// Bytes in them.
    room: usize,
    /// What one frame uses, here for its allocation.
    used: Vec<(u16, u32)>,
}

impl Window {
    pub(super) fn new(queue: QueueIndex, mergeable: bool) -> Self {
        Self {
            queue,
            mergeable,
            chains: VecDeque::new(),
            buffers: HeldBuffers::default(),
            room: 0,
            used: Vec::new(),
        }
    }

    /// Where the next frame may go.
    pub(super) fn buffers(&self) -> &[IoVec<'_>] {
        self.buffers.as_slice()
    }

    /// Bytes the next frame may have.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// Whether waiting for more chains makes no sense: a frame may use no more of them, or the driver
    /// has no more.
    pub(super) fn is_at_its_largest(&self, io: &mut QueueIo<'_>) -> Result<bool, DeviceFault> {
        let size = usize::from(io.size(self.queue)?);
        Ok(!self.mergeable || self.buffers.len() >= size.min(FULL))
    }

    /// Takes chains until there is room for `want` bytes, or there are no more.
    pub(super) fn fill(&mut self, io: &mut QueueIo<'_>, want: usize) -> Result<(), DeviceFault> {
        while self.chains.is_empty()
            || self.mergeable && self.room < want && self.buffers.len() < FULL
        {
            let Some(chain) = io.pop(self.queue)? else {
                break;
            };
            let bytes = chain.writable.iter().map(|slice| slice.len()).sum();
            let fault = |reason| DeviceFault::Request {
                queue: self.queue,
                reason,
            };
            if !chain.readable.is_empty() {
                return Err(fault("a receive buffer to read from"));
            }
            if bytes < HEADER {
                return Err(fault("a receive buffer shorter than a header"));
            }
            self.chains.push_back(Held {
                head: chain.head,
                buffers: chain.writable.len(),
                bytes,
            });
            self.room += bytes;
            // SAFETY: the slices are of a chain in the memory of this session, of which there is one as
            // long as the worker lives.
            unsafe { self.buffers.push(io.memory(), &chain.writable) };
        }
        Ok(())
    }

    /// Gives the driver a frame of `len` bytes, at least a header and at most the room.
    pub(super) fn give(&mut self, io: &mut QueueIo<'_>, len: usize) -> Result<(), DeviceFault> {
        self.used.clear();
        let mut rest = len;
        let mut buffers = 0;
        for held in &self.chains {
            let here = rest.min(held.bytes);
            // At most a frame's length, which has at most 17 bits.
            self.used
                .push((held.head, u32::try_from(here).unwrap_or(0)));
            buffers += held.buffers;
            rest -= here;
            if rest == 0 {
                break;
            }
        }
        // §5.1.6.4.1: the number of chains, which is 1 for a driver that does not know of more.
        let count = u16::try_from(self.used.len()).unwrap_or(0);
        iovec::scatter(self.buffers(), NUM_BUFFERS, &count.to_le_bytes());
        io.complete_soon(self.queue, &self.used)?;
        let given = self.chains.drain(..self.used.len());
        self.room -= given.map(|held| held.bytes).sum::<usize>();
        self.buffers.release(buffers);
        Ok(())
    }

    /// Puts all chains back into the queue.
    pub(super) fn put_back(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while self.chains.pop_back().is_some() {
            io.unpop(self.queue)?;
        }
        self.buffers.release(self.buffers.len());
        self.room = 0;
        Ok(())
    }
}
