//! A disk under control: paused, of another size, on another image, and stopped by an error of the host's.
//! First the worker by itself, then a device on an I/O thread and real files.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use super::bench::engines;
use super::*;
use crate::io::IoThread;
use crate::virtio::block::{
    DiskControl, DiskControlError, DiskState, Engine, Keep, Manner, OnError, Operation, Options,
    ResizeError, open,
};
use crate::virtio::testing::{Machine, Tape, reg, status};

/// The token of a worker's bell.
const BELL: u32 = 2;
/// The token of its disk.
const DISK: u32 = 0;
const LONG: Duration = Duration::from_secs(60);

fn stopping(info: DiskInfo) -> Bench {
    let mut bench = Bench::new(info);
    let manner = Manner {
        on_error: OnError::Stop,
        ..Manner::default()
    };
    let disk = bench.block.control().0.disk();
    bench.block = Block::with_manner(disk, "fake", manner);
    bench
}

fn wake(bench: &mut Bench, worker: &mut dyn QueueWorker, token: u32) {
    bench.with_io(|io| worker.on_source(token, io)).unwrap();
}

#[test]
fn a_pause_waits_for_what_is_under_way_and_lets_go_of_the_image() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    let control = bench.block.control();
    assert_eq!(control.state(), DiskState::Running);
    bench.insides().hold = true;
    let (first, _) = ask(&mut bench.driver, IN, 1, &[], 512);
    bench.kick(worker.as_mut()).unwrap();
    let (told, paused) = channel();
    let pauser = thread::spawn({
        let control = control.clone();
        move || told.send(control.pause().is_ok()).unwrap()
    });
    while control.state() != DiskState::Paused {
        thread::yield_now();
    }
    wake(&mut bench, worker.as_mut(), BELL);
    // Nothing is begun any more, however often the driver kicks.
    let (second, _) = ask(&mut bench.driver, IN, 2, &[], 512);
    bench.kick(worker.as_mut()).unwrap();
    assert_eq!(bench.ops(), [Op::Read(512, 512)]);
    assert!(paused.try_recv().is_err(), "a request is under way");
    let held = std::mem::take(&mut bench.insides().held);
    bench.insides().released = held;
    wake(&mut bench, worker.as_mut(), DISK);
    assert_eq!(paused.recv_timeout(LONG), Ok(true));
    pauser.join().unwrap();
    assert_eq!(bench.driver.take_used(), [(first, 513)]);
    bench.insides().hold = false;
    control.resume();
    assert_eq!(control.state(), DiskState::Running);
    wake(&mut bench, worker.as_mut(), BELL);
    assert_eq!(bench.driver.take_used(), [(second, 513)]);
    assert_eq!(bench.insides().lanes, 2, "the first was closed");
}

#[test]
fn each_reason_to_wait_counts_for_itself() {
    let mut bench = Bench::new(info());
    let control = bench.block.control();
    // Without a driver there is nobody to wait for.
    control.pause().unwrap();
    control.pause_with_machine();
    assert!(control.is_at_rest(Duration::ZERO));
    let mut worker = bench.worker();
    let (head, _) = ask(&mut bench.driver, IN, 0, &[], 512);
    for resume in [DiskControl::resume, DiskControl::resume_with_machine] {
        wake(&mut bench, worker.as_mut(), BELL);
        bench.kick(worker.as_mut()).unwrap();
        assert_eq!(bench.driver.take_used(), []);
        resume(&control);
    }
    wake(&mut bench, worker.as_mut(), BELL);
    assert_eq!(bench.driver.take_used(), [(head, 513)]);
}

