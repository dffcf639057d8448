//! A worker's view of its virtqueues: take chains, give them back.
//!
//! Everything a chain says is checked, once, before a device sees it: what a [`Chain`] holds is inside guest
//! memory, in the order Virtio 1.2 §2.7.4.2 asks for, and finite. Runs on the I/O thread that owns the session.

use std::sync::atomic::Ordering;

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes};

use super::chain::{Chain, walk};
use super::used;
use crate::mem::{GuestAddress, GuestMemory};
use crate::virtio::{DeviceFault, Features, QueueIndex};

/// The queues of one device, for the length of one event.
#[derive(Debug)]
pub struct QueueIo<'m> {
    memory: &'m GuestMemory,
    queues: &'m mut [Queue],
    features: Features,
    completed: QueueSet,
    /// The queue that was looked at last, and up to where the driver had filled it.
    seen: Option<(QueueIndex, u16)>,
    /// Queues that were found empty, and got no chain since.
    empty: QueueSet,
    /// Queues that a worker had to leave with chains in them, to be called again for them at once.
    cut_short: QueueSet,
    /// What may still be done in this event.
    budget: Budget,
}

/// What a worker may do in one event before the other devices of its thread, and a reset of its own, get
/// their turn. What was begun when it runs out is finished, so an event can have one chain more: 4 GiB.
#[derive(Debug)]
struct Budget {
    chains: u32,
    bytes: u64,
}

impl Budget {
    const EVENT: Self = Self {
        chains: 1024,
        bytes: 16 << 20,
    };

    fn is_spent(&self) -> bool {
        self.chains == 0 || self.bytes == 0
    }
}

/// The most queues a device may have.
pub const MAX_QUEUES: u16 = 64;

/// A set of queues of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueSet(u64);

impl QueueSet {
    /// Every queue a device may have.
    pub const ALL: Self = Self(u64::MAX);

    /// The set of `queues`.
    #[must_use]
    pub fn of(queues: impl IntoIterator<Item = QueueIndex>) -> Self {
        let mut set = Self::default();
        queues.into_iter().for_each(|queue| set.insert(queue));
        set
    }

    /// Whether `queue` is in the set.
    #[must_use]
    pub fn contains(self, queue: QueueIndex) -> bool {
        queue.0 < MAX_QUEUES && self.0 & (1 << queue.0) != 0
    }

    /// Puts `queue` into the set.
    pub fn insert(&mut self, queue: QueueIndex) {
        if queue.0 < MAX_QUEUES {
            self.0 |= 1 << queue.0;
        }
    }

    /// The queues in it.
    pub fn iter(self) -> impl Iterator<Item = QueueIndex> {
        (0..MAX_QUEUES)
            .map(QueueIndex)
            .filter(move |queue| self.contains(*queue))
    }

    /// Takes `queue` out of the set.
    pub fn remove(&mut self, queue: QueueIndex) {
        if queue.0 < MAX_QUEUES {
            self.0 &= !(1 << queue.0);
        }
    }
}

impl<'m> QueueIo<'m> {
    /// A view of `queues` over `memory`, for a driver that accepted `features`.
    pub fn new(memory: &'m GuestMemory, queues: &'m mut [Queue], features: Features) -> Self {
        Self {
            memory,
            queues,
            features,
            completed: QueueSet::default(),
            seen: None,
            empty: QueueSet::default(),
            cut_short: QueueSet::default(),
            budget: Budget::EVENT,
        }
    }

    /// The queues that got chains back during this event.
    #[must_use]
    pub fn completed(&self) -> QueueSet {
        self.completed
    }

    /// The queues that [`pop`](Self::pop) found empty: the driver must kick when it fills them.
    #[must_use]
    pub fn empty(&self) -> QueueSet {
        self.empty
    }

    /// The queues of which [`pop`](Self::pop) gave `None` only because this event has had its share, or
    /// for which the worker wants to [come again](Self::come_again).
    #[must_use]
    pub fn cut_short(&self) -> QueueSet {
        self.cut_short
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &'m GuestMemory {
        self.memory
    }

    /// What the driver accepted.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Whether the driver uses `queue`. One that it has not set up cannot be popped.
    #[must_use]
    pub fn is_ready(&self, queue: QueueIndex) -> bool {
        let queue = self.queues.get(usize::from(queue.0));
        queue.is_some_and(QueueT::ready)
    }

