//! The used ring, Virtio 1.2 §2.7.8, and whether the driver wants to be interrupted for it.
//!
//! `virtio_queue` publishes one chain at a time and asks for an interrupt for each such step; a packet in
//! several receive buffers must appear in one (§5.1.6.4), and a driver may do without interrupts.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueT};

use crate::mem::{GuestAddress, GuestMemory, Stretch};

/// §2.7.6, VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;

/// The avail ring of `queue`, §2.7.6: flags, index, elements, and an index of the used ring.
pub(super) fn avail_ring<'m>(memory: &'m GuestMemory, queue: &Queue) -> Stretch<'m> {
    let len = 6 + 2 * usize::from(queue.size());
    Stretch::new(memory, GuestAddress(queue.avail_ring()), len)
}

/// The used ring of `queue`: flags, index, elements, and an index of the avail ring.
pub(super) fn used_ring<'m>(memory: &'m GuestMemory, queue: &Queue) -> Stretch<'m> {
    let len = 6 + 8 * usize::from(queue.size());
    Stretch::new(memory, GuestAddress(queue.used_ring()), len)
}

/// Puts `chains`, heads and lengths, into the used ring at `ring`, where the driver does not see them yet.
pub(super) fn put(
    queue: &mut Queue,
    ring: &Stretch<'_>,
    chains: &[(u16, u32)],
) -> Result<(), Error> {
    let mut next = Wrapping(queue.next_used());
    for (head, len) in chains {
        if *head >= queue.size() {
            return Err(Error::InvalidDescriptorIndex);
        }
        let element = u64::from(*head) | u64::from(*len) << 32;
        let entry = usize::from(next.0 % queue.size());
        ring.set(element.to_le(), 4 + 8 * entry)
            .map_err(Error::GuestMemory)?;
        next += 1;
    }
    queue.set_next_used(next.0);
    Ok(())
}

/// Lets the driver see all that was put into the used ring at `ring`, at once.
pub(super) fn publish(queue: &Queue, ring: &Stretch<'_>) -> Result<(), Error> {
    ring.store(queue.next_used().to_le(), 2, Ordering::Release)
        .map_err(Error::GuestMemory)
}

/// Asks the driver not to kick for what it makes available, until notifications are enabled again: §2.7.10.
pub(super) fn hush(queue: &mut Queue, memory: &GuestMemory) -> Result<(), Error> {
    if !queue.event_idx_enabled() {
        return queue.disable_notification(memory);
    }
    // Its index passes the one it is to kick at, which `disable_notification` leaves where it is.
    let passed = queue.next_avail().wrapping_sub(1);
    let event = 4 + 8 * usize::from(queue.size());
    used_ring(memory, queue)
        .store(passed.to_le(), event, Ordering::Relaxed)
        .map_err(Error::GuestMemory)
}

/// Whether the driver wants an interrupt for what was published since the index was `before`: §2.7.7.2.
pub(super) fn wants_interrupt(
    queue: &Queue,
    memory: &GuestMemory,
    before: u16,
) -> Result<bool, Error> {
    // The driver says what it wants and then looks at the index; here it is the other way round.
    fence(Ordering::SeqCst);
    let ring = avail_ring(memory, queue);
    let read = |offset| {
        let field = ring.load(offset, Ordering::Relaxed);
        field.map(u16::from_le).map_err(Error::GuestMemory)
    };
    if !queue.event_idx_enabled() {
        return Ok(read(0)? & NO_INTERRUPT == 0);
    }
    let event = Wrapping(read(4 + 2 * usize::from(queue.size()))?);
    let now = Wrapping(queue.next_used());
    Ok(now - event - Wrapping(1) < now - Wrapping(before))
}
