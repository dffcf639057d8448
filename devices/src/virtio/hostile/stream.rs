//! The card of a user-mode network under attack: frames that its stream cannot carry, and TCP that makes no
//! sense. The other end sends frames of all sizes whenever it is poked, as far as there is room.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::Attack;
use super::case::{Expect, Row, Scope, table};
use super::net::{self, HEADER, TX};
use super::subject::{Host, Stage, Subject};
use crate::virtio::net::stream::{Peer, Stream, make_room};
use crate::virtio::net::testing::{MAC, frame};
use crate::virtio::net::{Net, NetControl, NetSettings};

use Expect::Fine;

/// A card on a stream.
pub(super) fn subject() -> Subject {
    Subject {
        name: "net-stream",
        stage,
        serves: |attack| {
            // What was sent makes room for more.
            attack.poke(0);
            net::serves(attack);
        },
        cases: || table(Scope::Device, ROWS),
        ..net::subject()
    }
}

fn stage() -> Stage {
    let (near, far) = UnixStream::pair().expect("no sockets");
    let room = make_room(&far).expect("a socket");
    far.set_nonblocking(true).expect("a socket");
    let stream = Stream::new("test".to_owned(), near, Box::new(Nobody), room);
    let (stream, link) = stream.expect("a socket");
    let settings = NetSettings {
        name: "test".to_owned(),
        mac: MAC,
        mtu: Some(1400),
    };
    let net = Net::new(Box::new(link), vec![Box::new(stream)], settings).expect("a card");
    Stage {
        queues: net::plans(1),
        host: Box::new(FarEnd {
            socket: far,
            rest: Vec::new(),
            control: net.control(),
        }),
        device: Box::new(net),
    }
}

#[derive(Debug)]
struct Nobody;

impl Peer for Nobody {
    fn end(&mut self) -> String {
        "it has ended".to_owned()
    }
}

/// The other end of the stream, and the hand on the plug.
#[derive(Debug)]
struct FarEnd {
    socket: UnixStream,
    /// The part of a frame that there was no room for.
    rest: Vec<u8>,
    control: NetControl,
}

impl FarEnd {
    /// Sends what is left, and then the frame; what comes after one that does not go is lost.
    fn send(&mut self, frame: &[u8]) {
        if self.rest.is_empty() {
            let len = u32::try_from(frame.len()).unwrap_or(0);
            self.rest = [&len.to_be_bytes(), frame].concat();
        }
        if let Ok(sent) = self.socket.write(&self.rest) {
            self.rest.drain(..sent);
        }
    }
}

impl Host for FarEnd {
    fn poke(&mut self, what: u8) {
        let mut sink = [0; 1 << 14];
        while let Ok(1..) = self.socket.read(&mut sink) {}
        // The longest only now and then.
        let count = if what == 1 { 5 } else { 4 };
        for len in &[14, 60, 1514, 9000, 65_000][..count] {
            self.send(&frame(*len)[HEADER..]);
        }
        if what == 2 {
            self.control.set_plugged(false);
            self.control.set_plugged(true);
        }
    }
}

/// Sends a frame in pieces of so many bytes, the virtio header among them, and sees it taken.
fn send(attack: &mut Attack, bytes: &[u8], piece: usize) {
    attack.start();
    let driver = &mut attack.drivers[usize::from(TX)];
    let whole = [&[0; HEADER], bytes].concat();
    let parts: Vec<_> = whole
        .chunks(piece)
        .map(|part| driver.readable(part))
        .collect();
    driver.submit(&parts);
    attack.machine.kick(TX);
    attack.wait_used(TX, 1);
}

/// A TCP segment in IPv4 to 10.0.2.2, with these flags, this much of a header, and options.
fn segment(words: u8, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend([10, 0, 2, 15, 10, 0, 2, 2]);
    frame.extend([0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, words << 4, flags]);
    frame.extend([0xff; 6]);
    frame.extend(options);
    frame
}

const SYN: u8 = 2;

const ROWS: &[Row] = &[
    (
        "stream: frames shorter than a header of Ethernet",
        Fine,
        |a| {
            send(a, &[], 100);
            send(a, &[1; 13], 5);
        },
    ),
    ("stream: a frame longer than a packet can be", Fine, |a| {
        send(a, &[1; 65_536], 16 << 10);
    }),
    ("stream: a frame in pieces of two bytes", Fine, |a| {
        send(a, &[1; 14], 2);
    }),
    ("stream: packets to the host's loopback", Fine, |a| {
        let mut packet = segment(5, SYN, &[]);
        packet[30..34].copy_from_slice(&[127, 0, 0, 1]);
        send(a, &packet, 13);
        let mut packet = [[2; 12].as_slice(), &[0x86, 0xdd, 0x60], &[0; 39]].concat();
        packet[53] = 1;
        send(a, &packet, 7);
    }),
    ("stream: options of TCP that have no end", Fine, |a| {
        send(a, &segment(15, SYN, &[3, 3]), 100);
        send(a, &segment(6, SYN, &[2, 4, 255]), 7);
        send(a, &segment(7, SYN, &[9, 0, 9, 0, 9, 1, 3, 3]), 9);
        send(a, &segment(0, SYN, &[2, 4, 255, 255]), 11);
    }),
    ("stream: headers of TCP cut off", Fine, |a| {
        for len in [14, 15, 33, 34, 36, 47, 53] {
            send(a, &segment(5, SYN, &[])[..len], 100);
        }
    }),
    ("stream: every flag of TCP, and no beginning", Fine, |a| {
        for flags in [0xff, 4, 1, 0, 16, SYN | 4] {
            send(a, &segment(5, flags, &[]), 100);
        }
    }),
    (
        "stream: as many beginnings as there is room for",
        Fine,
        |a| {
            for port in 0..300u16 {
                let mut packet = segment(6, SYN, &[3, 3, 14, 0]);
                packet[36..38].copy_from_slice(&port.to_be_bytes());
                a.drivers[usize::from(TX)].recycle();
                if port == 0 {
                    send(a, &packet, 100);
                    continue;
                }
                let driver = &mut a.drivers[usize::from(TX)];
                let part = driver.readable(&[&[0; HEADER], &packet[..]].concat());
                driver.submit(&[part]);
                a.machine.kick(TX);
                a.wait_used(TX, 1);
                a.poke(0);
            }
        },
    ),
];
