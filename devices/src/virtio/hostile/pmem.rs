//! virtio-pmem under attack.

use vmm_sys_util::tempfile::TempFile;

use super::Attack;
use super::case::{Expect, Row, Scope, table};
use super::subject::{QueuePlan, Quiet, Stage, Subject};
use crate::virtio::pmem::{ALIGNMENT, Pmem};
use crate::virtio::testing::Descriptor;

use Expect::{Fine, Reset};

/// Persistent memory.
pub(super) fn subject() -> Subject {
    Subject {
        name: "pmem",
        stage,
        serves,
        needs: 0,
        cases: || table(Scope::Device, ROWS),
    }
}

fn stage() -> Stage {
    let file = TempFile::new().expect("cannot make a file");
    let sized = file.as_file().set_len(ALIGNMENT);
    sized.expect("cannot make a file large");
    // The open file stays when its name goes.
    let device = Pmem::open(file.as_path(), false, 1 << 40).expect("cannot open a file");
    Stage {
        device: Box::new(device),
        queues: vec![QueuePlan {
            request: |driver| vec![driver.readable(&[0; 4]), driver.writable(4)],
            taken: true,
        }],
        host: Box::new(Quiet),
    }
}

/// Flushes.
fn serves(attack: &mut Attack) {
    attack.drivers[0].recycle();
    let kind = attack.drivers[0].readable(&[0; 4]);
    let room = attack.drivers[0].writable(4);
    let head = attack.drivers[0].submit(&[kind, room]);
    attack.machine.kick(0);
    assert_eq!(attack.wait_used(0, 1), [(head, 4)]);
    assert_eq!(attack.drivers[0].read(room.address, 4), [0; 4]);
}

/// Starts the device and submits a request whose two parts are so long.
fn submit(attack: &mut Attack, kind: &[u8], room: u32) {
    attack.start();
    let kind = attack.drivers[0].readable(kind);
    let room = attack.drivers[0].writable(room);
    attack.drivers[0].submit(&[kind, room]);
}

const ROWS: &[Row] = &[
    ("pmem: half a request type", Reset, |a| {
        submit(a, &[0; 2], 4);
    }),
    ("pmem: room for half an answer", Reset, |a| {
        submit(a, &[0; 4], 2);
    }),
    ("pmem: no room for an answer", Reset, |a| {
        a.start();
        let kind = a.drivers[0].readable(&[0; 4]);
        a.drivers[0].submit(&[kind]);
    }),
    ("pmem: a request of no known type", Fine, |a| {
        submit(a, &[0xff; 4], 4);
        a.machine.kick(0);
        assert_eq!(a.wait_used(0, 1)[0].1, 4);
    }),
    ("pmem: much room for an answer", Fine, |a| {
        submit(a, &[0; 4], 64);
        a.machine.kick(0);
        assert_eq!(a.wait_used(0, 1)[0].1, 4);
    }),
    ("pmem: the window as a buffer", Reset, |a| {
        a.start();
        let kind = a.drivers[0].readable(&[0; 4]);
        a.drivers[0].submit(&[kind, Descriptor::writable(1 << 40, 4)]);
    }),
    ("pmem: one head as often as there is room", Fine, |a| {
        a.start();
        let kind = a.drivers[0].readable(&[0; 4]);
        let room = a.drivers[0].writable(4);
        let head = a.drivers[0].submit(&[kind, room]);
        for _ in 1..a.drivers[0].size() {
            a.drivers[0].publish(head);
        }
    }),
];
