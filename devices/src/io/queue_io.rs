//! A worker's view of its virtqueues: take chains, give them back.
//!
//! Everything a chain says is checked, once, before a device sees it: what a [`Chain`] holds is inside guest
//! memory, in the order Virtio 1.2 §2.7.4.2 asks for, and finite. Runs on the I/O thread that owns the session.

use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};

use super::chain::{Chain, Table, walk};
use super::used;
use crate::mem::{GuestAddress, GuestMemory, Stretch};
use crate::virtio::{DeviceFault, Features, QueueIndex};

/// The queues of one device, for the length of one event.
#[derive(Debug)]
pub struct QueueIo<'m> {
    memory: &'m GuestMemory,
    queues: &'m mut [Queue],
    features: Features,
    completed: QueueSet,
    /// Of each queue that was used in this event, where it is. Few devices use more than two in one.
    views: SmallVec<[View<'m>; 2]>,
    /// Queues that were found empty, and got no chain since.
    empty: QueueSet,
    /// Queues that a worker had to leave with chains in them, to be called again for them at once.
    cut_short: QueueSet,
    /// What may still be done in this event.
    budget: Budget,
}

/// What a worker has done with a queue during an event.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Use {
    /// Chains that were popped, less those that were put back.
    pub taken: i32,
    /// Chains that were given back to the driver.
    pub given: i32,
}

/// Where a queue is in guest memory, and how far it has been looked at.
#[derive(Debug)]
struct View<'m> {
    queue: QueueIndex,
    table: Table<'m>,
    available: Stretch<'m>,
    used: Stretch<'m>,
    /// Up to where the driver had filled the avail ring.
    seen: Option<u16>,
    /// Chains in the used ring that the driver does not see yet.
    unpublished: usize,
    done: Use,
}

impl<'m> View<'m> {
    fn new(memory: &'m GuestMemory, index: QueueIndex, queue: &Queue) -> Self {
        Self {
            queue: index,
            table: Table::new(memory, GuestAddress(queue.desc_table()), queue.size()),
            available: used::avail_ring(memory, queue),
            used: used::used_ring(memory, queue),
            seen: None,
            unpublished: 0,
            done: Use::default(),
        }
    }

    fn fault(&self, source: QueueError) -> DeviceFault {
        let queue = self.queue;
        DeviceFault::Ring { queue, source }
    }

    /// Whether the driver has made chains available beyond the next one that `queue` expects.
    fn has_more(&mut self, queue: &Queue) -> Result<bool, DeviceFault> {
        let next = queue.next_avail();
        // What was there once is there for good. The driver writes the index for each chain, so that each look at
        // it takes the cache line away from its processor.
        if self.seen.is_some_and(|available| available != next) {
            return Ok(true);
        }
        let available = self.available.load(2, Ordering::Acquire);
        let available = available
            .map(u16::from_le)
            .map_err(|error| self.fault(QueueError::GuestMemory(error)))?;
        if available.wrapping_sub(next) > queue.size() {
            return Err(self.fault(QueueError::InvalidAvailRingIndex));
        }
        self.seen = Some(available);
        Ok(available != next)
    }

    /// The head of the next chain, which is taken out of the ring.
    fn take(&mut self, queue: &mut Queue) -> Result<u16, DeviceFault> {
        let next = queue.next_avail();
        let at = 4 + 2 * usize::from(next % queue.size());
        let head = self.available.load(at, Ordering::Relaxed);
        let head = head.map_err(|error| self.fault(QueueError::GuestMemory(error)))?;
        queue.set_next_avail(next.wrapping_add(1));
        self.done.taken += 1;
        Ok(u16::from_le(head))
    }

    /// The chain `head`, all of its descriptors checked, and the bytes in its buffers.
    fn chain(
        &self,
        memory: &'m GuestMemory,
        queue: &Queue,
        head: u16,
    ) -> Result<(Chain<'m>, u64), DeviceFault> {
        // §2.7.5.3.1 limits a chain to the size of its queue. Linux, when it must settle for a smaller
        // queue than offered, goes on making indirect chains for the size offered; they cost no more.
        walk(memory, &self.table, head, queue.max_size()).map_err(|reason| DeviceFault::Chain {
            queue: self.queue,
            head,
            reason,
        })
    }