    /// The next chain the driver made available in `queue`, or `None` if there is none, or if this
    /// event has had its share.
    ///
    /// # Errors
    /// The ring or the chain is malformed; the device must go to NEEDS_RESET.
    pub fn pop(&mut self, queue: QueueIndex) -> Result<Option<Chain<'m>>, DeviceFault> {
        let ring = |source| DeviceFault::Ring { queue, source };
        let memory = self.memory;
        if !self.has_more(queue)? {
            self.empty.insert(queue);
            return Ok(None);
        }
        self.empty.remove(queue);
        if self.budget.is_spent() {
            self.cut_short.insert(queue);
            return Ok(None);
        }
        let q = self.queue(queue)?;
        let next = q.next_avail();
        // §2.7.6: flags, index, ring.
        let entry = GuestAddress(q.avail_ring())
            .checked_add(4 + 2 * u64::from(next % q.size()))
            .ok_or_else(|| ring(QueueError::AddressOverflow))?;
        let head = memory
            .load(entry, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|error| ring(QueueError::GuestMemory(error)))?;
        q.set_next_avail(next.wrapping_add(1));
        let (chain, bytes) = chain_at(q, queue, memory, head)?;
        self.budget.chains -= 1;
        self.charge(bytes);
        Ok(Some(chain))
    }

    /// The chain that was popped from `queue` as `head` and not given back, once more: as the driver has it
    /// now.
    ///
    /// # Errors
    /// As for [`pop`](Self::pop).
    pub fn again(&mut self, queue: QueueIndex, head: u16) -> Result<Chain<'m>, DeviceFault> {
        let memory = self.memory;
        let q = self.queue(queue)?;
        let (chain, bytes) = chain_at(q, queue, memory, head)?;
        self.charge(bytes);
        Ok(chain)
    }

    /// Counts work of so many bytes against the event's share, beyond what lies in the buffers: a few bytes
    /// of request can ask for gigabytes to be cleared.
    pub fn charge(&mut self, bytes: u64) {
        self.budget.bytes = self.budget.bytes.saturating_sub(bytes);
    }

    /// Puts the chain that was popped last from `queue` back, as if it had not been popped; may be
    /// repeated for the ones before it. The worker comes back for them by itself.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn unpop(&mut self, queue: QueueIndex) -> Result<(), DeviceFault> {
        self.queue(queue)?.go_to_previous_position();
        self.empty.remove(queue);
        Ok(())
    }

    /// Has the worker called for `queue` again, after the other devices of its thread had their turn: for
    /// one that stops because this event has done enough, whatever it counts.
    pub fn come_again(&mut self, queue: QueueIndex) {
        self.cut_short.insert(queue);
    }

    /// Gives chain `head` of `queue` back to the driver, with `len` bytes written into it. Whether the
    /// driver is interrupted is decided once, at the end of the event.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn complete(&mut self, queue: QueueIndex, head: u16, len: u32) -> Result<(), DeviceFault> {
        self.complete_together(queue, &[(head, len)])
    }

    /// As [`complete`](Self::complete) for several chains that mean something only together: the driver
    /// sees all of them at once or none.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn complete_together(
        &mut self,
        queue: QueueIndex,
        chains: &[(u16, u32)],
    ) -> Result<(), DeviceFault> {
        let memory = self.memory;
        used::publish(self.queue(queue)?, memory, chains)
            .map_err(|source| DeviceFault::Ring { queue, source })?;
        self.completed.insert(queue);
        Ok(())
    }

    /// Number of entries the driver gave `queue`.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn size(&mut self, queue: QueueIndex) -> Result<u16, DeviceFault> {
        self.queue(queue).map(|q| q.size())
    }

    /// Whether the driver has made chains available that were not popped yet.
    ///
    /// # Errors
    /// The avail ring cannot be read.
    pub fn has_more(&mut self, queue: QueueIndex) -> Result<bool, DeviceFault> {
        let memory = self.memory;
        let seen = self.seen;
        let ring = |source| DeviceFault::Ring { queue, source };
        let q = self.queue(queue)?;
        let next = q.next_avail();
        // What was there once is there for good. The driver writes the index for each chain, so that each look at
        // it takes the cache line away from its processor.
        if let Some((_, available)) = seen.filter(|(index, _)| *index == queue)
            && available != next
        {
            return Ok(true);
        }
        let available = q.avail_idx(memory, Ordering::Acquire).map_err(ring)?.0;
        if available.wrapping_sub(next) > q.size() {
            return Err(ring(QueueError::InvalidAvailRingIndex));
        }
        self.seen = Some((queue, available));
        Ok(available != next)
    }

    fn queue(&mut self, queue: QueueIndex) -> Result<&mut Queue, DeviceFault> {
        self.queues
            .get_mut(usize::from(queue.0))
            .filter(|q| q.ready())
            .ok_or(DeviceFault::Ring {
                queue,
                source: QueueError::QueueNotReady,
            })
    }
}

/// The chain `head` of `queue`, all of its descriptors checked, and the bytes in its buffers.
fn chain_at<'m>(
    q: &Queue,
    queue: QueueIndex,
    memory: &'m GuestMemory,
    head: u16,
) -> Result<(Chain<'m>, u64), DeviceFault> {
    // §2.7.5.3.1 limits a chain to the size of its queue. Linux, when it must settle for a smaller
    // queue than offered, goes on making indirect chains for the size offered; they cost no more.
    let (table, longest) = ((q.desc_table(), q.size()), q.max_size());
    walk(memory, table, head, longest).map_err(|reason| DeviceFault::Chain {
        queue,
        head,
        reason,
    })
}
