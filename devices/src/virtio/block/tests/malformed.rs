//! Chains no driver may make, one line each: they fault, and leave no trace on the disk and in the
//! used ring.

use super::case::{Answer, Fault, check, status_of, submit, submit_indirect, with_data};
use super::*;
use crate::mem::GuestAddress;
use crate::virtio::testing::{END, INDIRECT, NEXT, WRITE};

/// An indirect descriptor that says this of a table with a usual read in it.
fn with_table(driver: &mut Driver, change: fn(Descriptor) -> Descriptor) -> u64 {
    let chain = request(driver, IN, 0, &[], 512);
    let table = driver.alloc(48);
    driver.chain(table, 0, &chain);
    driver.submit(&[change(Descriptor::indirect(table, 48))]);
    chain[2].address
}

#[test]
fn shapes_no_request_has() {
    check(&[
        ("only a status byte", Fault("header"), |d| {
            let chain = [d.writable(1)];
            submit(d, &chain)
        }),
        ("a header of 15 bytes", Fault("header"), |d| {
            let chain = [d.readable(&[0; 15]), d.writable(1)];
            submit(d, &chain)
        }),
        ("a header of 8 and 7 bytes", Fault("header"), |d| {
            let chain = [d.readable(&[0; 8]), d.readable(&[0; 7]), d.writable(513)];
            submit(d, &chain)
        }),
        ("a header the device may only write", Fault("header"), |d| {
            let chain = [d.writable(16), d.writable(512), d.writable(1)];
            submit(d, &chain)
        }),
        ("no status byte", Fault("status"), |d| {
            let chain = [d.readable(&header(FLUSH, 0))];
            submit(d, &chain)
        }),
        ("a write without status byte", Fault("status"), |d| {
            let chain = [d.readable(&header(OUT, 0)), d.readable(&[0; 512])];
            submit(d, &chain)
        }),
        (
            "an unknown type without status byte",
            Fault("status"),
            |d| {
                let chain = [d.readable(&header(77, 0))];
                submit(d, &chain)
            },
        ),
        (
            "a read into device-readable data",
            Fault("direction"),
            |d| status_of(ask(d, IN, 0, &[0; 512], 0)),
        ),
        ("a read with data both ways", Fault("direction"), |d| {
            status_of(ask(d, IN, 0, &[0; 512], 512))
        }),
        (
            "a write from device-writable data",
            Fault("direction"),
            |d| status_of(ask(d, OUT, 0, &[], 512)),
        ),
        ("a write with data both ways", Fault("direction"), |d| {
            status_of(ask(d, OUT, 0, &[0; 512], 1))
        }),
        ("a discard with room to write", Fault("direction"), |d| {
            status_of(ask(d, DISCARD, 0, &segment(0, 1, 0), 16))
        }),
        (
            "a write-zeroes with room to write",
            Fault("direction"),
            |d| status_of(ask(d, WRITE_ZEROES, 0, &segment(0, 1, 0), 16)),
        ),
        ("readable after writable", Fault("follows"), |d| {
            let chain = [d.writable(1), d.readable(&header(FLUSH, 0))];
            submit(d, &chain)
        }),
        ("readable between writable", Fault("follows"), |d| {
            let first = d.readable(&header(IN, 0));
            let chain = [first, d.writable(512), d.readable(&[0]), d.writable(1)];
            submit(d, &chain)
        }),
    ]);
}

