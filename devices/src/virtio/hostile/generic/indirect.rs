//! Indirect tables. Virtio 1.2 §2.7.5.3.

use crate::virtio::hostile::Attack;
use crate::virtio::hostile::attack::{HIGH, HIGH_END, INDIRECT_DESC, QUEUE_SIZE};
use crate::virtio::hostile::case::{Case, Expect, Row, Scope, table};
use crate::virtio::testing::{Descriptor, END, INDIRECT, NEXT, SEAM, WRITE};

use Expect::{Either, Fine, Reset};

/// Where tables are that are not, or what they cannot be: name, address, length.
const NO_TABLES: &[(&str, u64, u32)] = &[
    ("of nothing", 0x8000, 0),
    ("of one byte", 0x8000, 1),
    ("of 15 bytes", 0x8000, 15),
    ("of 17 bytes", 0x8000, 17),
    ("of 65536 entries", 0x8000, 1 << 20),
    ("of nearly 4 GiB", 0x8000, !15),
    ("of 4 GiB less a byte", 0x8000, u32::MAX),
    ("behind memory", END, 16),
    ("over the end of memory", END - 8, 16),
    ("in the hole", 0xd000_0000, 16),
    ("from the hole into high memory", HIGH - 8, 16),
    ("behind high memory", HIGH_END, 16),
    ("at the last address", u64::MAX, 16),
    ("round to the first address", u64::MAX - 7, 16),
];

/// A usual request in an indirect table, whose descriptor is then changed.
fn changed(attack: &mut Attack, change: impl FnOnce(Descriptor) -> Descriptor) {
    attack.start();
    let request = attack.request();
    let len = 16 * u32::try_from(request.len()).expect("short");
    let driver = attack.driver();
    let table = driver.alloc(len);
    driver.chain(table, 0, &request);
    let descriptor = change(Descriptor::indirect(table, len));
    // Devices may write nothing of it, so it is not given like a writable buffer.
    driver.set_descriptor(
        0,
        Descriptor {
            flags: descriptor.flags & !WRITE,
            ..descriptor
        },
    );
    let [low, high] = descriptor.flags.to_le_bytes();
    driver.write(driver.descriptor_table() + 12, &[low, high]);
    driver.publish(0);
}

/// A table of these entries.
fn of(attack: &mut Attack, entries: &[Descriptor]) {
    attack.start();
    let driver = attack.driver();
    let len = 16 * u32::try_from(entries.len()).expect("short");
    let table = driver.alloc(len);
    for (index, entry) in (0..).zip(entries) {
        driver.set_descriptor_at(table, index, *entry);
    }
    driver.submit(&[Descriptor::indirect(table, len)]);
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = table(Scope::Queue, ROWS);
    for &(what, address, len) in NO_TABLES {
        let act = move |a: &mut Attack| {
            changed(a, |table| Descriptor {
                address: if address == 0x8000 {
                    table.address
                } else {
                    address
                },
                len,
                ..table
            });
        };
        let name = format!("an indirect table {what}");
        cases.push(Case::new(name, Scope::Queue, Reset, act));
    }
    cases
}

const BYTE: Descriptor = Descriptor {
    address: 0x8000,
    len: 1,
    flags: 0,
    next: 0,
};
const ROOM: Descriptor = Descriptor {
    flags: WRITE,
    ..BYTE
};

