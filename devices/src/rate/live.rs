//! Limits at work: a device on an I/O thread, the host's clock, and the timers. What is asserted of time
//! holds however slow the host is.

use std::thread::yield_now;
use std::time::{Duration, Instant};

use super::testing::{bytes, operations};
use super::{Limits, RateControl};
use crate::io::IoThread;
use crate::mem::GuestMemory;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{Driver, Machine, Tape, memory, reg, status};

const SIZE: u16 = 64;
const VERSION_1: u64 = 1 << 32;

/// A source of entropy and its driver.
struct Tap {
    machine: Machine,
    memory: GuestMemory,
    driver: Driver,
    control: RateControl,
    _io: IoThread,
}

impl Tap {
    fn new(limits: Limits) -> Self {
        let io = IoThread::spawn("io", |error| panic!("{error}")).unwrap();
        let device = Rng::default();
        let control = device.rate_control();
        control.set(limits);
        let memory = memory();
        let threads = [io.handle()].into();
        let machine = Machine::new(Box::new(device), &memory, threads, Tape::default()).unwrap();
        let mut tap = Self {
            driver: Driver::new(&memory, 0x1000, SIZE),
            machine,
            memory,
            control,
            _io: io,
        };
        tap.start();
        tap
    }

    /// Resets the device and sets it up.
    fn start(&mut self) {
        self.driver = Driver::new(&self.memory, 0x1000, SIZE);
        assert!(self.machine.negotiate(VERSION_1));
        self.machine.set_queue(0, &self.driver);
        self.machine.set(reg::STATUS, status::DRIVER_OK);
    }

    /// Asks for so many bytes, in requests of `len`, and kicks once.
    fn ask(&mut self, count: u16, len: u32) {
        self.driver.recycle();
        for _ in 0..count {
            let buffer = self.driver.writable(len);
            self.driver.submit(&[buffer]);
        }
        self.machine.kick(0);
    }

    /// Waits until so many requests are answered, without any kick.
    fn wait(&mut self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut answered = 0;
        while answered < count {
            assert!(
                Instant::now() < deadline,
                "{answered} of {count} in a minute"
            );
            answered += self.driver.take_used().len();
            yield_now();
        }
        assert_eq!(answered, count);
        assert!(!self.machine.faulted());
    }
}

#[test]
fn requests_wait_for_the_timer_and_none_is_forgotten() {
    // In the longest of these, what goes beyond the burst takes a quarter of a second.
    for (limits, count, len) in [
        (bytes(64 << 10, 4 << 10), 40, 512),
        (bytes(1 << 20, 100), 64, 4096),
        (operations(400, 10), 64, 64),
        (operations(1_000_000, 1), 64, 64),
    ] {
        let before = Instant::now();
        let mut tap = Tap::new(limits);
        tap.ask(count, len);
        tap.wait(count.into());
        let elapsed = before.elapsed().as_secs_f64();
        // All but the last request were paid for.
        let (rate, paid) = match limits.bytes {
            Some(rate) => (rate, f64::from(count - 1) * f64::from(len)),
            None => (limits.operations.unwrap(), f64::from(count - 1)),
        };
        #[allow(clippy::cast_precision_loss)]
        let (per_second, burst) = (rate.per_second.get() as f64, rate.burst.get() as f64);
        assert!(
            paid < burst + per_second * elapsed,
            "{paid} in {elapsed} s by {limits:?}"
        );
    }
}

#[test]
fn a_change_reaches_a_worker_that_waits() {
    for relief in [
        Limits::default(),
        bytes(1 << 30, 1 << 20),
        operations(1000, 100),
    ] {
        let mut tap = Tap::new(bytes(1, 1));
        tap.ask(8, 4096);
        // The next may pass in more than an hour.
        tap.wait(1);
        tap.control.set(relief);
        tap.wait(7);
    }
}

#[test]
fn a_device_is_reset_while_it_waits() {
    let mut tap = Tap::new(bytes(1, 1));
    for round in 0..3 {
        tap.ask(8, 4096);
        // The debt of the first round is still there.
        tap.wait(usize::from(round == 0));
        tap.start();
    }
    tap.control.set(Limits::default());
    tap.ask(8, 4096);
    tap.wait(8);
}

#[test]
fn a_limit_on_an_idle_device_is_there_when_it_wakes() {
    let mut tap = Tap::new(Limits::default());
    tap.ask(8, 64);
    tap.wait(8);
    tap.control.set(bytes(1, 1));
    tap.ask(8, 64);
    tap.wait(1);
    tap.control.set(Limits::default());
    tap.wait(7);
}
