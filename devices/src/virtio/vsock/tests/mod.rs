//! The device on fake rings, with sockets of this process at its other side.

mod ends;
mod face;
mod flow;
mod guest_first;
mod host_first;
mod hostile;
mod soak;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::Queue;

use super::muxer::Muxer;
use super::packet::{Done, HEADER, HEADER_LEN, HOST_CID, Header, Op, STREAM};
use super::testing::{CLOSED, Host};
use super::worker::Worker;
use super::{QUEUE_SIZE, RX, TX};
use crate::io::{QueueIo, QueueSet};
use crate::mem::GuestMemory;
use crate::virtio::testing::{Descriptor, Driver, memory};
use crate::virtio::{Features, QueueIndex, QueueWorker};

const CID: u64 = 3;
/// The guest's port where a test needs only one.
const PORT: u32 = 1000;
/// The window that the guest gives for a connection, unless a test says otherwise.
const GUEST_WINDOW: u32 = 1 << 20;
/// A packet that the device sent.
#[derive(Debug)]
struct Got {
    header: Header,
    op: Op,
    data: Vec<u8>,
}

/// A device, its driver and its host.
struct Bench {
    memory: GuestMemory,
    rx: Driver,
    tx: Driver,
    queues: Vec<Queue>,
    worker: Worker,
    host: Host,
    /// Bytes of each buffer for packets to the guest.
    buffer: u32,
    /// Packets that the device has not given back.
    outstanding: usize,
    /// Queues for which the device wants to be kicked.
    wants_kicks: QueueSet,
}

impl Bench {
    /// A driver that keeps 64 buffers of a page in the receive queue.
    fn new() -> Self {
        let mut bench = Self::without_buffers();
        bench.offer(64, 4096);
        bench
    }

    /// A driver that has put nothing into the receive queue yet.
    fn without_buffers() -> Self {
        let memory = memory();
        let rx = Driver::new(&memory, 0x1000, QUEUE_SIZE);
        let tx = Driver::new(&memory, 0x20_0000, QUEUE_SIZE);
        let event = Driver::new(&memory, 0x3f_0000, 16);
        let queues = vec![rx.queue(), tx.queue(), event.queue()];
        let host = Host::new();
        let shared: super::SharedHost = Arc::new(Mutex::new(Box::new(host.clone())));
        Self {
            memory,
            rx,
            tx,
            queues,
            worker: Worker::new(Muxer::new(CID, shared).unwrap()),
            host,
            buffer: 0,
            outstanding: 0,
            wants_kicks: QueueSet::of([RX, TX]),
        }
    }

    fn buffer_address(&self, head: u16) -> u64 {
        0x1_0000 + u64::from(head) * u64::from(self.buffer)
    }

    /// Puts buffers into the receive queue; they go back there when they have been read.
    fn offer(&mut self, count: u16, size: u32) {
        self.buffer = size;
        for head in 0..count {
            let at = self.buffer_address(head);
            assert!(at + u64::from(size) <= 0x20_0000);
            self.rx.set_descriptor(head, Descriptor::writable(at, size));
            self.rx.publish(head);
        }
        self.kick(RX);
    }

