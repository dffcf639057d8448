//! Descriptor chains in the queue's own table: links, addresses, lengths, directions. Virtio 1.2 §2.7.5.

use crate::virtio::hostile::Attack;
use crate::virtio::hostile::attack::{HIGH, HIGH_END, QUEUE_SIZE};
use crate::virtio::hostile::case::{Case, Expect, Row, Scope, table};
use crate::virtio::testing::{Descriptor, END, NEXT, SEAM, WRITE};

use Expect::{Either, Fine, Reset};

/// Where buffers are that are not: name, address, length.
const NOWHERE: &[(&str, u64, u32)] = &[
    ("just behind memory", END, 1),
    ("over the end of memory", END - 1, 2),
    ("from memory into the hole", END - 0x1000, 0x2000),
    ("in the hole", 0x8000_0000, 0x1000),
    ("on the device's own registers", 0xd000_0000, 0x1000),
    ("on the local APIC", 0xfee0_0000, 0x1000),
    ("just below the high memory", HIGH - 1, 1),
    ("from the hole into high memory", HIGH - 0x800, 0x1000),
    ("just behind the high memory", HIGH_END, 1),
    ("over the end of high memory", HIGH_END - 1, 2),
    ("all of the hole and more", END - 0x1000, 0xffc0_0000),
    ("at bit 63", 1 << 63, 0x1000),
    ("at an address no CPU has", 0x0008_0000_0000_0000, 1),
    ("at the last address", u64::MAX, 1),
    ("over the last address", u64::MAX - 0xfff, 0x1001),
    ("up to the last address", u64::MAX - 0xfff, 0x1000),
    ("round to the first address", u64::MAX - 0xfff, 0x2000),
    ("of 4 GiB from the first address", 0, u32::MAX),
    ("of 2 GiB from the first address", 0, 1 << 31),
    ("of nothing", 0x1000, 0),
    ("of nothing behind memory", END, 0),
];

/// A usual request whose first or last buffer is replaced.
fn replace(attack: &mut Attack, last: bool, by: Descriptor) {
    attack.start();
    let mut request = attack.request();
    let at = if last { request.len() - 1 } else { 0 };
    request[at] = by;
    attack.driver().submit(&request);
}

/// A chain as it is.
fn submit(attack: &mut Attack, chain: &[Descriptor]) {
    attack.start();
    attack.driver().submit(chain);
}

/// Descriptors of the table as they are, from the first; the chain starts with the first.
fn link(attack: &mut Attack, descriptors: &[Descriptor]) {
    attack.start();
    for (index, descriptor) in (0..).zip(descriptors) {
        attack.driver().set_descriptor(index, *descriptor);
    }
    attack.driver().publish(0);
}

