//! What a limited card lets pass, by exact accounts on a clock that stands still.

use std::time::Duration;

use super::*;
use crate::rate::Limits;
use crate::rate::testing::{FakeClock, bytes, operations};

/// Tokens of the throttles' timers.
const RECEIVE: u32 = 2;
const SEND: u32 = 3;
const MS: Duration = Duration::from_millis(1);
/// Bytes of each frame.
const LEN: usize = 1000;

/// A card that lives by a clock, with frames waiting on both sides at all times.
struct Busy {
    bench: Bench,
    clock: FakeClock,
}

impl Busy {
    fn new(limits: Limits) -> Self {
        let clock = FakeClock::new();
        let mut bench = Bench::new(&[]);
        bench.net.receive_limiter = clock.limiter(limits);
        bench.net.send_limiter = clock.limiter(limits);
        bench.start();
        let mut busy = Self { bench, clock };
        busy.refill();
        busy
    }

    /// Fills the cable and both queues.
    fn refill(&mut self) {
        let bench = &mut self.bench;
        while bench.far.send(&frame(LEN)) {}
        bench.rx.recycle();
        bench.give_buffers(256, 1512);
        bench.tx.recycle();
        for _ in 0..256 {
            bench.submit(&frame(LEN));
        }
        bench.wake().unwrap();
        bench.kick(RX).unwrap();
        bench.kick(TX).unwrap();
    }

    /// Lets time go on by milliseconds, with the timers' events in each; returns how many frames came and
    /// went meanwhile.
    fn run(&mut self, milliseconds: u64) -> (u64, u64) {
        let before = self.bench.counters();
        for _ in 0..milliseconds {
            self.clock.advance(MS);
            let bench = &mut self.bench;
            bench
                .event(|worker, io| worker.on_source(RECEIVE, io))
                .unwrap();
            bench
                .event(|worker, io| worker.on_source(SEND, io))
                .unwrap();
            while bench.far.send(&frame(LEN)) {}
            while bench.far.receive().is_some() {}
            // The driver gives each buffer again.
            for (head, _) in bench.rx.take_used() {
                bench.rx.publish(head);
            }
            for (head, _) in bench.tx.take_used() {
                bench.tx.publish(head);
            }
        }
        let after = self.bench.counters();
        assert_eq!((after.received.dropped, after.sent.dropped), (0, 0));
        (
            after.received.frames - before.received.frames,
            after.sent.frames - before.sent.frames,
        )
    }
}

#[test]
fn each_way_has_the_whole_rate() {
    // Of bytes: what passes at once has passed already when the run begins.
    let mut busy = Busy::new(bytes(200_000, 20_000));
    assert_eq!(busy.run(10_000), (10 * 200, 10 * 200));
    let counters = busy.bench.counters();
    assert_eq!(counters.received.frames, 10 * 200 + 20);
    assert_eq!(counters.sent.frames, 10 * 200 + 20);
    // And of frames.
    let mut busy = Busy::new(operations(50, 5));
    assert_eq!(busy.run(10_000), (10 * 50, 10 * 50));
}

#[test]
fn one_way_does_not_pay_for_the_other() {
    let mut busy = Busy::new(bytes(200_000, 20_000));
    // The driver gives no more buffers to receive into.
    busy.bench.rx = Driver::new(&busy.bench.memory, 0x10_0000, 256);
    let (_, sent) = busy.run(10_000);
    assert_eq!(sent, 10 * 200);
}

#[test]
fn a_change_holds_for_both_ways_from_then_on() {
    let mut busy = Busy::new(bytes(1000, 1000));
    assert_eq!(busy.run(10_000), (10, 10));
    busy.bench.net.rate_control().set(bytes(1_000_000, 10_000));
    let (received, sent) = busy.run(10_000);
    assert!((10_000..=10_001).contains(&received), "{received}");
    assert!((10_000..=10_001).contains(&sent), "{sent}");
}

#[test]
fn what_must_wait_stays_where_it_is() {
    let mut busy = Busy::new(operations(1, 1));
    let held = |bench: &mut Bench| {
        let received = bench.rx.take_used().len();
        let sent = bench.tx.take_used().len();
        (received, sent)
    };
    assert_eq!(held(&mut busy.bench), (1, 1));
    while busy.bench.far.send(&frame(LEN)) {}
    // Neither kicks nor the backend help.
    for _ in 0..10 {
        busy.bench.wake().unwrap();
        busy.bench.kick(RX).unwrap();
        busy.bench.kick(TX).unwrap();
    }
    assert_eq!(held(&mut busy.bench), (0, 0));
    assert!(!busy.bench.far.send(&frame(LEN)), "the cable is still full");
    busy.bench.net.rate_control().set(Limits::default());
    for token in [RECEIVE, SEND] {
        busy.bench
            .event(|worker, io| worker.on_source(token, io))
            .unwrap();
    }
    let (received, sent) = held(&mut busy.bench);
    assert!(received > 1 && sent > 1, "{received} {sent}");
}
