//! virtio-net under attack: frames with headers that lie, receive buffers of no use, commands that nobody
//! knows. The other end of the cable sends frames of all sizes whenever it is poked.

use super::Attack;
use super::case::{Case, Expect, Row, Scope, table};
use super::subject::{Host, QueuePlan, Stage, Subject};
use crate::virtio::net::NetControl;
use crate::virtio::net::testing::{FarEnd, Outlet, card, frame};
use crate::virtio::testing::{Descriptor, END, NEXT, reg, status};

use Expect::{Either, Fine, Reset};

/// VIRTIO_NET_F_MQ.
const F_MQ: u64 = 1 << 22;
/// VIRTIO_NET_F_MRG_RXBUF.
const F_MRG_RXBUF: u64 = 1 << 15;

const RX: u16 = 0;
pub(super) const TX: u16 = 1;
/// Of a card of one pair.
const CONTROL: u16 = 2;

/// Bytes of `struct virtio_net_hdr`.
pub(super) const HEADER: usize = 12;

/// A card of one queue pair.
pub(super) fn subject() -> Subject {
    Subject {
        name: "net",
        stage: || stage(1),
        serves,
        needs: 0,
        cases,
    }
}

/// A card of two queue pairs, each a lane, and the control queue's.
pub(super) fn pairs() -> Subject {
    Subject {
        name: "net-pairs",
        stage: || stage(2),
        // Without it the control queue is where the second pair would be.
        needs: F_MQ,
        cases: || table(Scope::Device, PAIR_ROWS),
        ..subject()
    }
}

/// The queues of a card of so many pairs.
pub(super) fn plans(pairs: usize) -> Vec<QueuePlan> {
    let plan = |request| QueuePlan {
        request,
        taken: true,
    };
    let receive = plan(|driver| vec![driver.writable(2048)]);
    let transmit = plan(|driver| vec![driver.readable(&frame(60))]);
    let control = plan(|driver| {
        vec![
            driver.readable(&[1, 1, 2, 0, 0, 0, 0, 9]),
            driver.writable(1),
        ]
    });
    let mut queues = [receive, transmit].repeat(pairs);
    queues.push(control);
    queues
}

fn stage(pairs: usize) -> Stage {
    let (net, outlet, ends) = card(pairs);
    Stage {
        queues: plans(pairs),
        host: Box::new(Street {
            ends,
            outlet,
            control: net.control(),
            frames: [14, 60, 1514, 9000, 65_000].map(frame),
        }),
        device: Box::new(net),
    }
}

/// The other ends of the cables, and the hand on the plug.
#[derive(Debug)]
struct Street {
    ends: Vec<FarEnd>,
    outlet: Outlet,
    control: NetControl,
    /// What it sends each time.
    frames: [Vec<u8>; 5],
}

impl Host for Street {
    fn poke(&mut self, what: u8) {
        for end in &self.ends {
            // What was sent makes room for more.
            while end.receive().is_some() {}
            // The longest only now and then.
            let count = if what == 1 { 5 } else { 4 };
            for frame in &self.frames[..count] {
                end.send(frame);
            }
        }
        match what {
            2 => {
                self.control.set_plugged(false);
                self.control.set_plugged(true);
            }
            3 => {
                let down = !self.outlet.state().down;
                self.outlet.state().down = down;
                let _ = self.outlet.event.write(1);
            }
            _ => {}
        }
    }
}

