//! Queues set up as no driver does: sizes, places of the rings, order of the steps. Virtio 1.2 §2.7, §4.2.3.

use crate::virtio::hostile::Attack;
use crate::virtio::hostile::attack::{HIGH, HIGH_END, QUEUE_SIZE};
use crate::virtio::hostile::case::{Case, Expect, Row, Scope, table};
use crate::virtio::testing::{Driver, END, SEAM, reg, status};

use Expect::{Either, Fine};

/// Places where a ring cannot be, for each of its three parts: name, address.
const NO_RINGS: &[(&str, u64)] = &[
    ("behind memory", END),
    ("over the end of memory", END - 16),
    ("in the hole", 0xd000_0000),
    ("from the hole into high memory", HIGH - 16),
    ("behind high memory", HIGH_END),
    ("over the end of high memory", HIGH_END - 16),
    ("far away", 1 << 40),
    ("at the last addresses", u64::MAX - 15),
    ("misaligned", 0x1_0001),
];

const PARTS: [&str; 3] = ["descriptor table", "avail ring", "used ring"];

/// Sizes that no queue has.
const NO_SIZES: [u32; 9] = [0, 3, 5, 2048, 32768, 65535, 65536, 0x1_0010, u32::MAX];

/// The queue set up with a part of it elsewhere, and the device started on it.
fn with_rings(attack: &mut Attack, change: impl FnOnce([u64; 3]) -> [u64; 3]) {
    let offered = attack.machine.offered();
    attack.agree_on(offered);
    let rings = change(attack.driver().rings());
    let size = attack.driver().size();
    for (queue, driver) in (0..).zip(&attack.drivers) {
        attack.machine.set_queue(queue, driver);
    }
    attack.machine.set_rings(attack.queue, size, rings);
    attack.machine.set(reg::STATUS, status::DRIVER_OK);
}

/// A queue with all of its parts somewhere else, where they can be, and a request in it.
fn moved(attack: &mut Attack, base: u64) {
    let offered = attack.machine.offered();
    attack.agree_on(offered);
    let size = attack.driver().size();
    *attack.driver() = Driver::watched(&attack.ram, base, size);
    for (queue, driver) in (0..).zip(&attack.drivers) {
        attack.machine.set_queue(queue, driver);
    }
    attack.machine.set(reg::STATUS, status::DRIVER_OK);
}

/// Steps between FEATURES_OK and DRIVER_OK, the queue selected, then DRIVER_OK.
fn steps(attack: &mut Attack, steps: &[(u64, u32)]) {
    let offered = attack.machine.offered();
    attack.agree_on(offered);
    for (queue, driver) in (0..).zip(&attack.drivers) {
        attack.machine.set_queue(queue, driver);
    }
    attack.machine.set(reg::QUEUE_SEL, attack.queue.into());
    for &(offset, value) in steps {
        attack.machine.set(offset, value);
    }
    attack.machine.set(reg::STATUS, status::DRIVER_OK);
    attack.submit_request();
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = table(Scope::Queue, ROWS);
    for (part, name) in PARTS.iter().enumerate() {
        for &(place, address) in NO_RINGS {
            let act = move |a: &mut Attack| {
                with_rings(a, |mut rings| {
                    rings[part] = address;
                    rings
                });
                assert!(a.machine.faulted(), "the rings are not believed");
            };
            let name = format!("a {name} {place}");
            // The queue cannot be used, whether the device would take anything from it or not.
            cases.push(Case::new(name, Scope::Queue, Either, act));
        }
    }
    for size in NO_SIZES {
        let act = move |a: &mut Attack| {
            steps(a, &[(reg::QUEUE_SIZE, size)]);
            assert!(a.machine.faulted(), "the size is not believed");
        };
        let name = format!("a queue of {size} entries");
        cases.push(Case::new(name, Scope::Queue, Either, act));
    }
    cases
}

/// A write of a queue register that must change nothing any more.
fn after_the_start(attack: &mut Attack, writes: &[(u64, u32)]) {
    attack.start();
    attack.machine.set(reg::QUEUE_SEL, attack.queue.into());
    for &(offset, value) in writes {
        attack.machine.set(offset, value);
    }
    attack.submit_request();
}