    /// Puts `chains` into the used ring, and lets the driver see them when they are `batch` with those before.
    fn give_back(
        &mut self,
        queue: &mut Queue,
        chains: &[(u16, u32)],
        batch: usize,
    ) -> Result<(), DeviceFault> {
        used::put(queue, &self.used, chains).map_err(|source| self.fault(source))?;
        self.unpublished += chains.len();
        // At most as many as a queue has.
        self.done.given += i32::try_from(chains.len()).unwrap_or(0);
        if self.unpublished >= batch {
            self.publish(queue)?;
        }
        Ok(())
    }

    fn publish(&mut self, queue: &Queue) -> Result<(), DeviceFault> {
        used::publish(queue, &self.used).map_err(|source| self.fault(source))?;
        self.unpublished = 0;
        Ok(())
    }
}

/// How many chains are given back before the driver sees them: so many share what it costs that the index goes
/// from one processor to the other. As vhost-net has it.
const BATCH: usize = 64;

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
            views: SmallVec::new(),
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

    /// What was done with each queue that was used.
    pub(super) fn uses(&self) -> impl Iterator<Item = (QueueIndex, Use)> {
        self.views.iter().map(|view| (view.queue, view.done))
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
        let memory = self.memory;
        let (q, view) = parts(memory, self.queues, &mut self.views, queue)?;
        if !view.has_more(q)? {
            self.empty.insert(queue);
            return Ok(None);
        }
        self.empty.remove(queue);
        if self.budget.is_spent() {
            self.cut_short.insert(queue);
            return Ok(None);
        }
        let head = view.take(q)?;
        let (chain, bytes) = view.chain(memory, q, head)?;
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
        let (q, view) = self.parts(queue)?;
        let (chain, bytes) = view.chain(memory, q, head)?;
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
        let (q, view) = self.parts(queue)?;
        q.go_to_previous_position();
        view.done.taken -= 1;
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
        self.give_back(queue, chains, 1)
    }

    /// As [`complete_together`](Self::complete_together), for a worker that has more of the kind at hand: the
    /// driver sees them together with what is given back next, at the latest at the end of the event.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn complete_soon(
        &mut self,
        queue: QueueIndex,
        chains: &[(u16, u32)],
    ) -> Result<(), DeviceFault> {
        self.give_back(queue, chains, BATCH)
    }

    /// The end of the event: lets the driver see all that was given back.
    ///
    /// # Errors
    /// A used ring cannot be written.
    pub fn finish(mut self) -> Result<(), DeviceFault> {
        for view in self.views.iter_mut().filter(|view| view.unpublished > 0) {
            view.publish(&self.queues[usize::from(view.queue.0)])?;
        }
        Ok(())
    }

    fn give_back(
        &mut self,
        queue: QueueIndex,
        chains: &[(u16, u32)],
        batch: usize,
    ) -> Result<(), DeviceFault> {
        let (q, view) = self.parts(queue)?;
        view.give_back(q, chains, batch)?;
        self.completed.insert(queue);
        Ok(())
    }

    /// Number of entries the driver gave `queue`.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn size(&mut self, queue: QueueIndex) -> Result<u16, DeviceFault> {
        self.parts(queue).map(|(q, _)| q.size())
    }

    /// Whether the driver has made chains available that were not popped yet.
    ///
    /// # Errors
    /// The avail ring cannot be read.
    pub fn has_more(&mut self, queue: QueueIndex) -> Result<bool, DeviceFault> {
        let (q, view) = self.parts(queue)?;
        view.has_more(q)
    }

    fn parts(&mut self, index: QueueIndex) -> Result<(&mut Queue, &mut View<'m>), DeviceFault> {
        parts(self.memory, self.queues, &mut self.views, index)
    }
}

/// A queue that the driver has set up, and where it is.
#[inline]
fn parts<'a, 'm>(
    memory: &'m GuestMemory,
    queues: &'a mut [Queue],
    views: &'a mut SmallVec<[View<'m>; 2]>,
    index: QueueIndex,
) -> Result<(&'a mut Queue, &'a mut View<'m>), DeviceFault> {
    let queue = queues
        .get_mut(usize::from(index.0))
        .filter(|q| q.ready())
        .ok_or(DeviceFault::Ring {
            queue: index,
            source: QueueError::QueueNotReady,
        })?;
    let known = views.iter().position(|view| view.queue == index);
    let at = known.unwrap_or_else(|| {
        views.push(View::new(memory, index, queue));
        views.len() - 1
    });
    Ok((queue, &mut views[at]))
}