/// A usual request, and a buffer over something of the queue's, which the device may then write over.
fn on_top(attack: &mut Attack, of: fn(&Attack) -> (u64, u64)) {
    attack.start();
    let (start, len) = of(attack);
    let len = u32::try_from(len).expect("rings are small");
    let mut request = attack.request();
    let last = request.len() - 1;
    request[last].address = start;
    request[last].len = len;
    attack.driver().submit(&request);
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = table(Scope::Queue, ROWS);
    for &(place, address, len) in NOWHERE {
        let sides = [
            ("readable", Descriptor::readable(address, len), false),
            ("writable", Descriptor::writable(address, len), true),
        ];
        for (side, buffer, last) in sides {
            let name = format!("a {side} buffer {place}");
            let act = move |a: &mut Attack| replace(a, last, buffer);
            cases.push(Case::new(name, Scope::Queue, Reset, act));
        }
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
    ("a descriptor that follows itself", Reset, |a| {
        link(a, &[BYTE.with(NEXT, 0)]);
    }),
    ("a writable descriptor that follows itself", Reset, |a| {
        link(a, &[ROOM.with(NEXT, 0)]);
    }),
    ("two descriptors that follow each other", Reset, |a| {
        link(a, &[BYTE.with(NEXT, 1), BYTE.with(NEXT, 0)]);
    }),
    ("a request whose end leads to its start", Reset, |a| {
        a.start();
        let request = a.request();
        a.driver().submit(&request);
        let last = u16::try_from(request.len() - 1).expect("short");
        let looped = request[usize::from(last)].with(NEXT, 0);
        a.driver().set_descriptor(last, looped);
    }),
    ("a ring of all descriptors", Reset, |a| {
        a.start();
        for index in 0..QUEUE_SIZE {
            let next = (index + 1) % QUEUE_SIZE;
            a.driver().set_descriptor(index, ROOM.with(NEXT, next));
        }
        a.driver().publish(5);
    }),
    ("a link just out of the table", Reset, |a| {
        link(a, &[BYTE.with(NEXT, QUEUE_SIZE)]);
    }),
    ("a link far out of the table", Reset, |a| {
        link(a, &[BYTE.with(NEXT, u16::MAX)]);
    }),
    ("a link to a descriptor of zeroes", Reset, |a| {
        link(a, &[BYTE.with(NEXT, QUEUE_SIZE - 1)]);
    }),
    ("readable after writable", Reset, |a| {
        submit(a, &[ROOM, BYTE]);
    }),
    ("readable between writable", Reset, |a| {
        submit(a, &[BYTE, ROOM, BYTE, ROOM]);
    }),
    ("one readable byte", Either, |a| submit(a, &[BYTE])),
    ("one writable byte", Either, |a| submit(a, &[ROOM])),
    ("a byte each way", Either, |a| submit(a, &[BYTE, ROOM])),
    ("a request turned round", Either, |a| {
        a.start();
        let mut request = a.request();
        request.iter_mut().for_each(|part| part.flags ^= WRITE);
        a.driver().submit(&request);
    }),
    ("a request all readable", Either, |a| {
        a.start();
        let mut request = a.request();
        request.iter_mut().for_each(|part| part.flags = 0);
        a.driver().submit(&request);
    }),
    ("a request all writable", Either, |a| {
        a.start();
        let mut request = a.request();
        request.iter_mut().for_each(|part| part.flags = WRITE);
        a.driver().submit(&request);
    }),
    ("a request backwards", Either, |a| {
        a.start();
        let mut request = a.request();
        request.reverse();
        a.driver().submit(&request);
    }),
    ("a request without its last buffer", Either, |a| {
        a.start();
        let mut request = a.request();
        request.pop();
        request.push(Descriptor::readable(0x8000, 1));
        a.driver().submit(&request);
    }),
    ("a request with a byte less in each buffer", Either, |a| {
        a.start();
        let mut request = a.request();
        request
            .iter_mut()
            .for_each(|part| part.len = (part.len - 1).max(1));
        a.driver().submit(&request);
    }),
    ("a request with a byte more in each buffer", Either, |a| {
        a.start();
        let mut request = a.request();
        request.iter_mut().for_each(|part| part.len += 1);
        a.driver().submit(&request);
    }),
    ("a request of one byte buffers", Either, |a| {
        a.start();
        let mut request = a.request();
        request.iter_mut().for_each(|part| part.len = 1);
        a.driver().submit(&request);
    }),
    ("a request of pages of ones", Either, |a| {
        a.start();
        let mut request = a.request();
        for part in &mut request {
            let ones = a.driver().alloc_with(&[0xff; 4096]);
            (part.address, part.len) = (ones, 4096);
        }
        a.driver().submit(&request);
    }),
    ("a request of zeroes", Either, |a| {
        a.start();
        let mut request = a.request();
        for part in &mut request {
            part.address = a.driver().alloc_with(&vec![0; 1 << 12]);
        }
        a.driver().submit(&request);
    }),
    ("a chain as long as the queue, readable", Either, |a| {
        submit(a, &[BYTE; QUEUE_SIZE as usize]);
    }),
    ("a chain as long as the queue, writable", Either, |a| {
        submit(a, &[ROOM; QUEUE_SIZE as usize]);
    }),
    ("buffers of all memory", Either, |a| {
        let all = u32::try_from(END).expect("small");
        submit(
            a,
            &[Descriptor::readable(0, all), Descriptor::writable(0, all)],
        );
    }),
    ("buffers of 16 times all memory", Either, |a| {
        let all = u32::try_from(END).expect("small");
        submit(a, &[Descriptor::writable(0, all); QUEUE_SIZE as usize]);
    }),
    ("buffers of 16 times all memory to read", Either, |a| {
        let all = u32::try_from(END).expect("small");
        submit(a, &[Descriptor::readable(0, all); QUEUE_SIZE as usize]);
    }),
    ("two buffers of 2 GiB", Reset, |a| {
        let half = Descriptor::readable(0, 1 << 31);
        submit(a, &[half, half]);
    }),
    ("a buffer over the seam of two regions", Fine, |a| {
        a.start();
        let mut request = a.request();
        let last = request.len() - 1;
        let len = request[last].len;
        if len > 1 {
            let bytes = a.driver().read(request[last].address, len);
            let over = SEAM - u64::from(len / 2);
            a.driver().write(over, &bytes);
            request[last].address = over;
        }
        a.driver().submit(&request);
    }),
    ("a buffer up to the last byte", Fine, |a| {
        a.start();
        let mut request = a.request();
        let last = request.len() - 1;
        let len = request[last].len;
        let bytes = a.driver().read(request[last].address, len);
        let at = HIGH_END - u64::from(len);
        a.driver().write(at, &bytes);
        request[last].address = at;
        a.driver().submit(&request);
    }),
    ("the same buffer for every part", Either, |a| {
        a.start();
        let mut request = a.request();
        let address = request[0].address;
        request.iter_mut().for_each(|part| part.address = address);
        a.driver().submit(&request);
    }),
    ("a buffer on the descriptor table", Either, |a| {
        on_top(a, |a| {
            let driver = &a.drivers[usize::from(a.queue)];
            (driver.descriptor_table(), 16 * u64::from(QUEUE_SIZE))
        });
    }),
    ("a buffer on the avail ring", Either, |a| {
        on_top(a, |a| {
            let driver = &a.drivers[usize::from(a.queue)];
            (driver.avail_ring(), 6 + 2 * u64::from(QUEUE_SIZE))
        });
    }),
    ("a buffer on the used ring", Either, |a| {
        on_top(a, |a| {
            let driver = &a.drivers[usize::from(a.queue)];
            (driver.used_ring(), 6 + 8 * u64::from(QUEUE_SIZE))
        });
    }),
    ("a buffer on everything of the queue", Either, |a| {
        on_top(a, |a| {
            (a.drivers[usize::from(a.queue)].descriptor_table(), 0x4000)
        });
    }),
    ("flags that do not exist", Either, |a| {
        a.start();
        let mut request = a.request();
        request.iter_mut().for_each(|part| part.flags |= 0xfff8);
        a.driver().submit(&request);
    }),
];
