//! The console as its driver meets it: real rings in fake memory, a host that takes what it likes.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::console::CHUNK;
use crate::io::QueueIo;
use crate::mem::GuestMemory;
use crate::virtio::testing::{self, Descriptor, Driver};
use crate::virtio::{QueueIndex, QueueWorker};

const SIZE: u16 = 16;

/// Takes bytes as long as it has room, and counts what reaches the driver.
#[derive(Debug)]
struct Host {
    said: Mutex<Vec<u8>>,
    left: AtomicUsize,
    room: EventFd,
    told: AtomicUsize,
}

impl Host {
    fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            said: Mutex::default(),
            left: AtomicUsize::new(room),
            room: EventFd::new(EFD_NONBLOCK).unwrap(),
            told: AtomicUsize::new(0),
        })
    }

    fn said(&self) -> Vec<u8> {
        self.said.lock().unwrap().clone()
    }

    fn make_room(&self, room: usize) {
        self.left.fetch_add(room, Ordering::SeqCst);
        self.room.write(1).unwrap();
    }
}

impl Output for Host {
    fn offer(&self, bytes: &[u8]) -> usize {
        assert!(bytes.len() <= CHUNK);
        let taken = bytes.len().min(self.left.load(Ordering::SeqCst));
        self.left.fetch_sub(taken, Ordering::SeqCst);
        self.said.lock().unwrap().extend(&bytes[..taken]);
        taken
    }

    fn room(&self) -> RawFd {
        self.room.as_raw_fd()
    }

    fn seen(&self) {
        let _ = self.room.read();
    }
}

impl VirtioInterrupt for Host {
    fn queue(&self, _queue: QueueIndex) -> io::Result<()> {
        Ok(())
    }
    fn config(&self) -> io::Result<()> {
        self.told.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn needs_reset(&self) {}
}

/// A driver, the device, and its host.
struct Bench {
    memory: GuestMemory,
    rx: Driver,
    tx: Driver,
    queues: [Queue; 2],
    console: Console,
    host: Arc<Host>,
}

impl Bench {
    fn new(room: usize) -> Self {
        let memory = testing::memory();
        let rx = Driver::new(&memory, 0x1000, SIZE);
        let tx = Driver::new(&memory, 0x10_0000, SIZE);
        let host = Host::new(room);
        let mut console = Console::new(host.clone()).unwrap();
        console.connect(host.clone());
        Self {
            queues: [rx.queue(), tx.queue()],
            memory,
            rx,
            tx,
            console,
            host,
        }
    }

    /// The worker of a driver that has looked at the size.
    fn worker(&mut self) -> Box<dyn QueueWorker> {
        let offered = self.console.features();
        let worker = testing::worker(&mut self.console, offered);
        config(&self.console, 0, 2);
        worker
    }

