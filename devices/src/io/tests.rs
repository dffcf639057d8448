//! Queues as a worker sees them: shares of an event, chains put back, queues found empty.

use virtio_queue::{Queue, QueueT};

use super::{QueueIo, QueueSet, used};
use crate::mem::GuestMemory;
use crate::virtio::testing::{Descriptor, Driver, memory};
use crate::virtio::{Features, QueueIndex};

const QUEUE: QueueIndex = QueueIndex(0);
const SIZE: u16 = 16;

fn io<'m>(memory: &'m GuestMemory, queues: &'m mut [Queue]) -> QueueIo<'m> {
    QueueIo::new(memory, queues, Features::VERSION_1)
}

/// A queue of `SIZE` chains of a byte each, all of them available.
fn full(memory: &GuestMemory) -> (Driver, [Queue; 1]) {
    let mut driver = Driver::new(memory, 0x1000, SIZE);
    for head in 0..SIZE {
        driver.set_descriptor(head, Descriptor::readable(0x8000, 1));
        driver.publish(head);
    }
    let queue = driver.queue();
    (driver, [queue])
}

#[test]
fn a_chain_that_was_put_back_comes_again() {
    let memory = memory();
    let (_driver, mut queues) = full(&memory);
    let mut io = io(&memory, &mut queues);
    let pop = |io: &mut QueueIo<'_>| io.pop(QUEUE).unwrap().map(|chain| chain.head);
    assert_eq!((pop(&mut io), pop(&mut io)), (Some(0), Some(1)));
    io.unpop(QUEUE).unwrap();
    io.unpop(QUEUE).unwrap();
    assert_eq!(pop(&mut io), Some(0));
    for head in 1..SIZE {
        assert_eq!(pop(&mut io), Some(head));
    }
    assert_eq!(io.empty(), QueueSet::default());
    assert_eq!(pop(&mut io), None);
    assert_eq!(io.empty(), QueueSet::of([QUEUE]));
    io.unpop(QUEUE).unwrap();
    assert_eq!(io.empty(), QueueSet::default(), "one is waiting again");
}

#[test]
fn an_event_has_its_share_and_no_more() {
    let memory = memory();
    let (mut driver, mut queues) = full(&memory);
    let mut io = io(&memory, &mut queues);
    let mut popped = 0;
    while let Some(chain) = io.pop(QUEUE).unwrap() {
        io.complete(QUEUE, chain.head, 0).unwrap();
        // The driver is as fast as the device.
        driver.publish(chain.head);
        popped += 1;
        assert!(popped <= 10_000, "no end to it");
    }
    assert_eq!(io.cut_short(), QueueSet::of([QUEUE]));
    assert_eq!(io.empty(), QueueSet::default());
    assert_eq!(io.completed(), QueueSet::of([QUEUE]));
}

#[test]
fn an_event_moves_its_share_and_no_more() {
    const MIB: u32 = 1 << 20;
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x1000, SIZE);
    for head in 0..SIZE {
        driver.set_descriptor(head, Descriptor::readable(0, 3 * MIB));
        driver.publish(head);
    }
    let mut queues = [driver.queue()];
    let mut popped = 0;
    let mut event = |charge| {
        let mut io = io(&memory, &mut queues);
        io.charge(charge);
        while io.pop(QUEUE).unwrap().is_some() {
            popped += 1;
        }
        (popped, io.cut_short() == QueueSet::of([QUEUE]))
    };
    assert_eq!(event(0), (6, true), "16 MiB and what was begun");
    assert_eq!(event(u64::MAX), (6, true), "all of it charged elsewhere");
    assert_eq!(event(u64::from(15 * MIB)), (7, true));
    assert_eq!(event(0), (13, true));
    assert_eq!(event(0), (16, false), "the rest");
}

/// §2.7.10: what a driver looks at before it kicks.
#[test]
fn a_driver_that_is_hushed_does_not_kick_until_it_is_to_again() {
    let memory = memory();
    for event_idx in [false, true] {
        let (driver, mut queues) = full(&memory);
        let [queue] = &mut queues;
        queue.set_event_idx(event_idx);
        queue.set_next_avail(SIZE);
        let field = |offset: u64| {
            let bytes = driver.read(driver.used_ring() + offset, 2);
            u16::from_le_bytes([bytes[0], bytes[1]])
        };
        // For so many further chains.
        let kicks = |count: u16| match event_idx {
            false => field(0) & 1 == 0,
            true => {
                let event = field(4 + 8 * u64::from(SIZE));
                (SIZE + count).wrapping_sub(event).wrapping_sub(1) < count
            }
        };
        queue.enable_notification(&memory).unwrap();
        assert!((1..=SIZE).all(kicks));
        used::hush(queue, &memory).unwrap();
        assert!(!(1..=SIZE).any(kicks));
        queue.enable_notification(&memory).unwrap();
        assert!((1..=SIZE).all(kicks));
    }
}

#[test]
fn a_set_holds_what_was_put_into_it() {
    let mut set = QueueSet::of([QueueIndex(0), QueueIndex(63), QueueIndex(64)]);
    assert!(set.contains(QueueIndex(0)) && set.contains(QueueIndex(63)));
    assert!(!set.contains(QueueIndex(1)) && !set.contains(QueueIndex(64)));
    set.remove(QueueIndex(0));
    set.remove(QueueIndex(64));
    assert_eq!(set, QueueSet::of([QueueIndex(63)]));
    assert!(QueueSet::ALL.contains(QueueIndex(63)));
}

#[test]
fn what_is_given_back_soon_is_seen_at_the_end_at_the_latest() {
    let memory = memory();
    let (mut driver, mut queues) = full(&memory);
    let mut io = io(&memory, &mut queues);
    let pop = |io: &mut QueueIo<'_>| io.pop(QUEUE).unwrap().unwrap().head;
    for _ in 1..64 {
        let head = pop(&mut io);
        io.complete_soon(QUEUE, &[(head, 1)]).unwrap();
        // A driver that is told nothing has nothing to make available again; this one does not care.
        driver.publish(head);
        assert_eq!(driver.take_used(), []);
    }
    let head = pop(&mut io);
    io.complete_soon(QUEUE, &[(head, 1)]).unwrap();
    assert_eq!(driver.take_used().len(), 64, "a batch");
    // What must not wait takes along what did.
    let (one, other) = (pop(&mut io), pop(&mut io));
    io.complete_soon(QUEUE, &[(one, 2)]).unwrap();
    io.complete(QUEUE, other, 3).unwrap();
    assert_eq!(driver.take_used(), [(one, 2), (other, 3)]);
    let last = pop(&mut io);
    io.complete_soon(QUEUE, &[(last, 4)]).unwrap();
    assert_eq!(driver.take_used(), []);
    assert_eq!(io.completed(), QueueSet::of([QUEUE]));
    io.finish().unwrap();
    assert_eq!(driver.take_used(), [(last, 4)]);
}
