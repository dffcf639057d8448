//! What several CPUs of a guest can do at once: change memory that the device reads, and pull the registers
//! from two sides.

use std::thread;

use crate::virtio::hostile::Attack;
use crate::virtio::hostile::attack::{QUEUE_SIZE, VERSION_1};
use crate::virtio::hostile::case::{Case, Expect, Row, Scope, table};
use crate::virtio::testing::{Descriptor, NEXT, WRITE, reg, status};

use Expect::Either;

pub(super) fn cases() -> Vec<Case> {
    table(Scope::Queue, ROWS)
}

/// Kicks and lets the host side work, again and again, with `change` done to the running device each time.
fn while_it_runs(attack: &mut Attack, mut change: impl FnMut(&mut Attack, u16)) {
    attack.start();
    attack.submit_request();
    for round in 0..100 {
        attack.kick();
        change(attack, round);
        attack.poke(0);
    }
}

const ROWS: &[Row] = &[
    ("an avail index that is never the same", Either, |a| {
        while_it_runs(a, |a, round| {
            for step in 0..8u16 {
                let index = round.wrapping_mul(8).wrapping_add(step);
                a.driver().set_avail_idx(index);
            }
        });
    }),
    ("a driver that never stops", Either, |a| {
        while_it_runs(a, |a, _| {
            for _ in 0..4 {
                a.driver().publish(0);
            }
        });
    }),
    ("a descriptor that changes its length", Either, |a| {
        a.start();
        let request = a.request();
        let part = request[0];
        while_it_runs(a, |a, round| {
            let len = if round % 2 == 0 { part.len } else { u32::MAX };
            let link = if request.len() > 1 { NEXT } else { 0 };
            let changed = Descriptor { len, ..part };
            // It was given at its true length; no device may take the other for it.
            a.driver().set_descriptor(
                0,
                Descriptor {
                    flags: 0,
                    ..changed
                }
                .with(link, 1),
            );
            a.driver().publish(0);
        });
    }),
    ("a link that comes and goes", Either, |a| {
        while_it_runs(a, |a, round| {
            let next = if round % 2 == 0 { 0 } else { QUEUE_SIZE - 1 };
            let byte = Descriptor::readable(0x8000, 1);
            a.driver().set_descriptor(0, byte.with(NEXT, next));
            a.driver().publish(0);
        });
    }),
    ("a buffer that turns writable and back", Either, |a| {
        while_it_runs(a, |a, round| {
            let address = a.driver().descriptor_table() + 0x4000;
            let flags = if round % 2 == 0 { WRITE } else { 0 };
            let part = Descriptor::readable(address, 256).with(flags, 0);
            a.driver().set_descriptor(0, part);
            a.driver().publish(0);
        });
    }),
    ("resets from another CPU", Either, |a| {
        a.start();
        a.submit_request();
        let (machine, queue) = (&a.machine, a.queue);
        thread::scope(|cpus| {
            cpus.spawn(|| {
                for _ in 0..50 {
                    machine.kick(queue);
                    machine.set(reg::QUEUE_NOTIFY, queue.into());
                }
            });
            for _ in 0..20 {
                machine.set(reg::STATUS, 0);
            }
        });
    }),
    ("two CPUs that start it at once", Either, |a| {
        let (machine, rings) = (&a.machine, a.drivers[usize::from(a.queue)].rings());
        let (queue, size) = (a.queue, a.drivers[usize::from(a.queue)].size());
        let start = || {
            for _ in 0..20 {
                machine.set(reg::STATUS, 0);
                machine.set(reg::STATUS, status::DRIVER);
                machine.set(reg::DRIVER_FEATURES_SEL, 1);
                machine.set(reg::DRIVER_FEATURES, 1);
                machine.set(reg::STATUS, status::FEATURES_OK);
                machine.set_rings(queue, size, rings);
                machine.set(reg::STATUS, status::DRIVER_OK);
                machine.kick(queue);
            }
        };
        thread::scope(|cpus| {
            cpus.spawn(start);
            start();
        });
    }),
    (
        "configuration read while it starts and stops",
        Either,
        |a| {
            let machine = &a.machine;
            thread::scope(|cpus| {
                cpus.spawn(|| {
                    for offset in (0..400).map(|n| reg::CONFIG + n % 64) {
                        let mut data = [0; 4];
                        machine.read(offset, &mut data);
                        machine.write(offset, &data);
                    }
                });
                for _ in 0..10 {
                    let _ = machine.negotiate(VERSION_1);
                    machine.set(reg::STATUS, status::DRIVER_OK);
                }
            });
        },
    ),
];
