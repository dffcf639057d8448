//! The balloon as its driver meets it: real rings in fake memory, and what becomes of the pages.

use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicUsize;
use std::thread;

use virtio_queue::Queue;

use super::*;
use crate::io::QueueIo;
use crate::mem::GuestMemory;
use crate::virtio::testing::{self, Descriptor, Driver, END, SEAM};
use crate::virtio::{QueueWorker, Wake};

const SIZE: u16 = 32;
/// Rings and buffers of the drivers lie below this, pages to be given up above.
const FREE: u64 = 0x10_0000;

/// Counts what reaches the driver.
#[derive(Debug, Default)]
struct Told(AtomicUsize);

impl VirtioInterrupt for Told {
    fn queue(&self, _queue: QueueIndex) -> io::Result<()> {
        Ok(())
    }
    fn config(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn needs_reset(&self) {}
}

/// A driver of all five queues, the device, and its guest's memory, full of ones from [`FREE`] on.
struct Bench {
    memory: GuestMemory,
    drivers: Vec<Driver>,
    queues: Vec<Queue>,
    balloon: Balloon,
}

fn options() -> BalloonOptions {
    BalloonOptions::of_memory(END)
}

impl Bench {
    fn new() -> Self {
        let memory = testing::memory();
        let drivers: Vec<Driver> = (0..5)
            .map(|queue| Driver::new(&memory, 0x1000 + queue * 0x2_0000, SIZE))
            .collect();
        let ones = vec![1; usize::try_from(END - FREE).unwrap()];
        drivers[0].write(FREE, &ones);
        Self {
            queues: drivers.iter().map(Driver::queue).collect(),
            drivers,
            memory,
            balloon: Balloon::new(options()).unwrap(),
        }
    }

    fn worker(&mut self) -> Box<dyn QueueWorker> {
        let offered = self.balloon.features();
        testing::worker(&mut self.balloon, offered)
    }

    fn worker_without(&mut self, features: Features) -> Box<dyn QueueWorker> {
        let acked = self.balloon.features() - features;
        testing::worker(&mut self.balloon, acked)
    }

    fn kick(&mut self, worker: &mut dyn QueueWorker, queue: u16) {
        self.event(|io| worker.on_kick(QueueIndex(queue), io).unwrap());
    }

    fn event(&mut self, step: impl FnOnce(&mut QueueIo<'_>)) {
        let mut io = QueueIo::new(&self.memory, &mut self.queues, Features::VERSION_1);
        step(&mut io);
    }

    fn driver(&mut self, queue: usize) -> &mut Driver {
        &mut self.drivers[queue]
    }

    /// Sends page numbers, and sees that the request comes back.
    fn inflate(&mut self, worker: &mut dyn QueueWorker, pages: &[u64]) {
        let bytes: Vec<u8> = pages
            .iter()
            .flat_map(|page| u32::try_from(*page).unwrap().to_le_bytes())
            .collect();
        let list = self.driver(0).readable(&bytes);
        let head = self.driver(0).submit(&[list]);
        self.kick(worker, 0);
        assert_eq!(self.driver(0).take_used(), [(head, 0)]);
    }

    /// Reports one range on a queue, and sees that the request comes back.
    fn report(&mut self, worker: &mut dyn QueueWorker, queue: u16, start: u64, len: u32) {
        let at = usize::from(queue);
        let head = self.driver(at).submit(&[Descriptor::writable(start, len)]);
        self.kick(worker, queue);
        assert_eq!(self.driver(at).take_used(), [(head, 0)]);
    }

    /// Which pages from `start` on still hold their ones.
    fn kept(&self, start: u64, pages: u64) -> Vec<bool> {
        (0..pages)
            .map(|page| self.drivers[0].read(start + page * PAGE, 4096) == [1; 4096])
            .collect()
    }

    /// Sends statistics; returns the buffer's head.
    fn answer(&mut self, worker: &mut dyn QueueWorker, entries: &[(u16, u64)]) -> u16 {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|(tag, value)| {
                let mut entry = tag.to_le_bytes().to_vec();
                entry.extend(value.to_le_bytes());
                entry
            })
            .collect();
        let answer = self.driver(2).readable(&bytes);
        let head = self.driver(2).submit(&[answer]);
        self.kick(worker, 2);
        head
    }