const ROWS: &[Row] = &[
    ("a request in an indirect table", Fine, |a| {
        changed(a, |table| table);
    }),
    ("an indirect table at an odd address", Fine, |a| {
        a.start();
        let request = a.request();
        let len = 16 * u32::try_from(request.len()).expect("short");
        let table = a.driver().alloc(len + 1) + 1;
        a.driver().chain(table, 0, &request);
        a.driver().submit(&[Descriptor::indirect(table, len)]);
    }),
    (
        "an indirect table over the seam of two regions",
        Fine,
        |a| {
            a.start();
            let request = a.request();
            let len = 16 * u32::try_from(request.len()).expect("short");
            a.driver().chain(SEAM - 8, 0, &request);
            a.driver().submit(&[Descriptor::indirect(SEAM - 8, len)]);
        },
    ),
    ("an indirect table that is writable", Either, |a| {
        changed(a, |table| table.with(WRITE, 0));
    }),
    ("an indirect table with a next", Either, |a| {
        changed(a, |table| table.with(NEXT, 1));
    }),
    (
        "an indirect table with a next out of the table",
        Either,
        |a| {
            changed(a, |table| table.with(NEXT, u16::MAX));
        },
    ),
    ("an indirect table that was not agreed on", Either, |a| {
        let offered = a.machine.offered();
        a.start_with(offered & !INDIRECT_DESC);
        let request = a.request();
        a.driver().submit_indirect(&request);
    }),
    ("an indirect table shorter than its chain", Reset, |a| {
        a.start();
        let table = a.driver().alloc(32);
        a.driver().chain(table, 0, &[BYTE, BYTE]);
        a.driver().submit(&[Descriptor::indirect(table, 16)]);
    }),
    ("an indirect table after a buffer", Either, |a| {
        a.start();
        let table = a.driver().alloc(16);
        a.driver().set_descriptor_at(table, 0, ROOM);
        a.driver().submit(&[BYTE, Descriptor::indirect(table, 16)]);
    }),
    ("an indirect table in an indirect table", Reset, |a| {
        a.start();
        let inner = a.driver().alloc(16);
        a.driver().set_descriptor_at(inner, 0, BYTE);
        a.driver()
            .submit_indirect(&[Descriptor::indirect(inner, 16)]);
    }),
    ("an indirect table in itself", Reset, |a| {
        a.start();
        let table = a.driver().alloc(16);
        let itself = Descriptor::indirect(table, 16);
        a.driver().set_descriptor_at(table, 0, itself);
        a.driver().submit(&[itself]);
    }),
    ("the queue's own table as an indirect table", Reset, |a| {
        a.start();
        let table = a.driver().descriptor_table();
        let len = 16 * u32::from(a.driver().size());
        a.driver().submit(&[Descriptor::indirect(table, len)]);
    }),
    ("the used ring as an indirect table", Reset, |a| {
        a.start();
        let ring = a.driver().used_ring();
        a.driver().submit(&[Descriptor::indirect(ring, 16)]);
    }),
    ("an entry that follows itself", Reset, |a| {
        of(a, &[BYTE.with(NEXT, 0)]);
    }),
    ("two entries that follow each other", Reset, |a| {
        of(a, &[BYTE.with(NEXT, 1), BYTE.with(NEXT, 0)]);
    }),
    ("a loop of 1000 entries", Reset, |a| {
        let entries: Vec<_> = (1..=1000)
            .map(|next| ROOM.with(NEXT, next % 1000))
            .collect();
        of(a, &entries);
    }),
    ("an entry that leads out of its table", Reset, |a| {
        of(a, &[BYTE.with(NEXT, 1)]);
    }),
    ("an entry that leads far out of its table", Reset, |a| {
        of(a, &[BYTE.with(NEXT, u16::MAX)]);
    }),
    ("entries of zeroes", Reset, |a| {
        of(a, &[Descriptor::readable(0, 0).with(NEXT, 1); 4]);
    }),
    ("readable after writable in a table", Reset, |a| {
        of(a, &[ROOM.with(NEXT, 1), BYTE]);
    }),
    ("a chain in a table longer than any queue", Reset, |a| {
        let entries: Vec<_> = (1..=2000).map(|next| BYTE.with(NEXT, next)).collect();
        of(a, &entries);
    }),
    ("a chain in a table longer than the queue", Either, |a| {
        let mut entries: Vec<_> = (1..=2 * QUEUE_SIZE)
            .map(|next| BYTE.with(NEXT, next))
            .collect();
        entries.push(ROOM);
        of(a, &entries);
    }),
    ("an entry behind memory", Reset, |a| {
        of(a, &[BYTE.with(NEXT, 1), Descriptor::writable(END, 1)]);
    }),
    ("entries of 4 GiB in all", Reset, |a| {
        let most = Descriptor::readable(0, u32::MAX);
        of(a, &[most.with(NEXT, 1), most]);
    }),
    (
        "a flag of an indirect table on the last buffer",
        Reset,
        |a| {
            a.start();
            let mut request = a.request();
            let last = request.len() - 1;
            request[last].flags |= INDIRECT;
            request[last].len = 15;
            a.driver().submit(&request);
        },
    ),
];
