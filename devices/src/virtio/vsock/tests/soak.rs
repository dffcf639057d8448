//! Many connections at once with an honest driver that kicks only where it must, in an order of events
//! that is random and the same each time: nothing is lost, and nobody waits for ever.

use std::net::Shutdown;

use super::*;
use crate::virtio::vsock::credit::WINDOW;

/// xorshift64, Marsaglia 2003.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % (limit as u64)).unwrap()
    }
}

/// One way of a connection, as its ends see it.
#[derive(Default)]
struct Way {
    words: Vec<u8>,
    sent: usize,
    /// The sender has said that this is all.
    closed: bool,
    heard: Vec<u8>,
    /// The receiver has heard that this is all.
    ended: bool,
}

impl Way {
    fn new(random: &mut Random) -> Self {
        let len = 1 + random.below(300_000);
        let words = (0..len).map(|_| random.next().to_le_bytes()[3]).collect();
        Self {
            words,
            ..Self::default()
        }
    }

    fn rest(&self) -> &[u8] {
        &self.words[self.sent..]
    }
}

/// A connection, with the guest's counters.
struct Talk {
    peer: UnixStream,
    to_host: Way,
    to_guest: Way,
    /// The host's room, by its last word.
    host_forwarded: u32,
    /// Bytes that the guest's program has read.
    read: u32,
}

const GUEST_ROOM: u32 = 50_000;

struct Soak {
    bench: Bench,
    random: Random,
    talks: Vec<Talk>,
    /// Buffers that the driver has and will offer.
    empties: VecDeque<u16>,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let mut soak = Self {
            bench: Bench::without_buffers(),
            random: Random(seed),
            talks: Vec::new(),
            empties: VecDeque::new(),
        };
        soak.bench.offer(16, 2048);
        for port in 0..12 {
            let peer = soak.bench.connect_from(port);
            peer.set_nonblocking(true).unwrap();
            soak.talks.push(Talk {
                peer,
                to_host: Way::new(&mut soak.random),
                to_guest: Way::new(&mut soak.random),
                host_forwarded: 0,
                read: 0,
            });
            let at = soak.talks.len() - 1;
            soak.send(at, Op::CreditUpdate, 0, &[]);
        }
        soak
    }

    /// The guest sends a packet, and kicks if the device asked for it.
    fn send(&mut self, at: usize, op: Op, flags: u32, data: &[u8]) {
        let header = Header {
            flags,
            len: u32::try_from(data.len()).unwrap(),
            buf_alloc: GUEST_ROOM,
            fwd_cnt: self.talks[at].read,
            ..packet(u32::try_from(at).unwrap(), 80, op)
        };
        self.bench.put(&header.to_bytes(), data);
        if self.bench.wants_kicks.contains(TX) {
            self.bench.kick(TX);
        }
    }

    /// The guest's program writes something, or that this is all.
    fn guest_writes(&mut self, at: usize) {
        let way = &self.talks[at].to_host;
        if self.bench.outstanding > 0 || way.closed {
            return;
        }
        if way.rest().is_empty() {
            self.talks[at].to_host.closed = true;
            return self.send(at, Op::Shutdown, Done::SENDING.bits(), &[]);
        }
        let under_way = u32::try_from(way.sent).unwrap() - self.talks[at].host_forwarded;
        let room = usize::try_from(WINDOW - under_way).unwrap();
        let most = room.min(way.rest().len()).min(60_000);
        if most > 0 {
            let len = 1 + self.random.below(most);
            let data = self.talks[at].to_host.rest()[..len].to_vec();
            self.talks[at].to_host.sent += len;
            self.send(at, Op::Rw, 0, &data);
        }
    }

    /// The guest takes packets, and offers some of its buffers again.
    fn guest_reads(&mut self) {
        for (head, len) in self.bench.rx.take_used() {
            let got = self.bench.read(head, len);
            self.empties.push_back(head);
            let talk = &mut self.talks[usize::try_from(got.header.dst_port).unwrap()];
            assert_eq!(got.header.buf_alloc, WINDOW);
            talk.host_forwarded = got.header.fwd_cnt;
            match got.op {
                Op::Rw => talk.to_guest.heard.extend(got.data),
                Op::Shutdown => talk.to_guest.ended |= got.header.flags & Done::SENDING.bits() != 0,
                Op::CreditUpdate | Op::CreditRequest => {}
                other => panic!("{other:?}"),
            }
            let under_way = talk.to_guest.heard.len() - usize::try_from(talk.read).unwrap();
            assert!(under_way <= usize::try_from(GUEST_ROOM).unwrap());
        }
        let count = self.random.below(self.empties.len() + 1);
        for head in self.empties.drain(..count) {
            self.bench.rx.publish(head);
        }
        if count > 0 && self.bench.wants_kicks.contains(RX) {
            self.bench.kick(RX);
        }
    }

    /// The guest's program has taken what there is; the driver says so as Linux does, late.
    fn guest_consumes(&mut self, at: usize) {
        let heard = u32::try_from(self.talks[at].to_guest.heard.len()).unwrap();
        if self.bench.outstanding == 0 && heard - self.talks[at].read > GUEST_ROOM / 2 {
            self.talks[at].read = heard;
            self.send(at, Op::CreditUpdate, 0, &[]);
        }
    }

    fn host_writes(&mut self, at: usize) {
        let len = 1 + self.random.below(40_000);
        let Talk {
            peer,
            to_guest: way,
            ..
        } = &mut self.talks[at];
        if way.rest().is_empty() {
            if !way.closed {
                way.closed = true;
                peer.shutdown(Shutdown::Write).unwrap();
            }
            return;
        }
        let piece = &way.rest()[..len.min(way.rest().len())];
        match peer.write(piece) {
            Ok(count) => way.sent += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn host_reads(&mut self, at: usize) {
        let mut bytes = vec![0; 1 + self.random.below(40_000)];
        let Talk {
            peer, to_host: way, ..
        } = &mut self.talks[at];
        match peer.read(&mut bytes) {
            Ok(0) => way.ended = true,
            Ok(count) => way.heard.extend(&bytes[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn step(&mut self) {
        let at = self.random.below(self.talks.len());
        match self.random.below(6) {
            0 => self.guest_writes(at),
            1 => self.guest_reads(),
            2 => self.guest_consumes(at),
            3 => self.host_writes(at),
            4 => self.host_reads(at),
            _ => self.bench.poll(),
        }
        self.bench.outstanding -= self.bench.tx.take_used().len();
        assert!(self.bench.kept() <= u64::from(WINDOW) * 12);
    }

    fn is_over(&self) -> bool {
        self.talks
            .iter()
            .all(|talk| talk.to_host.ended && talk.to_guest.ended)
    }
}

#[test]
fn whatever_the_order_everything_arrives() {
    for seed in 1..=8 {
        let mut soak = Soak::new(seed << 32 | 0x9e37_79b9);
        let mut steps = 0;
        while !soak.is_over() {
            soak.step();
            steps += 1;
            assert!(steps < 1_000_000, "seed {seed}: somebody waits for ever");
        }
        for talk in &soak.talks {
            assert!(talk.to_host.heard == talk.to_host.words);
            assert!(talk.to_guest.heard == talk.to_guest.words);
        }
    }
}
