//! The avail and used rings: indices, entries, flags and events that no driver makes.
//! Virtio 1.2 §2.7.6 to §2.7.8.

use crate::virtio::hostile::Attack;
use crate::virtio::hostile::attack::{EVENT_IDX, QUEUE_SIZE, VERSION_1};
use crate::virtio::hostile::case::{Case, Expect, Row, Scope, table};
use crate::virtio::testing::{Descriptor, reg};

use Expect::{Either, Fine, Reset};

/// One request, and an avail index that says something else.
fn index(attack: &mut Attack, index: u16) {
    attack.start();
    attack.submit_request();
    attack.driver().set_avail_idx(index);
}

/// One request, and an entry that names another descriptor.
fn entry(attack: &mut Attack, head: u16) {
    attack.start();
    attack.request();
    attack.driver().publish(head);
}

/// Requests with these events in the rings: when the device is to interrupt, when the driver is to kick.
fn events(attack: &mut Attack, used_event: u16, avail_event: u16) {
    attack.start();
    let driver = attack.driver();
    let size = u64::from(driver.size());
    let used_event_at = driver.avail_ring() + 4 + 2 * size;
    let avail_event_at = driver.used_ring() + 4 + 8 * size;
    driver.write(used_event_at, &used_event.to_le_bytes());
    driver.write(avail_event_at, &avail_event.to_le_bytes());
    for _ in 0..3 {
        attack.submit_request();
        attack.provoke();
    }
}

/// As many requests as the ring has entries, all of them this chain.
fn all_the_same(attack: &mut Attack) {
    attack.start();
    attack.submit_request();
    for _ in 1..attack.driver().size() {
        attack.driver().publish(0);
    }
}

pub(super) fn cases() -> Vec<Case> {
    table(Scope::Queue, ROWS)
}

const ROWS: &[Row] = &[
    ("avail index one more than the queue has", Reset, |a| {
        index(a, QUEUE_SIZE + 1);
    }),
    ("avail index behind the device's", Reset, |a| {
        index(a, u16::MAX);
    }),
    ("avail index half way round", Reset, |a| index(a, 0x8000)),
    ("avail index a little too far", Reset, |a| index(a, 0x101)),
    ("avail index that goes back after a request", Reset, |a| {
        a.start();
        a.submit_request();
        a.provoke();
        a.submit_request();
        a.provoke();
        // Whether the device took both or, for want of anything to say, none: this is behind it.
        a.driver().set_avail_idx(u16::MAX);
    }),
    (
        "avail index as far as it goes, entries stale",
        Either,
        |a| {
            index(a, QUEUE_SIZE);
        },
    ),
    ("a full ring of the same chain", Either, all_the_same),
    ("a full ring of the same chain, twice", Either, |a| {
        all_the_same(a);
        a.provoke();
        for _ in 0..a.driver().size() {
            a.driver().publish(0);
        }
    }),
    ("avail entry just out of the table", Reset, |a| {
        entry(a, QUEUE_SIZE);
    }),
    ("avail entry far out of the table", Reset, |a| {
        entry(a, u16::MAX);
    }),
    ("avail entry half way out", Reset, |a| entry(a, 0x8000)),
    ("avail entry of a descriptor of zeroes", Reset, |a| {
        entry(a, QUEUE_SIZE - 1);
    }),
    ("avail entry in the middle of a chain", Either, |a| {
        a.start();
        a.submit_request();
        a.driver().publish(1);
    }),
    ("two chains that share their descriptors", Either, |a| {
        a.start();
        a.submit_request();
        a.submit_request();
        a.driver().publish(0);
    }),
    ("avail flags of all ones", Fine, |a| {
        a.start();
        let flags = a.driver().avail_ring();
        a.driver().write(flags, &[0xff; 2]);
        a.submit_request();
    }),
    ("used ring written over by the guest", Either, |a| {
        a.start();
        let (ring, size) = (a.driver().used_ring(), usize::from(a.driver().size()));
        for byte in [0xff, 0x80, 0] {
            a.driver().write(ring, &vec![byte; 6 + 8 * size]);
            a.submit_request();
            a.provoke();
        }
    }),
    ("requests of all zeroes, a ring full", Reset, |a| {
        a.start();
        for index in 0..a.driver().size() {
            a.driver().set_descriptor(index, Descriptor::readable(0, 0));
            a.driver().publish(index);
        }
    }),
    ("used event behind", Fine, |a| events(a, u16::MAX, 0)),
    ("used event far ahead", Fine, |a| events(a, 0x7fff, 0)),
    ("used event half way round", Fine, |a| events(a, 0x8000, 0)),
    ("avail event that the guest wrote", Fine, |a| {
        events(a, 0, u16::MAX);
    }),
    ("events without their feature", Fine, |a| {
        let offered = a.machine.offered();
        a.start_with(offered & !EVENT_IDX);
        let ring = a.driver().avail_ring() + 4 + 2 * u64::from(a.driver().size());
        a.driver().write(ring, &[0xff; 2]);
        a.submit_request();
    }),
    ("a driver of no features", Fine, |a| {
        a.start_with(VERSION_1);
        a.submit_request();
    }),
    ("kicks for nothing", Fine, |a| {
        a.start();
        for _ in 0..200 {
            a.kick();
        }
        a.turn();
    }),
    ("a storm of kicks with requests in it", Fine, |a| {
        a.start();
        for round in 0..200 {
            if round % 40 == 0 {
                a.submit_request();
            }
            a.kick();
            a.machine.set(reg::QUEUE_NOTIFY, a.queue.into());
        }
    }),
    ("rounds and rounds of the ring", Fine, |a| {
        a.start();
        for _ in 0..5 * QUEUE_SIZE {
            a.driver().recycle();
            a.submit_request();
            a.provoke();
            // A queue that nothing is taken from must not be overfilled.
            let taken = a.queues[usize::from(a.queue)].taken;
            if !taken || a.driver().take_used().is_empty() {
                break;
            }
        }
    }),
];