#[test]
fn a_request_that_the_host_fails_is_kept_until_it_goes_well() {
    for (errno, kind, data, room) in [
        (libc::ENOSPC, OUT, &[7; 1024][..], 0),
        (libc::EIO, IN, &[], 1024),
        (libc::EDQUOT, WRITE_ZEROES, &segment(3, 2, 0), 0),
        (libc::EIO, DISCARD, &segment(3, 2, 0), 0),
        (libc::EIO, FLUSH, &[], 0),
    ] {
        let mut bench = stopping(info());
        let control = bench.block.control();
        let (told, trouble) = channel();
        control.on_trouble(move |what| told.send(what.to_owned()).unwrap());
        let mut worker = bench.worker();
        bench.insides().fail = Some((0, errno));
        let (head, status) = ask(&mut bench.driver, kind, 3, data, room);
        bench.kick(worker.as_mut()).unwrap();
        let said = trouble.try_recv().unwrap();
        assert!(said.starts_with("disk fake: "), "{said}");
        assert_eq!(control.state(), DiskState::Stopped(said));
        // What comes now waits behind it.
        let (next, _) = ask(&mut bench.driver, IN, 9, &[], 512);
        bench.kick(worker.as_mut()).unwrap();
        assert_eq!(bench.ops().len(), 1);
        // In vain at first, and that is told again.
        control.resume_with_machine();
        wake(&mut bench, worker.as_mut(), BELL);
        assert!(trouble.try_recv().is_ok());
        assert_eq!(bench.driver.take_used(), []);
        bench.insides().fail = None;
        control.resume();
        wake(&mut bench, worker.as_mut(), BELL);
        assert_eq!(bench.driver.read(status, 1), [OK]);
        let used: Vec<_> = bench.driver.take_used().iter().map(|it| it.0).collect();
        assert_eq!(used, [head, next]);
        assert_eq!(control.state(), DiskState::Running);
        let ops = bench.ops();
        assert_eq!(ops[1..3], [ops[0], ops[0]], "the same request");
        let all = control.statistics();
        let sum = |count: fn(&crate::virtio::block::OperationStatistics) -> u64| -> u64 {
            Operation::ALL.iter().map(|it| count(all.of(*it))).sum()
        };
        assert_eq!((sum(|it| it.requests), sum(|it| it.errors)), (4, 2));
    }
}

#[test]
fn requests_under_way_when_the_host_fails_are_all_kept() {
    let mut bench = stopping(info());
    let control = bench.block.control();
    let mut worker = bench.worker();
    bench.insides().hold = true;
    bench.insides().fail = Some((1, libc::ENOSPC));
    let heads: Vec<_> = (0..5)
        .map(|n| ask(&mut bench.driver, OUT, n, &[9; 512], 0).0)
        .collect();
    bench.kick(worker.as_mut()).unwrap();
    let held = std::mem::take(&mut bench.insides().held);
    bench.insides().released = held;
    wake(&mut bench, worker.as_mut(), DISK);
    assert_eq!(bench.driver.take_used(), [(heads[0], 1)]);
    // Kept requests are nothing that a pause would have to wait for.
    control.pause_with_machine();
    assert!(!control.is_at_rest(Duration::ZERO));
    wake(&mut bench, worker.as_mut(), BELL);
    assert!(control.is_at_rest(Duration::ZERO));
    (bench.insides().hold, bench.insides().fail) = (false, None);
    control.resume_with_machine();
    wake(&mut bench, worker.as_mut(), BELL);
    let used: Vec<_> = bench.driver.take_used().iter().map(|it| it.0).collect();
    assert_eq!(used, heads[1..]);
}

#[test]
fn what_cannot_be_mended_is_reported_and_a_reset_forgets_what_is_kept() {
    let mut bench = stopping(info());
    let control = bench.block.control();
    let mut worker = bench.worker();
    bench.insides().hold = true;
    let (head, status) = ask(&mut bench.driver, FLUSH, 0, &[], 0);
    bench.kick(worker.as_mut()).unwrap();
    bench.insides().held.clear();
    let lost = io::Error::other("lost for good");
    bench.insides().released.push((Tag(0), Err(lost)));
    wake(&mut bench, worker.as_mut(), DISK);
    assert_eq!(bench.driver.take_used(), [(head, 1)]);
    assert_eq!(bench.driver.read(status, 1), [IOERR]);
    assert_eq!(control.state(), DiskState::Running);

    bench.insides().hold = false;
    bench.insides().fail = Some((0, libc::EIO));
    ask(&mut bench.driver, IN, 0, &[], 512);
    bench.kick(worker.as_mut()).unwrap();
    bench.with_io(|io| worker.drain(io)).unwrap();
    drop(worker);
    bench.insides().fail = None;
    control.resume();
    let mut worker = bench.worker();
    wake(&mut bench, worker.as_mut(), BELL);
    assert_eq!(bench.driver.take_used(), [], "nobody waits for it any more");
}