/// Sends a frame of its own through the first pair until one arrives that was sent for it, and asks for an
/// address.
pub(super) fn serves(attack: &mut Attack) {
    let control = u16::try_from(attack.queues.len() - 1).unwrap_or(CONTROL);
    let driver = &mut attack.drivers[usize::from(TX)];
    driver.recycle();
    let out = driver.readable(&frame(100));
    let head = driver.submit(&[out]);
    attack.machine.kick(TX);
    let used = attack.wait_used(TX, 1);
    assert_eq!(used, [(head, 0)]);

    let driver = &mut attack.drivers[usize::from(RX)];
    driver.recycle();
    // All of the ring, which then has room for the longest frame that may be under way.
    for _ in 0..driver.size() {
        let buffer = driver.writable(4096);
        driver.submit(&[buffer]);
    }
    attack.machine.kick(RX);
    attack.poke(0);
    let used = attack.wait_used(RX, 1);
    assert!(used[0].1 > 12, "{used:?}");

    let driver = &mut attack.drivers[usize::from(control)];
    driver.recycle();
    let (command, answer) = (
        driver.readable(&[1, 1, 2, 0, 0, 0, 0, 9]),
        driver.writable(1),
    );
    let head = driver.submit(&[command, answer]);
    attack.machine.kick(control);
    let used = attack.wait_used(control, 1);
    assert_eq!(used, [(head, 1)]);
    assert_eq!(
        attack.drivers[usize::from(control)].read(answer.address, 1),
        [0]
    );
}

/// Sends a frame of 100 bytes behind this header, and sees it taken.
fn send(attack: &mut Attack, header: [u8; HEADER]) {
    attack.start();
    let driver = &mut attack.drivers[usize::from(TX)];
    let parts = [driver.readable(&header), driver.readable(&[0x5a; 100])];
    driver.submit(&parts);
    attack.machine.kick(TX);
    attack.wait_used(TX, 1);
}

/// Commands the card; what it answers must be this.
fn command(attack: &mut Attack, bytes: &[u8], expected: u8) {
    attack.start();
    let driver = &mut attack.drivers[usize::from(CONTROL)];
    let (command, answer) = (driver.readable(bytes), driver.writable(4));
    driver.submit(&[command, answer]);
    attack.machine.kick(CONTROL);
    attack.wait_used(CONTROL, 1);
    let driver = &attack.drivers[usize::from(CONTROL)];
    assert_eq!(driver.read(answer.address, 4), [expected, 0xee, 0xee, 0xee]);
}

/// Starts the card and submits a chain to a queue as it is.
fn submit(attack: &mut Attack, queue: u16, chain: &[Descriptor]) {
    attack.start();
    attack.queue = queue;
    attack.driver().submit(chain);
}

const OK: u8 = 0;
const ERR: u8 = 1;

fn cases() -> Vec<Case> {
    let mut cases = table(Scope::Device, ROWS);
    let commands: [(&str, &[u8], u8); 16] = [
        ("a class that does not exist", &[0xff, 0, 0], ERR),
        ("a promiscuous mode that was not offered", &[0, 0, 1], ERR),
        ("a VLAN that was not offered", &[2, 0, 5, 0], ERR),
        (
            "a MAC table that was not offered",
            &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            ERR,
        ),
        ("a MAC address cut off", &[1, 1, 2, 0, 0], ERR),
        ("a MAC address too long", &[1, 1, 2, 0, 0, 0, 0, 9, 9], ERR),
        ("a multicast MAC address", &[1, 1, 1, 0, 0, 0, 0, 9], ERR),
        ("a MAC address of zeroes", &[1, 1, 0, 0, 0, 0, 0, 0], ERR),
        (
            "a MAC command that does not exist",
            &[1, 0xff, 2, 0, 0, 0, 0, 9],
            ERR,
        ),
        ("a number of pairs that was not offered", &[4, 0, 2, 0], ERR),
        ("no pairs", &[4, 0, 0, 0], ERR),
        ("65535 pairs", &[4, 0, 0xff, 0xff], ERR),
        (
            "every offload there is",
            &[5, 0, 255, 255, 255, 255, 255, 255, 255, 255],
            ERR,
        ),
        ("offloads cut off", &[5, 0, 1], ERR),
        ("no offloads", &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], OK),
        ("an announcement that was not offered", &[3, 0], ERR),
    ];
    for (name, bytes, expected) in commands {
        let act = move |a: &mut Attack| command(a, bytes, expected);
        cases.push(Case::new(format!("net: {name}"), Scope::Device, Fine, act));
    }
    cases
}