const ROWS: &[Row] = &[
    ("an avail ring at address zero", Either, |a| {
        with_rings(a, |[descriptors, _, device]| [descriptors, 0, device]);
        assert!(a.machine.faulted());
    }),
    ("a descriptor table at address zero", Either, |a| {
        with_rings(a, |[_, driver, device]| [0, driver, device]);
        a.driver().publish(0);
    }),
    ("all rings at the same address", Either, |a| {
        with_rings(a, |[descriptors, ..]| [descriptors; 3]);
        a.ram
            .give(a.drivers[usize::from(a.queue)].rings()[0], 0x100);
        a.submit_request();
    }),
    ("the used ring on the avail ring", Either, |a| {
        with_rings(a, |[descriptors, driver, _]| {
            let both = driver.next_multiple_of(4);
            [descriptors, both, both]
        });
        let avail = a.driver().avail_ring();
        a.ram.give(avail, 6 + 8 * u64::from(QUEUE_SIZE));
        for _ in 0..4 {
            a.submit_request();
            a.provoke();
        }
    }),
    ("the used ring on the descriptor table", Either, |a| {
        with_rings(a, |[descriptors, driver, _]| {
            [descriptors, driver, descriptors]
        });
        let table = a.driver().descriptor_table();
        a.ram.give(table, 6 + 8 * u64::from(QUEUE_SIZE));
        for _ in 0..4 {
            a.submit_request();
            a.provoke();
        }
    }),
    ("rings in high memory", Fine, |a| {
        moved(a, HIGH);
        a.kick();
    }),
    ("rings over the seam of two regions", Fine, |a| {
        moved(a, SEAM - 16);
    }),
    ("rings up to the last byte of memory", Fine, |a| {
        // The avail ring's 6 and 2 for each entry are followed, aligned, by the used ring's 6 and 8.
        let size = u64::from(a.driver().size());
        let len = (16 * size + 6 + 2 * size).next_multiple_of(4) + 6 + 8 * size;
        let base = (HIGH_END - len) & !15;
        let offered = a.machine.offered();
        a.agree_on(offered);
        for (queue, driver) in (0..).zip(&a.drivers) {
            a.machine.set_queue(queue, driver);
        }
        let used = HIGH_END - (6 + 8 * size).next_multiple_of(4);
        let rings = [base, base + 16 * size, used];
        a.ram.give(used, 6 + 8 * size);
        a.machine
            .set_rings(a.queue, u16::try_from(size).unwrap_or(0), rings);
        a.machine.set(reg::STATUS, status::DRIVER_OK);
        a.kick();
    }),
    ("a queue of one entry", Either, |a| {
        steps(a, &[(reg::QUEUE_SIZE, 1)]);
        for _ in 0..3 {
            a.driver().publish(0);
            a.provoke();
        }
    }),
    ("a queue of two entries", Either, |a| {
        steps(a, &[(reg::QUEUE_SIZE, 2)]);
    }),
    ("a queue made ready with other bits", Either, |a| {
        steps(a, &[(reg::QUEUE_READY, 0xffff_fffe)]);
    }),
    ("a queue made unready again", Either, |a| {
        steps(a, &[(reg::QUEUE_READY, 0)]);
    }),
    ("a queue made ready and unready and ready", Fine, |a| {
        let toggle: Vec<_> = (0..9).map(|n| (reg::QUEUE_READY, 1 - n % 2)).collect();
        steps(a, &toggle);
    }),
    ("rings half moved after they were ready", Either, |a| {
        steps(a, &[(reg::DEVICE_AREA + 4, 0xffff)]);
        assert!(a.machine.faulted(), "the rings are not believed");
    }),
    ("rings moved away after they were ready", Either, |a| {
        steps(
            a,
            &[(reg::DESCRIPTORS + 4, 1), (reg::DESCRIPTORS, 0x1_0000)],
        );
        assert!(a.machine.faulted(), "the rings are not believed");
    }),
    ("only this queue", Either, |a| {
        let offered = a.machine.offered();
        a.agree_on(offered);
        let driver = &a.drivers[usize::from(a.queue)];
        a.machine.set_queue(a.queue, driver);
        a.machine.set(reg::STATUS, status::DRIVER_OK);
        a.submit_request();
        a.kick_all();
    }),
    ("every queue but this", Either, |a| {
        let offered = a.machine.offered();
        a.agree_on(offered);
        for (queue, driver) in (0..).zip(&a.drivers) {
            if queue != a.queue {
                a.machine.set_queue(queue, driver);
            }
        }
        a.machine.set(reg::STATUS, status::DRIVER_OK);
        a.submit_request();
        a.kick_all();
    }),
    ("no queue at all", Either, |a| {
        let offered = a.machine.offered();
        a.agree_on(offered);
        a.machine.set(reg::STATUS, status::DRIVER_OK);
        a.submit_request();
        a.kick_all();
    }),
    ("kicks before the start", Fine, |a| {
        let offered = a.machine.offered();
        a.agree_on(offered);
        a.submit_request();
        a.kick_all();
        a.machine.set(reg::QUEUE_NOTIFY, a.queue.into());
        a.start();
    }),
    ("a size changed after the start", Fine, |a| {
        after_the_start(a, &[(reg::QUEUE_SIZE, 3), (reg::QUEUE_SIZE, 1 << 15)]);
    }),
    ("rings moved after the start", Fine, |a| {
        after_the_start(
            a,
            &[
                (reg::DESCRIPTORS, 0),
                (reg::DRIVER_AREA + 4, u32::MAX),
                (reg::DEVICE_AREA, u32::MAX),
            ],
        );
    }),
    ("a queue made unready after the start", Fine, |a| {
        after_the_start(a, &[(reg::QUEUE_READY, 0), (reg::QUEUE_READY, 1)]);
    }),
    ("both rings of two queues in the same place", Either, |a| {
        let offered = a.machine.offered();
        a.agree_on(offered);
        let driver = &a.drivers[usize::from(a.queue)];
        for (queue, _) in (0..).zip(&a.queues) {
            a.machine.set_queue(queue, driver);
        }
        a.machine.set(reg::STATUS, status::DRIVER_OK);
        a.submit_request();
        a.kick_all();
        a.submit_request();
        a.kick_all();
    }),
];
