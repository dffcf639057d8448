//! virtio-vsock under attack: headers that lie. What becomes of the connections that they are about is
//! asked where the device's own tests are.

use std::io::Write;
use std::os::unix::net::UnixStream;

use super::Attack;
use super::case::{Expect, Row, Scope, table};
use super::subject::{Host, QueuePlan, Stage, Subject};
use crate::virtio::testing::{Descriptor, Driver};
use crate::virtio::vsock::packet::{HEADER, Header, Op};
use crate::virtio::vsock::{Vsock, testing};

use Expect::{Either, Fine};

const CID: u32 = 3;
const RX: usize = 0;
const TX: usize = 1;

/// The socket device.
pub(super) fn subject() -> Subject {
    Subject {
        name: "vsock",
        stage,
        serves,
        needs: 0,
        cases: || table(Scope::Device, ROWS),
    }
}

fn stage() -> Stage {
    let host = testing::Host::new();
    let plan = |request, taken| QueuePlan { request, taken };
    Stage {
        device: Box::new(Vsock::new(CID, Box::new(host.clone()))),
        queues: vec![
            plan(|driver| vec![driver.writable(1024)], true),
            plan(|driver| vec![packet(driver, &header(Op::Request))], true),
            plan(|driver| vec![driver.writable(4)], false),
        ],
        host: Box::new(Callers {
            host,
            calls: Vec::new(),
        }),
    }
}

/// Host programs that want to connect, and peers of the guest that say something or leave.
#[derive(Debug)]
struct Callers {
    host: testing::Host,
    calls: Vec<UnixStream>,
}

impl Host for Callers {
    fn poke(&mut self, what: u8) {
        let mut state = self.host.state();
        match what {
            0 => {
                drop(state);
                let mut call = self.host.call();
                // The device may have closed it.
                let _ = call.write_all(b"CONNECT 52\nhello");
                self.calls.push(call);
            }
            1 => {
                for (_, peer) in &mut state.arrived {
                    let _ = peer.set_nonblocking(true);
                    let _ = peer.write(&[0x5a; 4096]);
                }
            }
            2 => drop(state.arrived.pop_front()),
            _ => self.calls.clear(),
        }
    }
}

fn header(op: Op) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: 2,
        src_port: 1000,
        dst_port: 80,
        len: 0,
        kind: 1,
        op: op as u16,
        flags: 0,
        buf_alloc: 1 << 20,
        fwd_cnt: 0,
    }
}

fn packet(driver: &mut Driver, header: &Header) -> Descriptor {
    driver.readable(&header.to_bytes())
}

/// Connects to the host from a port of its own, whatever packets come in between.
fn serves(attack: &mut Attack) {
    let request = Header {
        src_port: 2000,
        ..header(Op::Request)
    };
    attack.drivers[TX].recycle();
    let chain = packet(&mut attack.drivers[TX], &request);
    attack.drivers[TX].submit(&[chain]);
    attack.machine.kick(1);
    loop {
        attack.drivers[RX].recycle();
        let buffer = attack.drivers[RX].writable(1024);
        attack.drivers[RX].submit(&[buffer]);
        attack.machine.kick(0);
        attack.wait_used(0, 1);
        let bytes = attack.drivers[RX].read(buffer.address, 1024);
        let Some(bytes) = bytes.first_chunk::<HEADER>() else {
            continue;
        };
        let got = Header::from(*bytes);
        if got.dst_port == 2000 {
            assert_eq!(got.op, Op::Response as u16);
            return;
        }
    }
}

/// Starts the device with a few receive buffers, connects, and sends a packet with four bytes of data.
fn send(attack: &mut Attack, change: impl FnOnce(&mut Header)) {
    attack.start();
    for _ in 0..4 {
        let buffer = attack.drivers[RX].writable(256);
        attack.drivers[RX].submit(&[buffer]);
    }
    attack.machine.kick(0);
    let mut lie = Header {
        len: 4,
        ..header(Op::Rw)
    };
    change(&mut lie);
    let driver = &mut attack.drivers[TX];
    let request = packet(driver, &header(Op::Request));
    driver.submit(&[request]);
    let chain = [packet(driver, &lie), driver.readable(b"data")];
    driver.submit(&chain);
    attack.machine.kick(1);
    attack.wait_used(1, 2);
}

const ROWS: &[Row] = &[
    ("vsock: more data than there is", Fine, |a| {
        send(a, |header| header.len = u32::MAX);
    }),
    ("vsock: no data where there is some", Fine, |a| {
        send(a, |header| header.len = 0);
    }),
    ("vsock: an operation that is none", Fine, |a| {
        send(a, |header| header.op = u16::MAX);
    }),
    ("vsock: a type that was not offered", Fine, |a| {
        send(a, |header| header.kind = 2);
    }),
    ("vsock: from another guest", Fine, |a| {
        send(a, |header| header.src_cid = 4);
    }),
    ("vsock: to another guest", Fine, |a| {
        send(a, |header| header.dst_cid = 4);
    }),
    ("vsock: to everybody", Fine, |a| {
        send(a, |header| header.dst_cid = u64::MAX);
    }),
    ("vsock: more taken than was sent", Fine, |a| {
        send(a, |header| header.fwd_cnt = 1 << 31);
        a.poke(1);
    }),
    ("vsock: all the room in the world", Fine, |a| {
        send(a, |header| {
            (header.buf_alloc, header.fwd_cnt) = (u32::MAX, u32::MAX);
        });
        a.poke(1);
    }),
    ("vsock: no room at all", Fine, |a| {
        send(a, |header| header.buf_alloc = 0);
        a.poke(1);
    }),
    ("vsock: every flag of a shutdown", Fine, |a| {
        send(a, |header| {
            (header.op, header.flags) = (Op::Shutdown as u16, u32::MAX);
        });
    }),
    ("vsock: receive buffers shorter than a header", Fine, |a| {
        a.start();
        a.drivers[RX].submit(&[Descriptor::writable(0x8000, 43)]);
        a.machine.kick(0);
        a.poke(0);
    }),
    (
        "vsock: a packet that the device may only write",
        Fine,
        |a| {
            a.start();
            a.drivers[TX].submit(&[Descriptor::writable(0x8000, 64)]);
            a.machine.kick(1);
            assert_eq!(a.wait_used(1, 1), [(0, 0)]);
        },
    ),
    (
        "vsock: packets on the transmit queue's rings",
        Either,
        |a| {
            a.start();
            let table = a.drivers[TX].descriptor_table();
            a.drivers[RX].submit(&[Descriptor::writable(table, 4096)]);
            let request = packet(&mut a.drivers[TX], &header(Op::Request));
            a.drivers[TX].submit(&[request]);
            a.machine.kick(1);
            a.provoke();
        },
    ),
    ("vsock: the same buffer for both queues", Fine, |a| {
        a.start();
        let buffer = a.drivers[TX].readable(&header(Op::Request).to_bytes());
        a.drivers[RX].submit(&[Descriptor::writable(buffer.address, 64)]);
        for _ in 0..4 {
            a.drivers[TX].submit(&[buffer]);
        }
        a.machine.kick(1);
        a.wait_used(1, 4);
    }),
];