#[test]
fn buffers_that_are_not_there() {
    check(&[
        ("an empty header", Fault("empty"), |d| {
            let chain = [d.readable(&[]), d.writable(1)];
            submit(d, &chain)
        }),
        ("empty data", Fault("empty"), |d| {
            with_data(d, Descriptor::writable(0x8000, 0))
        }),
        ("an empty status", Fault("empty"), |d| {
            let chain = [d.readable(&header(FLUSH, 0)), d.writable(0)];
            submit(d, &chain)
        }),
        ("a header behind the memory", Fault("outside"), |d| {
            let chain = [Descriptor::readable(END, 16), d.writable(1)];
            submit(d, &chain)
        }),
        ("data behind the memory", Fault("outside"), |d| {
            with_data(d, Descriptor::writable(END, 512))
        }),
        ("data that runs out of the memory", Fault("outside"), |d| {
            with_data(d, Descriptor::writable(END - 511, 512))
        }),
        ("data at the last address", Fault("outside"), |d| {
            with_data(d, Descriptor::writable(u64::MAX, 512))
        }),
        ("data that wraps around", Fault("outside"), |d| {
            with_data(d, Descriptor::writable(u64::MAX - 511, 1024))
        }),
        ("data of 4 GiB", Fault("4 GiB"), |d| {
            with_data(d, Descriptor::writable(0, u32::MAX))
        }),
        ("a status behind the memory", Fault("outside"), |d| {
            let chain = [d.readable(&header(FLUSH, 0)), Descriptor::writable(END, 1)];
            submit(d, &chain)
        }),
        ("a status just behind the memory", Fault("outside"), |d| {
            let chain = [
                d.readable(&header(IN, 0)),
                Descriptor::writable(END - 512, 513),
            ];
            submit(d, &chain)
        }),
    ]);
}

#[test]
fn links_that_lead_nowhere() {
    check(&[
        ("a descriptor that follows itself", Fault("loop"), |d| {
            let header = d.readable(&header(IN, 0));
            d.set_descriptor(0, header.with(NEXT, 0));
            d.publish(0);
            0
        }),
        ("two that follow each other", Fault("loop"), |d| {
            let header = d.readable(&header(IN, 0));
            d.set_descriptor(0, header.with(NEXT, 1));
            d.set_descriptor(1, header.with(NEXT, 0));
            d.publish(0);
            0
        }),
        ("a ring of all descriptors", Fault("loop"), |d| {
            let header = d.readable(&header(IN, 0));
            for index in 0..QUEUE_SIZE {
                d.set_descriptor(index, header.with(NEXT, (index + 1) % QUEUE_SIZE));
            }
            d.publish(5);
            0
        }),
        ("a writable loop", Fault("loop"), |d| {
            let (header, data) = (d.readable(&header(IN, 0)), d.writable(512));
            d.set_descriptor(0, header.with(NEXT, 1));
            d.set_descriptor(1, data.with(NEXT, 1));
            d.publish(0);
            0
        }),
        ("a link just out of the table", Fault("loop"), |d| {
            let header = d.readable(&header(IN, 0));
            d.set_descriptor(0, header.with(NEXT, QUEUE_SIZE));
            d.publish(0);
            0
        }),
        ("a link far out of the table", Fault("loop"), |d| {
            let header = d.readable(&header(IN, 0));
            d.set_descriptor(0, header.with(NEXT, u16::MAX));
            d.publish(0);
            0
        }),
        ("a head just out of the table", Fault("loop"), |d| {
            d.publish(QUEUE_SIZE);
            0
        }),
        ("a head far out of the table", Fault("loop"), |d| {
            d.publish(u16::MAX);
            0
        }),
        ("an avail index ahead of the queue", Fault("index"), |d| {
            ask(d, IN, 0, &[], 512);
            d.set_avail_idx(QUEUE_SIZE + 1);
            0
        }),
        ("an avail index behind the device", Fault("index"), |d| {
            d.set_avail_idx(u16::MAX);
            0
        }),
    ]);
}