const ROWS: &[Row] = &[
    ("net: a header of all ones", Fine, |a| {
        send(a, [0xff; HEADER])
    }),
    ("net: an unknown segmentation type", Fine, |a| {
        send(a, [1, 0x7f, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
    }),
    ("net: segments of no bytes", Fine, |a| {
        send(a, [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
    }),
    ("net: a checksum behind the frame", Fine, |a| {
        send(a, [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    }),
    ("net: a checksum over its own end", Fine, |a| {
        send(a, [1, 0, 0, 0, 0, 0, 99, 0, 1, 0, 0, 0]);
    }),
    ("net: a header longer than the frame", Fine, |a| {
        send(a, [1, 1, 0xff, 0xff, 100, 0, 34, 0, 16, 0, 0, 0]);
    }),
    ("net: a header of 11 bytes", Reset, |a| {
        submit(a, TX, &[Descriptor::readable(0x8000, 11)]);
    }),
    ("net: a frame of no bytes", Either, |a| {
        submit(a, TX, &[Descriptor::readable(0x8000, 12)]);
    }),
    ("net: a frame of one byte", Either, |a| {
        submit(a, TX, &[Descriptor::readable(0x8000, 13)]);
    }),
    ("net: a frame of a megabyte", Either, |a| {
        submit(a, TX, &[Descriptor::readable(0x20_0000, 1 << 20)]);
    }),
    ("net: a frame of all memory, many times", Either, |a| {
        let all = u32::try_from(END).unwrap_or(0);
        submit(a, TX, &[Descriptor::readable(0, all); 16]);
    }),
    ("net: a frame to write to", Reset, |a| {
        submit(a, TX, &[Descriptor::writable(0x8000, 100)]);
    }),
    ("net: a frame with room to write to", Reset, |a| {
        let (out, room) = (
            Descriptor::readable(0x8000, 100),
            Descriptor::writable(0x9000, 1),
        );
        submit(a, TX, &[out, room]);
    }),
    ("net: a frame in buffers of one byte", Fine, |a| {
        submit(a, TX, &[Descriptor::readable(0x8000, 1); 16]);
    }),
    ("net: a receive buffer shorter than a header", Reset, |a| {
        submit(a, RX, &[Descriptor::writable(0x8000, 11)]);
    }),
    ("net: a receive buffer of a header", Fine, |a| {
        submit(a, RX, &[Descriptor::writable(0x8000, 12)]);
    }),
    ("net: a receive buffer to read", Reset, |a| {
        submit(a, RX, &[Descriptor::readable(0x8000, 2048)]);
    }),
    ("net: a receive buffer with something to read", Reset, |a| {
        let (out, room) = (
            Descriptor::readable(0x8000, 12),
            Descriptor::writable(0x9000, 2048),
        );
        submit(a, RX, &[out, room]);
    }),
    ("net: receive buffers of one byte", Fine, |a| {
        submit(a, RX, &[Descriptor::writable(0x8000, 1); 16]);
    }),
    ("net: a receive buffer of all memory", Either, |a| {
        let all = u32::try_from(END).unwrap_or(0);
        submit(a, RX, &[Descriptor::writable(0, all)]);
    }),
    ("net: every receive buffer in the same place", Fine, |a| {
        a.start();
        for _ in 0..16 {
            a.drivers[0].submit(&[Descriptor::writable(0x8000, 128)]);
        }
    }),
    (
        "net: receive buffers shorter than any frame, unmerged",
        Fine,
        |a| {
            let offered = a.machine.offered();
            a.start_with(offered & !F_MRG_RXBUF);
            for _ in 0..8 {
                let buffer = a.drivers[0].writable(20);
                a.drivers[0].submit(&[buffer]);
            }
        },
    ),
    ("net: frames received onto the transmit ring", Either, |a| {
        a.start();
        let table = a.drivers[1].descriptor_table();
        a.drivers[0].submit(&[Descriptor::writable(table, 0x1000)]);
        a.submit_request();
        a.provoke();
        let frame = a.drivers[1].readable(&frame(60));
        a.drivers[1].submit(&[frame]);
        a.queue = TX;
    }),
    (
        "net: received and sent through the same buffer",
        Either,
        |a| {
            a.start();
            let buffer = a.drivers[0].writable(2048);
            a.drivers[0].submit(&[buffer]);
            a.drivers[1].submit(&[Descriptor::readable(buffer.address, 2048)]);
            a.machine.kick(TX);
        },
    ),
    ("net: a command of one byte", Reset, |a| {
        let (out, room) = (
            Descriptor::readable(0x8000, 1),
            Descriptor::writable(0x9000, 1),
        );
        submit(a, CONTROL, &[out, room]);
    }),
    ("net: a command without room for the answer", Reset, |a| {
        submit(a, CONTROL, &[Descriptor::readable(0x8000, 8)]);
    }),
    ("net: an answer on the command", Either, |a| {
        a.start();
        let bytes = a.drivers[2].readable(&[1, 1, 2, 0, 0, 0, 0, 9]);
        let over = Descriptor::writable(bytes.address, 8);
        a.drivers[2].submit(&[bytes, over]);
        a.queue = CONTROL;
    }),
    ("net: a command of a megabyte", Fine, |a| {
        let out = Descriptor::readable(0x20_0000, 1 << 20);
        submit(a, CONTROL, &[out, Descriptor::writable(0x9000, 1)]);
    }),
    ("net: a command that loops", Reset, |a| {
        a.start();
        a.queue = CONTROL;
        let byte = Descriptor::readable(0x8000, 1);
        a.driver().set_descriptor(0, byte.with(NEXT, 0));
        a.driver().publish(0);
    }),
    ("net: frames without end while nobody receives", Fine, |a| {
        a.start();
        for _ in 0..20 {
            a.poke(0);
        }
        a.turn();
    }),
    ("net: the plug pulled again and again", Fine, |a| {
        a.start();
        for _ in 0..12 {
            a.submit_request();
            a.poke(2);
            a.kick_all();
            a.drivers[0].recycle();
        }
    }),
];

const PAIR_ROWS: &[Row] = &[
    ("net: more pairs than there are", Fine, |a| {
        a.start();
        let driver = &mut a.drivers[4];
        let parts = [driver.readable(&[4, 0, 3, 0]), driver.writable(1)];
        driver.submit(&parts);
        a.machine.kick(4);
        a.wait_used(4, 1);
        assert_eq!(a.drivers[4].read(parts[1].address, 1), [ERR]);
    }),
    ("net: pairs switched back and forth", Fine, |a| {
        a.start();
        for round in 0..20 {
            let driver = &mut a.drivers[4];
            driver.recycle();
            let parts = [
                driver.readable(&[4, 0, 1 + round % 2, 0]),
                driver.writable(1),
            ];
            driver.submit(&parts);
            a.machine.kick(4);
            a.poke(0);
            a.wait_used(4, 1);
            assert_eq!(a.drivers[4].read(parts[1].address, 1), [OK]);
        }
    }),
    ("net: both pairs receive into the same buffers", Fine, |a| {
        a.start();
        for queue in [0, 2] {
            for _ in 0..16 {
                a.drivers[queue].submit(&[Descriptor::writable(0x8000, 128)]);
            }
        }
        a.machine.kick(2);
        a.poke(0);
    }),
    ("net: a driver that does not know of pairs", Either, |a| {
        let offered = a.machine.offered();
        a.agree_on(offered & !F_MQ);
        for (queue, driver) in (0..).zip(&a.drivers) {
            a.machine.set_queue(queue, driver);
        }
        let ok = status::DRIVER_OK;
        a.machine.set(reg::STATUS, ok);
        a.submit_request();
        a.kick_all();
        a.poke(0);
    }),
];