#[test]
fn a_driver_that_writes_over_a_request_that_is_kept_harms_itself() {
    for (descriptor, is_fault) in [
        // A loop, memory that is not there, and nothing to answer in.
        (
            Descriptor {
                address: 0x2000,
                len: 16,
                flags: testing::NEXT,
                next: 0,
            },
            true,
        ),
        (
            Descriptor {
                address: testing::END,
                len: 16,
                flags: 0,
                next: 0,
            },
            true,
        ),
        (
            Descriptor {
                address: 0x2000,
                len: 16,
                flags: 0,
                next: 0,
            },
            true,
        ),
        (
            Descriptor {
                address: 0x2000,
                len: 15,
                flags: testing::INDIRECT,
                next: 0,
            },
            true,
        ),
        (
            Descriptor {
                address: 0x2000,
                len: 0,
                flags: testing::INDIRECT,
                next: 0,
            },
            true,
        ),
        (
            Descriptor {
                address: 0x2000,
                len: 16,
                flags: testing::NEXT,
                next: 999,
            },
            true,
        ),
    ] {
        let mut bench = stopping(info());
        let control = bench.block.control();
        let mut worker = bench.worker();
        bench.insides().fail = Some((0, libc::EIO));
        let (head, _) = ask(&mut bench.driver, IN, 0, &[], 512);
        bench.kick(worker.as_mut()).unwrap();
        bench.driver.set_descriptor(head, descriptor);
        control.resume();
        let result = bench.with_io(|io| worker.on_source(BELL, io));
        assert_eq!(result.is_err(), is_fault, "{descriptor:?}");
    }
}

/// Chains once more are what they were when they were popped, in whatever table.
#[test]
fn a_chain_can_be_taken_again() {
    let mut bench = Bench::new(info());
    let chain = request(&mut bench.driver, OUT, 3, &[5; 512], 0);
    let heads = [
        bench.driver.submit(&chain),
        bench.driver.submit_indirect(&chain),
    ];
    bench.with_io(|io| {
        for head in heads {
            let first = io.pop(QUEUE).unwrap().unwrap();
            let again = io.again(QUEUE, head).unwrap();
            let lens = |side: &[GuestSlice<'_>]| -> Vec<_> {
                side.iter()
                    .map(|it| (it.ptr_guard().as_ptr(), it.len()))
                    .collect()
            };
            assert_eq!(first.head, again.head);
            assert_eq!(lens(&first.readable), lens(&again.readable));
            assert_eq!(lens(&first.writable), lens(&again.writable));
            assert_eq!(first.last_writable, again.last_writable);
        }
    });
}

/// A device on a thread of its own, its driver, and its control.
struct Live {
    machine: Machine,
    memory: GuestMemory,
    driver: Driver,
    control: DiskControl,
    _io: IoThread,
}

const MIB: u64 = 1 << 20;

fn image(sectors: u64, byte: u8) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let len = usize::try_from(sectors * SECTOR).unwrap();
    fs::write(file.path(), vec![byte; len]).unwrap();
    file
}

fn options(engine: Engine) -> Options {
    Options {
        engine,
        ..Options::default()
    }
}

impl Live {
    fn new(path: &Path, options: &Options) -> Self {
        let io = IoThread::spawn("io", |error| panic!("{error}")).unwrap();
        let device = Block::new(open(&[path], options).unwrap(), "live");
        let control = device.control();
        let memory = testing::memory();
        let threads = [io.handle()].into();
        let machine = Machine::new(Box::new(device), &memory, threads, Tape::default()).unwrap();
        let mut live = Self {
            driver: Driver::new(&memory, 0x1000, QUEUE_SIZE),
            machine,
            memory,
            control,
            _io: io,
        };
        live.start();
        live
    }

