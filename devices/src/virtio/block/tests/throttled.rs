//! What a limited disk lets pass, by exact accounts on a clock that stands still.

use std::time::Duration;

use super::*;
use crate::rate::testing::{FakeClock, bytes, operations, rate};
use crate::rate::{Limits, RateControl, Throttle};

/// The token of the throttle's timer.
const THROTTLE: u32 = 1;
const MS: Duration = Duration::from_millis(1);
const KIB: u64 = 1024;

/// Submits a request; gives its head and where its status byte is.
type Make = fn(&mut Driver) -> (u16, u64);

/// A driver that always has ten requests waiting, on a disk that lives by a clock.
struct Busy {
    bench: Bench,
    worker: Box<dyn QueueWorker>,
    clock: FakeClock,
    control: RateControl,
    /// Makes the next request.
    make: Make,
    waiting: Vec<u16>,
}

impl Busy {
    fn new(limits: Limits, make: Make) -> Self {
        let clock = FakeClock::new();
        let mut bench = Bench::new(info());
        bench.block.limiter = clock.limiter(limits);
        Self {
            control: bench.block.rate_control(),
            worker: bench.worker(),
            bench,
            clock,
            make,
            waiting: Vec::new(),
        }
    }

    /// Lets time go on by milliseconds, with the timer's event in each; returns how many requests passed.
    fn run(&mut self, milliseconds: u64) -> u64 {
        let mut passed = 0;
        for _ in 0..milliseconds {
            self.clock.advance(MS);
            loop {
                if self.waiting.is_empty() {
                    self.bench.driver.recycle();
                    self.waiting = (0..10)
                        .map(|_| (self.make)(&mut self.bench.driver).0)
                        .collect();
                    self.bench.kick(self.worker.as_mut()).unwrap();
                } else {
                    let worker = self.worker.as_mut();
                    self.bench
                        .with_io(|io| worker.on_source(THROTTLE, io))
                        .unwrap();
                }
                let used = self.bench.driver.take_used();
                for (head, _) in &used {
                    assert_eq!(*head, self.waiting.remove(0), "they are served in order");
                }
                passed += used.len() as u64;
                if !self.waiting.is_empty() {
                    break;
                }
            }
        }
        passed
    }
}

fn read_4k(driver: &mut Driver) -> (u16, u64) {
    ask(driver, IN, 0, &[], 4096)
}

#[test]
fn bytes_pass_at_the_rate_to_the_last_request() {
    let mut busy = Busy::new(bytes(1024 * KIB, 64 * KIB), read_4k);
    // The bucket was full.
    assert_eq!(busy.run(1), 64 / 4);
    // 1M a second is 256 requests; the last one is in part a debt.
    assert_eq!(busy.run(9_999), 10 * 256);
    // A pause saves up no more than the burst.
    busy.clock.advance(60_000 * MS);
    assert!((16..=18).contains(&busy.run(1)));
}

#[test]
fn operations_pass_at_the_rate_whatever_they_are() {
    let make: Make = |driver| match driver.alloc(1) % 4096 {
        0 => ask(driver, FLUSH, 0, &[], 0),
        n if n.is_multiple_of(32) => ask(driver, OUT, 3, &[1; 512], 0),
        _ => ask(driver, IN, 1000, &[], 512),
    };
    let mut busy = Busy::new(operations(300, 30), make);
    assert_eq!(busy.run(10_000), 10 * 300 + 30);
}

#[test]
fn the_tighter_limit_decides() {
    let limits = |per_second| Limits {
        bytes: Some(rate(400 * KIB, 40 * KIB)),
        operations: Some(rate(per_second, 1)),
    };
    let mut busy = Busy::new(limits(1000), read_4k);
    assert_eq!(busy.run(10_000), 10 * 100 + 10);
    let mut busy = Busy::new(limits(50), read_4k);
    assert_eq!(busy.run(10_000), 10 * 50 + 1);
}

#[test]
fn a_change_holds_from_then_on() {
    let mut busy = Busy::new(bytes(40 * KIB, 4 * KIB), read_4k);
    assert_eq!(busy.run(10_000), 10 * 10 + 1);
    // At 4 bytes a second each request is a quarter of an hour's debt.
    busy.control.set(bytes(4, 1));
    assert!(busy.run(60_000) <= 1);
    busy.control.set(bytes(400 * KIB, 4 * KIB));
    let passed = busy.run(10_000);
    assert!((1000..=1002).contains(&passed), "{passed}");
    busy.control.set(Limits::default());
    let worker = busy.worker.as_mut();
    busy.bench
        .with_io(|io| worker.on_source(THROTTLE, io))
        .unwrap();
    assert_eq!(busy.bench.driver.take_used().len(), busy.waiting.len());
}

#[test]
fn what_a_request_costs() {
    let cases: [(Make, u64); 7] = [
        (|driver| ask(driver, IN, 0, &[], 1024), 1024),
        (|driver| ask(driver, OUT, 0, &[1; 1536], 0), 1536),
        (|driver| ask(driver, FLUSH, 0, &[], 0), 0),
        (|driver| ask(driver, GET_ID, 0, &[], 20), 0),
        (|driver| ask(driver, IN, SECTORS, &[], 512), 0),
        (|driver| ask(driver, DISCARD, 0, &segment(20, 2, 0), 0), 0),
        (
            |driver| ask(driver, WRITE_ZEROES, 0, &segment(30, 3, 1), 0),
            1536,
        ),
    ];
    for (make, cost) in cases {
        // Byte by byte: a full bucket of 2K less the cost is left.
        let mut busy = Busy::new(bytes(1, 2048), make);
        make(&mut busy.bench.driver);
        busy.bench.kick(busy.worker.as_mut()).unwrap();
        assert_eq!(busy.bench.driver.take_used().len(), 1);
        let mut throttle = Throttle::new(&busy.bench.block.limiter).unwrap();
        for _ in 0..2048 - cost {
            assert!(throttle.admits(QUEUE).unwrap());
            throttle.charge(1);
        }
        assert!(!throttle.admits(QUEUE).unwrap());
    }
}

#[test]
fn a_reset_forgives_no_debt() {
    let mut busy = Busy::new(bytes(KIB, 1), read_4k);
    assert_eq!(busy.run(1), 1);
    let Busy {
        mut bench,
        clock,
        worker,
        ..
    } = busy;
    drop(worker);
    bench.queues = [Driver::new(&bench.memory, 0x1000, QUEUE_SIZE).queue()];
    bench.driver = Driver::new(&bench.memory, 0x1000, QUEUE_SIZE);
    let mut worker = bench.worker();
    read_4k(&mut bench.driver);
    bench.kick(worker.as_mut()).unwrap();
    assert_eq!(bench.driver.take_used(), []);
    clock.advance(4001 * MS);
    bench.with_io(|io| worker.on_source(THROTTLE, io)).unwrap();
    assert_eq!(bench.driver.take_used().len(), 1);
}