#[test]
fn indirect_tables() {
    check(&[
        ("empty", Fault("loop"), |d| {
            with_table(d, |table| Descriptor { len: 0, ..table })
        }),
        ("15 bytes", Fault("does not end"), |d| {
            with_table(d, |table| Descriptor { len: 15, ..table })
        }),
        ("49 bytes", Fault("does not end"), |d| {
            with_table(d, |table| Descriptor { len: 49, ..table })
        }),
        ("shorter than its chain", Fault("loop"), |d| {
            with_table(d, |table| Descriptor { len: 32, ..table })
        }),
        ("65536 entries", Fault("longer than any"), |d| {
            with_table(d, |table| Descriptor {
                len: 1 << 20,
                ..table
            })
        }),
        ("4 GiB", Fault("longer than any"), |d| {
            with_table(d, |table| Descriptor { len: !15, ..table })
        }),
        ("behind the memory", Fault("loop"), |d| {
            with_table(d, |table| Descriptor {
                address: END,
                ..table
            })
        }),
        ("at the end of the memory", Fault("loop"), |d| {
            with_table(d, |table| Descriptor {
                address: END - 8,
                ..table
            })
        }),
        ("at the last address", Fault("loop"), |d| {
            with_table(d, |table| Descriptor {
                address: u64::MAX - 7,
                ..table
            })
        }),
        ("in a table", Fault("within an indirect"), |d| {
            let chain = request(d, IN, 0, &[], 512);
            let inner = d.alloc(48);
            d.chain(inner, 0, &chain);
            let chain = [Descriptor::indirect(inner, 48)];
            submit_indirect(d, &chain)
        }),
        ("in itself", Fault("within an indirect"), |d| {
            let table = d.alloc(16);
            d.set_descriptor_at(table, 0, Descriptor::indirect(table, 16));
            d.submit(&[Descriptor::indirect(table, 16)]);
            0
        }),
        ("a loop in it", Fault("loop"), |d| {
            let (table, header) = (d.alloc(16), d.readable(&header(IN, 0)));
            d.set_descriptor_at(table, 0, header.with(NEXT, 0));
            d.submit(&[Descriptor::indirect(table, 16)]);
            0
        }),
        ("a loop longer than the queue", Fault("longer"), |d| {
            let (table, header) = (d.alloc(16 * 1000), d.readable(&header(IN, 0)));
            for index in 0..1000 {
                d.set_descriptor_at(table, index, header.with(NEXT, (index + 1) % 1000));
            }
            d.submit(&[Descriptor::indirect(table, 16 * 1000)]);
            0
        }),
        ("a chain longer than the queue", Fault("longer"), |d| {
            let mut chain = vec![d.readable(&header(IN, 0))];
            chain.extend([Descriptor::writable(0x10_0000, 512); 32]);
            submit_indirect(d, &chain)
        }),
        (
            "a chain as long as the queue",
            Answer(OK, 30 * 512 + 1),
            |d| {
                let mut chain = vec![d.readable(&header(IN, 0))];
                chain.extend([Descriptor::writable(0x10_0000, 512); 30]);
                chain.push(d.writable(1));
                submit_indirect(d, &chain)
            },
        ),
        (
            "marked writable, which says nothing",
            Answer(OK, 513),
            |d| with_table(d, |table| table.with(WRITE, 0)),
        ),
        ("at an odd address", Answer(OK, 513), |d| {
            let chain = request(d, IN, 0, &[], 512);
            let table = d.alloc(49) + 1;
            d.chain(table, 0, &chain);
            d.submit(&[Descriptor::indirect(table, 48)]);
            chain[2].address
        }),
        ("after a plain descriptor", Answer(OK, 513), |d| {
            let chain = request(d, IN, 0, &[], 512);
            let table = d.alloc(32);
            d.chain(table, 0, &chain[1..]);
            d.submit(&[chain[0], Descriptor::indirect(table, 32)]);
            chain[2].address
        }),
        ("that is a header", Fault("empty"), |d| {
            let chain = [d.readable(&header(IN, 0)).with(INDIRECT, 0), d.writable(1)];
            submit(d, &chain)
        }),
    ]);
}

#[test]
fn a_ring_outside_the_memory_is_a_fault_and_not_an_empty_ring() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    // The index is the last thing in memory, the entries are behind it.
    let avail = END - 4;
    bench.driver.write(avail + 2, &1u16.to_le_bytes());
    let address = GuestAddress(avail);
    bench.queues[0].try_set_avail_ring_address(address).unwrap();
    bench.kick(worker.as_mut()).unwrap_err();

    for set in [
        Queue::try_set_desc_table_address,
        Queue::try_set_used_ring_address,
    ] {
        let mut bench = Bench::new(info());
        let mut worker = bench.worker();
        ask(&mut bench.driver, IN, 0, &[], 512);
        set(&mut bench.queues[0], GuestAddress(END)).unwrap();
        bench.kick(worker.as_mut()).unwrap_err();
    }
}