    /// Lets the source whose descriptor is `fd` wake the worker.
    fn wake(&mut self, worker: &mut dyn QueueWorker, fd: i32) {
        let sources = worker.sources();
        let source = sources.iter().find(|source| source.fd == fd).unwrap();
        let token = source.token;
        self.event(|io| worker.on_source(token, io).unwrap());
    }
}

fn config(balloon: &Balloon) -> [u32; 4] {
    [0, 4, 8, 12].map(|offset| {
        let mut word = [0xee; 4];
        balloon.read_config(offset, &mut word);
        u32::from_le_bytes(word)
    })
}

#[test]
fn offers_what_it_was_made_with() {
    let features = |options| Balloon::new(options).unwrap().features().bits();
    let always = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 1 | 1 << 4;
    assert_eq!(features(options()), always | 1 << 2 | 1 << 5);
    let plain = BalloonOptions {
        deflate_on_oom: false,
        free_page_reporting: false,
        ..options()
    };
    assert_eq!(features(plain), always);
}

#[test]
fn the_driver_writes_its_own_fields_only() {
    let mut balloon = Balloon::new(BalloonOptions {
        target: 5 * PAGE,
        ..options()
    })
    .unwrap();
    assert_eq!(config(&balloon), [5, 0, 0, 0]);
    for offset in 0..16 {
        balloon.write_config(offset, &[1]);
        balloon.write_config(offset, &[1; 2]);
        balloon.write_config(offset, &[1; 8]);
    }
    for offset in [0, 8, 16, u64::MAX] {
        balloon.write_config(offset, &[1; 4]);
    }
    assert_eq!(config(&balloon), [5, 0, 0, 0]);
    balloon.write_config(4, &3u32.to_le_bytes());
    balloon.write_config(12, &0xaaaa_aaaau32.to_le_bytes());
    assert_eq!(config(&balloon), [5, 3, 0, 0xaaaa_aaaa]);
    assert_eq!(balloon.control().actual(), 3 * PAGE);
    let mut beyond = [0; 8];
    balloon.read_config(u64::MAX - 1, &mut beyond);
    balloon.read_config(14, &mut beyond);
    assert_eq!(beyond, [0xaa, 0xaa, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_new_target_is_told_and_read() {
    let mut balloon = Balloon::new(options()).unwrap();
    let control = balloon.control();
    // Before there is a driver, it will read it by itself.
    control.set_target(PAGE).unwrap();
    let told = Arc::new(Told::default());
    balloon.connect(told.clone());
    control.set_target(3 * PAGE + 1).unwrap();
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
    assert_eq!(config(&balloon)[0], 3);
    assert_eq!(control.target(), 3 * PAGE);
    let error = control.set_target(END).unwrap_err();
    assert_eq!((error.wanted, error.memory), (END, END));
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
    assert_eq!(control.target(), 3 * PAGE);
}

#[test]
fn inflated_pages_are_discarded_and_no_others() {
    let mut bench = Bench::new();
    let mut worker = bench.worker();
    let first = FREE / PAGE;
    bench.inflate(
        worker.as_mut(),
        &[first + 5, first + 1, first + 2, first + 1],
    );
    assert_eq!(
        bench.kept(FREE, 7),
        [true, false, false, true, true, false, true]
    );
    // A run over the seam of two regions.
    let seam = SEAM / PAGE;
    bench.inflate(worker.as_mut(), &[seam, seam - 1]);
    assert_eq!(bench.kept(SEAM - 2 * PAGE, 4), [true, false, false, true]);
}

#[test]
fn pages_that_are_not_there_are_nobodys() {
    let mut bench = Bench::new();
    let mut worker = bench.worker();
    let last = END / PAGE - 1;
    bench.inflate(
        worker.as_mut(),
        &[last + 1, last, u64::from(u32::MAX), last + 2, 1 << 20],
    );
    assert_eq!(bench.kept(END - 2 * PAGE, 2), [true, false]);
}

#[test]
fn odd_lists_do_no_harm() {
    let mut bench = Bench::new();
    let mut worker = bench.worker();
    let page = u32::try_from(FREE / PAGE).unwrap();
    // Bytes that are no whole number, a number in two buffers, a buffer to write to.
    let numbers = [page.to_le_bytes(), (page + 2).to_le_bytes()].concat();
    let driver = bench.driver(0);
    let chain = [
        driver.readable(&numbers[..3]),
        driver.readable(&numbers[3..]),
        driver.readable(&[1, 2]),
        driver.writable(64),
    ];
    driver.submit(&chain);
    driver.submit(&[chain[3]]);
    bench.kick(worker.as_mut(), 0);
    assert_eq!(bench.driver(0).take_used().len(), 2);
    assert_eq!(bench.kept(FREE, 3), [false, true, false]);
}

#[test]
fn deflated_pages_are_only_acknowledged() {
    let mut bench = Bench::new();
    let mut worker = bench.worker();
    let numbers = u32::try_from(FREE / PAGE).unwrap().to_le_bytes();
    let list = bench.driver(1).readable(&numbers);
    let head = bench.driver(1).submit(&[list]);
    bench.kick(worker.as_mut(), 1);
    assert_eq!(bench.driver(1).take_used(), [(head, 0)]);
    assert_eq!(bench.kept(FREE, 1), [true]);
}

#[test]
fn reported_pages_are_discarded_whichever_queue_they_come_through() {
    for queue in [3, 4] {
        let mut bench = Bench::new();
        let mut worker = bench.worker();
        // Whole pages only, and the seam is no obstacle.
        bench.report(worker.as_mut(), queue, FREE + 1, 8192);
        assert_eq!(bench.kept(FREE, 3), [true, false, true]);
        bench.report(worker.as_mut(), queue, SEAM - PAGE, 8192);
        assert_eq!(bench.kept(SEAM - PAGE, 3), [false, false, true]);
    }
    // Without statistics, Linux before 6.11 reports through the queue that would be theirs.
    let mut bench = Bench::new();
    let mut worker = bench.worker_without(F_STATS_VQ);
    bench.report(worker.as_mut(), 2, FREE, 4096);
    assert_eq!(bench.kept(FREE, 2), [false, true]);
    assert_eq!(bench.balloon.control().statistics(), None);
}

#[test]
fn nothing_is_reported_without_the_feature() {
    let mut bench = Bench::new();
    let mut worker = bench.worker_without(F_REPORTING);
    bench.report(worker.as_mut(), 3, FREE, 4096);
    assert_eq!(bench.kept(FREE, 1), [true]);
}

#[test]
fn pages_that_must_not_become_zeroes_stay() {
    let mut bench = Bench::new();
    let mut worker = bench.worker();
    bench.balloon.write_config(field::POISON_VAL, &[0xaa; 4]);
    bench.report(worker.as_mut(), 4, FREE, 4096);
    assert_eq!(bench.kept(FREE, 1), [true]);
    // Zeroes are what discarded pages read as.
    bench.balloon.write_config(field::POISON_VAL, &[0; 4]);
    bench.report(worker.as_mut(), 4, FREE, 4096);
    assert_eq!(bench.kept(FREE, 1), [false]);
    // And a value of a driver that has not accepted the feature says nothing.
    drop(worker);
    let mut worker = bench.worker_without(F_PAGE_POISON);
    bench.balloon.write_config(field::POISON_VAL, &[0xaa; 4]);
    bench.report(worker.as_mut(), 4, FREE + PAGE, 4096);
    assert_eq!(bench.kept(FREE, 2), [false, false]);
}

#[test]
fn much_work_is_done_in_shares() {
    let mut bench = Bench::new();
    let mut worker = bench.worker();
    // Lists of every other page: 256 calls of the host's each.
    let first = u32::try_from(FREE / PAGE).unwrap();
    let pages = (first..first + 512).step_by(2);
    let bytes: Vec<u8> = pages.flat_map(u32::to_le_bytes).collect();
    for _ in 0..16 {
        let list = bench.driver(0).readable(&bytes);
        bench.driver(0).submit(&[list]);
    }
    let shares: Vec<usize> = (0..5)
        .map(|_| {
            bench.kick(worker.as_mut(), 0);
            bench.driver(0).take_used().len()
        })
        .collect();
    assert_eq!(shares, [4, 4, 4, 4, 0]);
    assert!(bench.kept(FREE, 16).iter().step_by(2).all(|kept| !kept));
}

#[test]
fn statistics_are_published_and_asked_for() {
    let mut bench = Bench::new();
    let mut worker = bench.worker();
    let control = bench.balloon.control();
    assert_eq!(control.statistics(), None);
    let head = bench.answer(
        worker.as_mut(),
        &[(4, 700), (999, 1), (5, u64::MAX), (4, 800)],
    );
    let got = control.statistics().unwrap();
    assert_eq!(got.get(Figure::FreeMemory), Some(800));
    assert_eq!(got.get(Figure::SwapIn), None);
    let all: Vec<_> = got.iter().collect();
    assert_eq!(all, [("free_memory", 800), ("total_memory", u64::MAX)]);
    // The buffer is kept until the next answer is wanted, and is then given back once.
    assert_eq!(bench.driver(2).take_used(), []);
    let asked = control.clone();
    let asking = thread::spawn(move || asked.ask_statistics(Duration::from_secs(30)));
    let ask = bench.balloon.shared.ask.as_raw_fd();
    loop {
        bench.wake(worker.as_mut(), ask);
        if bench.driver(2).take_used() == [(head, 0)] {
            break;
        }
        thread::yield_now();
    }
    bench.wake(worker.as_mut(), ask);
    assert_eq!(bench.driver(2).take_used(), []);
    bench.answer(worker.as_mut(), &[(4, 900)]);
    let answer = asking.join().unwrap().unwrap();
    assert_eq!(answer.get(Figure::FreeMemory), Some(900));
}

#[test]
fn a_guest_that_does_not_answer_leaves_what_it_told_before() {
    let mut bench = Bench::new();
    let control = bench.balloon.control();
    assert_eq!(control.ask_statistics(Duration::ZERO), None);
    let mut worker = bench.worker();
    bench.answer(worker.as_mut(), &[(0, 1)]);
    let old = control.ask_statistics(Duration::from_millis(1)).unwrap();
    assert_eq!(old.get(Figure::SwapIn), Some(1));
}

#[test]
fn a_driver_with_two_buffers_gets_the_older_back() {
    let mut bench = Bench::new();
    let mut worker = bench.worker();
    let first = bench.answer(worker.as_mut(), &[(0, 1)]);
    bench.answer(worker.as_mut(), &[(0, 2)]);
    assert_eq!(bench.driver(2).take_used(), [(first, 0)]);
    let got = bench.balloon.control().statistics().unwrap();
    assert_eq!(got.get(Figure::SwapIn), Some(2));
}

#[test]
fn the_interval_asks_and_can_be_changed() {
    let mut bench = Bench::new();
    let control = bench.balloon.control();
    assert_eq!(control.statistics_interval(), Duration::ZERO);
    let mut worker = bench.worker();
    let timer = bench.balloon.shared.timer.as_raw_fd();
    assert!(
        worker
            .sources()
            .iter()
            .all(|source| source.wake == Wake::Readable)
    );
    let head = bench.answer(worker.as_mut(), &[(0, 1)]);
    bench.wake(worker.as_mut(), timer);
    assert_eq!(bench.driver(2).take_used(), [], "no timer runs");
    control
        .set_statistics_interval(Duration::from_millis(1))
        .unwrap();
    while bench.driver(2).take_used() != [(head, 0)] {
        bench.wake(worker.as_mut(), timer);
    }
    control.set_statistics_interval(Duration::ZERO).unwrap();
    assert_eq!(control.statistics_interval(), Duration::ZERO);
    assert!(control.set_statistics_interval(Duration::MAX).is_err());
    assert_eq!(control.statistics_interval(), Duration::ZERO);
}

#[test]
fn after_a_reset_no_question_is_left_over() {
    let mut bench = Bench::new();
    let mut worker = bench.worker();
    bench.answer(worker.as_mut(), &[(0, 1)]);
    drop(worker);
    let mut worker = bench.worker();
    let ask = bench.balloon.shared.ask.as_raw_fd();
    bench.balloon.shared.ask.write(1).unwrap();
    bench.wake(worker.as_mut(), ask);
    assert_eq!(bench.driver(2).take_used(), []);
}
