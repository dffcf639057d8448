//! virtio-rng under attack.

use std::num::NonZeroU64;

use super::Attack;
use super::case::{Expect, Row, Scope, table};
use super::subject::{Host, QueuePlan, Stage, Subject};
use crate::rate::{Limits, Rate, RateControl};
use crate::virtio::rng::Rng;
use crate::virtio::testing::Descriptor;

use Expect::{Either, Fine, Reset};

/// The source of entropy.
pub(super) fn subject() -> Subject {
    Subject {
        name: "rng",
        stage,
        serves,
        needs: 0,
        cases: || table(Scope::Device, ROWS),
    }
}

/// Somebody who limits the device and thinks better of it, to more than it is ever asked for.
#[derive(Debug)]
struct Regulator(RateControl);

impl Host for Regulator {
    fn poke(&mut self, what: u8) {
        let rate = |per_second| {
            let per_second = NonZeroU64::new(per_second)?;
            let burst = NonZeroU64::new(1 << 40)?;
            Some(Rate { per_second, burst })
        };
        self.0.set(Limits {
            bytes: rate(u64::from(what & 1) << 30),
            operations: rate(u64::from(what & 2) << 30),
        });
    }
}

fn stage() -> Stage {
    let device = Rng::default();
    let host = Regulator(device.rate_control());
    Stage {
        device: Box::new(device),
        queues: vec![QueuePlan {
            request: |driver| vec![driver.writable(64)],
            taken: true,
        }],
        host: Box::new(host),
    }
}

/// Gets 64 bytes that are not those it gave.
fn serves(attack: &mut Attack) {
    attack.drivers[0].recycle();
    let buffer = attack.drivers[0].writable(64);
    let head = attack.drivers[0].submit(&[buffer]);
    attack.machine.kick(0);
    assert_eq!(attack.wait_used(0, 1), [(head, 64)]);
    assert_ne!(attack.drivers[0].read(buffer.address, 64), [0xee; 64]);
}

/// Starts the device and submits a chain as it is.
fn submit(attack: &mut Attack, chain: &[Descriptor]) {
    attack.start();
    attack.drivers[0].submit(chain);
}

const ROWS: &[Row] = &[
    ("rng: a readable buffer", Reset, |a| {
        submit(a, &[Descriptor::readable(0x8000, 64)]);
    }),
    ("rng: a readable buffer before a writable one", Reset, |a| {
        let (from, to) = (
            Descriptor::readable(0x8000, 1),
            Descriptor::writable(0x9000, 1),
        );
        submit(a, &[from, to]);
    }),
    ("rng: entropy on the rings", Either, |a| {
        a.start();
        let table = a.drivers[0].descriptor_table();
        a.drivers[0].submit(&[Descriptor::writable(table, 4096)]);
        a.provoke();
        a.drivers[0].publish(1);
    }),
    ("rng: a buffer of one byte", Fine, |a| {
        submit(a, &[Descriptor::writable(0x8000, 1)]);
        a.machine.kick(0);
        assert_eq!(a.wait_used(0, 1), [(0, 1)]);
    }),
    ("rng: more than one request gets", Fine, |a| {
        submit(a, &[Descriptor::writable(0x20_0000, 0x10_0000); 2]);
        a.machine.kick(0);
        let used = a.wait_used(0, 1);
        assert!(used[0].1 > 0 && used[0].1 <= 0x20_0000);
    }),
];