    fn start(&mut self) {
        self.driver = Driver::new(&self.memory, 0x1000, QUEUE_SIZE);
        assert!(self.machine.negotiate(1 << 32 | 1 << 9));
        self.machine.set_queue(0, &self.driver);
        self.machine.set(reg::STATUS, status::DRIVER_OK);
    }

    /// The size in configuration space, in sectors.
    fn sectors(&self) -> u64 {
        let mut bytes = [0; 8];
        self.machine.read(0x100, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// The status of a request, and what it read.
    fn ask(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> (u8, Vec<u8>) {
        self.driver.recycle();
        let (_, status) = ask(&mut self.driver, kind, sector, data, room);
        self.machine.kick(0);
        self.wait(1);
        let read = self.driver.read(status - u64::from(room), room);
        (self.driver.read(status, 1)[0], read)
    }

    fn wait(&mut self, count: usize) {
        let start = Instant::now();
        let mut used = 0;
        while used < count {
            assert!(start.elapsed() < LONG, "{used} of {count} in a minute");
            used += self.driver.take_used().len();
            thread::yield_now();
        }
        assert!(!self.machine.faulted());
    }
}

#[test]
fn a_disk_grows_and_shrinks_under_its_guest() {
    for engine in engines() {
        let file = image(8, 1);
        let mut live = Live::new(file.path(), &options(engine));
        assert_eq!((live.sectors(), live.control.capacity()), (8, 4096));
        assert_eq!(live.ask(IN, 8, &[], 512).0, IOERR);
        let generation = live.machine.get(0xfc);
        assert_eq!(live.control.resize(Some(MIB)).unwrap(), MIB);
        assert_eq!(live.sectors(), 2048);
        assert_ne!(live.machine.get(0xfc), generation, "the driver is told");
        assert_eq!(live.machine.get(0x60) & 2, 2, "by an interrupt");
        assert_eq!(live.ask(OUT, 2047, &[3; 512], 0).0, OK);
        assert_eq!(live.ask(IN, 2047, &[], 512), (OK, vec![3; 512]));
        assert_eq!(live.control.resize(Some(512)).unwrap(), 512);
        assert_eq!(live.ask(IN, 1, &[], 512).0, IOERR);
        assert_eq!(live.ask(IN, 0, &[], 512), (OK, vec![1; 512]));
        assert_eq!(file.as_file().metadata().unwrap().len(), 512);
        // Somebody else made it larger.
        file.as_file().set_len(1024).unwrap();
        assert_eq!(live.control.resize(None).unwrap(), 1024);
        assert_eq!(live.ask(IN, 1, &[], 512), (OK, vec![0; 512]));
        for impossible in [Some(0), Some(513)] {
            let error = live.control.resize(impossible).unwrap_err();
            let is_size = matches!(error, DiskControlError::Resize(ResizeError::Size { .. }));
            assert!(is_size, "{error}");
        }
        assert_eq!(live.sectors(), 2);
    }
}

#[test]
fn what_cannot_be_resized_says_why_and_stays() {
    let file = image(8, 1);
    let read_only = Options {
        read_only: true,
        ..options(Engine::Sync)
    };
    let live = Live::new(file.path(), &read_only);
    let error = live.control.resize(Some(MIB)).unwrap_err();
    assert!(matches!(
        error,
        DiskControlError::Resize(ResizeError::ReadOnly)
    ));
    let overlay = Options {
        overlay: Some(Keep::Memory),
        ..options(Engine::Sync)
    };
    let live = Live::new(file.path(), &overlay);
    let error = live.control.resize(Some(MIB)).unwrap_err();
    assert!(matches!(
        error,
        DiskControlError::Resize(ResizeError::Fixed)
    ));
    assert_eq!(live.sectors(), 8);
}

#[test]
fn another_image_takes_the_place_of_the_first() {
    for engine in engines() {
        let (first, second) = (image(8, 1), image(16, 2));
        let mut live = Live::new(first.path(), &options(engine));
        assert_eq!(live.ask(OUT, 0, &[9; 512], 0).0, OK);
        let open_as = |path: &Path, options: &Options| open(&[path], options);
        let new = open_as(second.path(), &options(engine)).unwrap();
        live.control.replace(new).unwrap();
        assert_eq!(live.sectors(), 16);
        assert_eq!(live.ask(IN, 15, &[], 512), (OK, vec![2; 512]));
        assert_eq!(live.ask(OUT, 1, &[8; 512], 0).0, OK);
        // The first is as its guest left it, and free for others.
        let mut left = vec![1; 4096];
        left[..512].fill(9);
        assert_eq!(fs::read(first.path()).unwrap(), left);
        drop(open_as(first.path(), &options(engine)).unwrap());
        assert!(open_as(second.path(), &options(engine)).is_err());
        let read_only = Options {
            read_only: true,
            ..options(engine)
        };
        let other = open_as(first.path(), &read_only).unwrap();
        let error = live.control.replace(other).unwrap_err();
        assert!(error.to_string().contains("read-only"), "{error}");
        assert_eq!(live.ask(IN, 1, &[], 512), (OK, vec![8; 512]));
        live.start();
        assert_eq!(live.ask(IN, 1, &[], 512), (OK, vec![8; 512]));
    }
}

#[test]
fn a_busy_disk_is_paused_and_goes_on_and_forgets_nothing() {
    for engine in engines() {
        let file = image(64, 1);
        let mut live = Live::new(file.path(), &options(engine));
        let pauses = Arc::new(AtomicU32::new(0));
        let (stop, stopped) = channel::<()>();
        let pauser = thread::spawn({
            let (control, pauses) = (live.control.clone(), pauses.clone());
            move || {
                while stopped.try_recv().is_err() {
                    control.pause().unwrap();
                    control.flush().unwrap();
                    control.resume();
                    pauses.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut rounds = 0u64;
        while rounds < 50 || pauses.load(Ordering::Relaxed) < 10 {
            live.driver.recycle();
            for n in 0..8 {
                let byte = u8::try_from(rounds % 251).unwrap();
                ask(&mut live.driver, OUT, n, &[byte; 512], 0);
            }
            live.machine.kick(0);
            live.wait(8);
            rounds += 1;
        }
        stop.send(()).unwrap();
        pauser.join().unwrap();
        let byte = u8::try_from((rounds - 1) % 251).unwrap();
        assert_eq!(live.ask(IN, 7, &[], 512), (OK, vec![byte; 512]));
        let all = live.control.statistics();
        let write = all.of(Operation::Write);
        let count = 8 * rounds;
        assert_eq!((write.requests, write.bytes), (count, count * 512));
        assert_eq!((write.errors, write.latencies.iter().sum()), (0, count));
    }
}

/// A guest that broke its device must not keep those waiting who control it.
#[test]
fn a_device_that_needs_a_reset_holds_nobody_up() {
    let file = image(8, 1);
    let mut live = Live::new(file.path(), &options(Engine::Sync));
    let chain = [live.driver.readable(&header(IN, 0))];
    live.driver.submit(&chain);
    live.machine.kick(0);
    let start = Instant::now();
    while !live.machine.faulted() {
        assert!(start.elapsed() < LONG);
        thread::yield_now();
    }
    live.control.pause().unwrap();
    live.control.resize(Some(MIB)).unwrap();
    live.control.resume();
    live.start();
    assert_eq!(live.ask(IN, 2047, &[], 512), (OK, vec![0; 512]));
}

#[test]
fn a_file_that_was_cut_off_fails_what_is_beyond_its_end_and_nothing_else() {
    for engine in engines() {
        let file = image(8, 1);
        let mut live = Live::new(file.path(), &options(engine));
        file.as_file().set_len(1024).unwrap();
        fs::remove_file(file.path()).unwrap();
        assert_eq!(live.ask(IN, 4, &[], 512).0, IOERR);
        assert_eq!(live.ask(IN, 1, &[], 512), (OK, vec![1; 512]));
        assert_eq!(live.ask(FLUSH, 0, &[], 0).0, OK);
        assert_eq!(live.control.statistics().of(Operation::Read).errors, 1);
    }
}