    fn run(&mut self, step: impl FnOnce(&mut Worker, &mut QueueIo<'_>)) {
        let mut io = QueueIo::new(&self.memory, &mut self.queues, Features::VERSION_1);
        step(&mut self.worker, &mut io);
        let (again, empty) = (io.cut_short(), io.empty());
        io.finish().unwrap();
        [RX, TX]
            .into_iter()
            .filter(|queue| empty.contains(*queue))
            .for_each(|queue| self.wants_kicks.insert(queue));
        for queue in [RX, TX].into_iter().filter(|queue| again.contains(*queue)) {
            self.kick(queue);
        }
    }

    fn kick(&mut self, queue: QueueIndex) {
        self.wants_kicks.remove(queue);
        self.run(|worker, io| worker.on_kick(queue, io).unwrap());
    }

    /// Lets the device see to its sockets, until they make no more events.
    fn poll(&mut self) {
        for _ in 0..1000 {
            let mut polled = libc::pollfd {
                fd: self.worker.sources()[0].fd,
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one valid pollfd, and no waiting.
            if unsafe { libc::poll(&mut polled, 1, 0) } == 0 {
                return;
            }
            self.run(|worker, io| worker.on_source(0, io).unwrap());
        }
        panic!("the device's sockets do not come to rest");
    }

    /// Tells the device that so much time has passed.
    fn pass(&mut self, time: Duration) {
        self.worker.muxer.tick(Instant::now() + time).unwrap();
        // Whatever came of it goes out with any event.
        self.kick(RX);
    }

    /// Puts a packet into the transmit queue, in two buffers, without telling the device.
    fn put(&mut self, header: &[u8], data: &[u8]) {
        self.outstanding -= self.tx.take_used().len();
        if self.outstanding == 0 {
            self.tx.recycle();
        }
        let mut chain = vec![self.tx.readable(header)];
        if !data.is_empty() {
            chain.push(self.tx.readable(data));
        }
        self.tx.submit(&chain);
        self.outstanding += 1;
    }

    /// Sends a packet.
    fn send(&mut self, header: Header, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        let bytes = Header { len, ..header }.to_bytes();
        self.put(&bytes, data);
        self.kick(TX);
    }

    /// The packets that the device has sent since the last time. Their buffers are offered again.
    fn packets(&mut self) -> Vec<Got> {
        let mut packets = Vec::new();
        loop {
            let used = self.rx.take_used();
            if used.is_empty() {
                return packets;
            }
            for (head, len) in used {
                packets.push(self.read(head, len));
                self.rx.publish(head);
            }
            self.kick(RX);
        }
    }

    /// The packet in a buffer of the receive queue.
    fn read(&self, head: u16, len: u32) -> Got {
        let bytes = self.rx.read(self.buffer_address(head), len);
        let (header, data) = bytes.split_first_chunk::<HEADER>().expect("a whole header");
        let header = Header::from(*header);
        assert_eq!(header.len, len - HEADER_LEN);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        Got {
            op: Op::of(header.op).expect("an operation"),
            data: data.to_vec(),
            header,
        }
    }

    /// What the device has sent, which must be one packet.
    fn packet(&mut self) -> Got {
        let mut packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    fn expect(&mut self, ops: &[Op]) {
        let got: Vec<_> = self.packets().iter().map(|packet| packet.op).collect();
        assert_eq!(got, ops);
    }

    /// A connection from the guest's [`PORT`] to the host's port 80; the host's end.
    fn connect(&mut self) -> UnixStream {
        self.connect_from(PORT)
    }

    fn connect_from(&mut self, port: u32) -> UnixStream {
        self.send(packet(port, 80, Op::Request), &[]);
        self.expect(&[Op::Response]);
        self.poll();
        self.expect(&[]);
        self.peer()
    }

    /// The host's end of the connection that the guest got first.
    fn peer(&self) -> UnixStream {
        let (_, stream) = self
            .host
            .state()
            .arrived
            .pop_front()
            .expect("no connection");
        stream
    }

    fn data(&mut self, data: &[u8]) {
        self.send(packet(PORT, 80, Op::Rw), data);
    }

    fn shutdown(&mut self, done: Done) {
        let header = packet(PORT, 80, Op::Shutdown);
        let flags = done.bits();
        self.send(Header { flags, ..header }, &[]);
    }

    fn connections(&self) -> usize {
        self.worker.muxer.table().len()
    }

    /// Bytes that the device keeps.
    fn kept(&self) -> u64 {
        self.worker.muxer.table().kept().0
    }
}

/// The header of a packet of the guest's.
fn packet(guest: u32, host: u32, op: Op) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        len: 0,
        kind: STREAM,
        op: op as u16,
        flags: 0,
        buf_alloc: GUEST_WINDOW,
        fwd_cnt: 0,
    }
}

/// Everything that is there to be read now, and whether the end comes after it.
fn drain(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => (bytes, false),
        Err(error) => panic!("{error}"),
    }
}

/// Writes until the socket is full; how many bytes that were.
fn stuff(stream: &mut UnixStream, bytes: &[u8]) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    written
}

/// Bytes that repeat only after a long while.
fn noise(len: usize) -> Vec<u8> {
    (0u32..)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .take(len)
        .collect()
}