    fn event<T>(&mut self, step: impl FnOnce(&mut QueueIo<'_>) -> T) -> T {
        let mut io = QueueIo::new(&self.memory, &mut self.queues, Features::VERSION_1);
        step(&mut io)
    }

    /// Kicks a queue until the worker has done all that it can.
    fn kick(&mut self, worker: &mut dyn QueueWorker, queue: u16) {
        let queue = QueueIndex(queue);
        while self.event(|io| {
            worker.on_kick(queue, io).unwrap();
            io.cut_short().contains(queue)
        }) {}
    }

    /// Wakes the worker by its sources, all of them.
    fn wake(&mut self, worker: &mut dyn QueueWorker) {
        for source in worker.sources() {
            self.event(|io| worker.on_source(source.token, io).unwrap());
        }
    }

    fn say(&mut self, parts: &[&[u8]]) -> u16 {
        let chain: Vec<_> = parts.iter().map(|part| self.tx.readable(part)).collect();
        self.tx.submit(&chain)
    }
}

fn config(console: &Console, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    console.read_config(offset, &mut data);
    data
}

#[test]
fn what_the_driver_sees_beside_the_queues() {
    let mut bench = Bench::new(2);
    let offered = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 2 | 1;
    assert_eq!(bench.console.features().bits(), offered);
    assert_eq!(bench.console.queue_sizes(), [16, 64]);
    bench.console.control().resize(132, 0x0250);
    let whole = [132, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(config(&bench.console, 0, 14), whole);
    assert_eq!(config(&bench.console, 2, 2), [0x50, 0x02]);
    assert_eq!(config(&bench.console, u64::MAX, 4), [0; 4]);
    // Characters in an emergency, of which the host takes two.
    let console = &mut bench.console;
    console.write_config(8, &[b'h', 1, 2, 3]);
    console.write_config(8, b"i");
    console.write_config(8, b"!");
    console.write_config(8, b"");
    console.write_config(0, b"xxxx");
    console.write_config(9, b"x");
    assert_eq!(bench.host.said(), b"hi");
}

#[test]
fn the_driver_is_told_of_the_size_once_it_is_there_and_when_it_changes() {
    let mut bench = Bench::new(0);
    let told = |bench: &Bench| bench.host.told.load(Ordering::SeqCst);
    let _worker = bench.worker();
    assert_eq!(told(&bench), 1);
    let control = bench.console.control();
    control.resize(80, 24);
    control.resize(80, 24);
    assert_eq!(told(&bench), 2);
    control.resize(80, 25);
    assert_eq!(told(&bench), 3);
    let small = bench.console.features() - F_SIZE;
    drop(testing::worker(&mut bench.console, small));
    assert_eq!(told(&bench), 3);
}

#[test]
fn output_goes_out_in_order_and_comes_back() {
    let mut bench = Bench::new(usize::MAX);
    let mut worker = bench.worker();
    let long = vec![b'l'; 3 * CHUNK + 5];
    let first = bench.say(&[b"one, ", b"t", b"wo, "]);
    let second = bench.say(&[&long]);
    // What the device may write is not output.
    let third = [bench.tx.readable(b"end"), bench.tx.writable(9)];
    let third = bench.tx.submit(&third);
    bench.kick(worker.as_mut(), 1);
    let said = [b"one, two, ", &long[..], b"end"].concat();
    assert_eq!(bench.host.said(), said);
    assert_eq!(bench.tx.take_used(), [(first, 0), (second, 0), (third, 0)]);
}

#[test]
fn output_without_room_waits_in_the_guest() {
    let mut bench = Bench::new(6);
    let mut worker = bench.worker();
    let first = bench.say(&[b"abc", b"def"]);
    let second = bench.say(&[b"gh", b"ijk"]);
    bench.kick(worker.as_mut(), 1);
    assert_eq!(bench.tx.take_used(), [(first, 0)]);
    // Neither a kick nor a false alarm gets more out of it.
    bench.kick(worker.as_mut(), 1);
    bench.wake(worker.as_mut());
    assert_eq!(bench.host.said(), b"abcdef");
    bench.host.make_room(3);
    bench.wake(worker.as_mut());
    assert_eq!(bench.host.said(), b"abcdefghi");
    assert_eq!(bench.tx.take_used(), []);
    bench.host.make_room(100);
    bench.wake(worker.as_mut());
    assert_eq!(bench.host.said(), b"abcdefghijk");
    assert_eq!(bench.tx.take_used(), [(second, 0)]);
}

#[test]
fn much_output_is_taken_in_shares() {
    let mut bench = Bench::new(usize::MAX);
    let mut worker = bench.worker();
    let page = bench
        .tx
        .readable(&(0..=255).cycle().take(4096).collect::<Vec<u8>>());
    // 64 KiB and 14 times as much.
    bench.tx.submit_indirect(&[page; 16]);
    let whole = [page; 14].map(|page| Descriptor {
        len: 0x1_0000,
        ..page
    });
    bench.tx.submit_indirect(&whole);
    let mut events = 0;
    while bench.event(|io| {
        worker.on_kick(QueueIndex(1), io).unwrap();
        io.cut_short().contains(QueueIndex(1))
    }) {
        events += 1;
    }
    assert_eq!(events, 3, "256 KiB each");
    assert_eq!(bench.tx.take_used().len(), 2);
    assert_eq!(bench.host.said().len(), 0x1_0000 + 14 * 0x1_0000);
}

#[test]
fn the_end_takes_what_there_is_room_for() {
    let mut bench = Bench::new(4);
    let mut worker = bench.worker();
    bench.say(&[b"last words"]);
    bench.event(|io| worker.drain(io).unwrap());
    assert_eq!(bench.host.said(), b"last");
}

#[test]
fn input_fills_the_drivers_buffers() {
    let mut bench = Bench::new(0);
    let mut worker = bench.worker();
    let receiver = bench.console.receiver();
    // Typed before there is a buffer for it.
    assert_eq!(receiver.receive(b"early "), 6);
    bench.wake(worker.as_mut());
    let buffers = [bench.rx.writable(4), bench.rx.writable(100)];
    let heads = [
        bench.rx.submit(&buffers[..1]),
        bench.rx.submit(&buffers[1..]),
    ];
    bench.kick(worker.as_mut(), 0);
    assert_eq!(bench.rx.take_used(), [(heads[0], 4), (heads[1], 2)]);
    assert_eq!(bench.rx.read(buffers[0].address, 4), b"earl");
    assert_eq!(bench.rx.read(buffers[1].address, 3), [b'y', b' ', 0xee]);
    let split = [bench.rx.writable(1), bench.rx.writable(100)];
    let head = bench.rx.submit(&split);
    assert_eq!(receiver.receive(b"later"), 5);
    bench.wake(worker.as_mut());
    assert_eq!(bench.rx.take_used(), [(head, 5)]);
    assert_eq!(bench.rx.read(split[1].address, 4), b"ater");
}

#[test]
fn input_waits_until_the_driver_can_keep_it() {
    let mut bench = Bench::new(0);
    let offered = bench.console.features();
    config(&bench.console, 0, 4);
    let mut worker = testing::worker(&mut bench.console, offered);
    let buffer = bench.rx.writable(10);
    let head = bench.rx.submit(&[buffer]);
    bench.console.receiver().receive(b"early");
    bench.wake(worker.as_mut());
    config(&bench.console, 4, 8);
    bench.kick(worker.as_mut(), 0);
    assert_eq!(bench.rx.take_used(), [], "before it has looked");
    // Having looked is an event.
    bench.wake(worker.as_mut());
    let input = &bench.console.shared.input;
    assert!(input.read().is_err());
    config(&bench.console, 2, 2);
    assert_eq!(bench.console.shared.input.read().unwrap(), 1);
    bench.wake(worker.as_mut());
    assert_eq!(bench.rx.take_used(), [(head, 5)]);
    // A driver without a size has nothing to look at.
    drop(worker);
    let mut worker = testing::worker(&mut bench.console, offered - F_SIZE);
    let head = bench.rx.submit(&[buffer]);
    bench.console.receiver().receive(b"now");
    bench.wake(worker.as_mut());
    assert_eq!(bench.rx.take_used(), [(head, 3)]);
}

#[test]
fn input_that_the_guest_does_not_take_waits_outside() {
    let mut bench = Bench::new(0);
    let mut worker = bench.worker();
    let receiver = bench.console.receiver();
    assert_eq!(receiver.receive(&vec![b'x'; CHUNK + 7]), CHUNK);
    assert_eq!(receiver.receive(b"more"), 0);
    bench.wake(worker.as_mut());
    assert!(receiver.room().read().is_err(), "there is no room yet");
    let buffer = bench.rx.writable(10);
    bench.rx.submit(&[buffer]);
    bench.kick(worker.as_mut(), 0);
    assert_eq!(receiver.room().read().unwrap(), 1);
    assert_eq!(receiver.receive(&[b'y'; 20]), 10);
}

#[test]
fn odd_drivers_do_no_harm() {
    let mut bench = Bench::new(9);
    let mut worker = bench.worker();
    // Buffers for input that are not, and one that is.
    for _ in 0..3 {
        let readable = bench.rx.readable(b"?");
        bench.rx.submit(&[readable]);
    }
    let buffer = bench.rx.writable(10);
    bench.rx.submit(&[buffer]);
    bench.console.receiver().receive(b"in");
    bench.wake(worker.as_mut());
    assert_eq!(bench.rx.take_used().len(), 4);
    assert_eq!(bench.rx.read(buffer.address, 2), b"in");
    // A driver that uses neither queue.
    let unused = [16, 64].map(|size| Queue::new(size).unwrap());
    bench.queues = unused;
    bench.console.receiver().receive(b"in");
    bench.host.make_room(1);
    bench.wake(worker.as_mut());
}

proptest! {
    /// However the guest cuts its output and the host its room, every byte arrives once and in order.
    #[test]
    fn nothing_is_lost_or_doubled(
        cuts in prop::collection::vec(1usize..6000, 1..12),
        rooms in prop::collection::vec(1usize..7000, 1..40),
    ) {
        let mut bench = Bench::new(0);
        let mut worker = bench.worker();
        let total = cuts.iter().sum();
        let all: Vec<u8> = (0..=250).cycle().take(total).collect();
        let mut rest = &all[..];
        for cut in &cuts {
            let (part, later) = rest.split_at(*cut);
            bench.say(&[part]);
            rest = later;
        }
        bench.kick(worker.as_mut(), 1);
        for room in rooms.iter().cycle() {
            if bench.host.said().len() == total {
                break;
            }
            bench.host.make_room(*room);
            bench.wake(worker.as_mut());
        }
        prop_assert_eq!(bench.host.said(), all);
        prop_assert_eq!(bench.tx.take_used().len(), cuts.len());
    }
}
