//! Several queues: what the driver sees of them, that each is served, and drivers that get them wrong.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use super::bench::engines;
use super::*;
use crate::io::IoThread;
use crate::virtio::block::{Keep, MAX_BLOCK_QUEUES, Manner, Options, open};
use crate::virtio::testing::{Machine, Tape, reg, status};

const F_MQ: u64 = 1 << 12;
const VERSION_1: u64 = 1 << 32;

fn manner(queues: u16) -> Manner {
    Manner {
        queues,
        ..Manner::default()
    }
}

fn on_fake(queues: u16) -> Block {
    Block::with_manner(Arc::new(FakeDisk::new(info())), "fake", manner(queues))
}

#[test]
fn the_driver_is_told_how_many_there_are() {
    for queues in [1, 2, 7, MAX_BLOCK_QUEUES] {
        let block = on_fake(queues);
        let mut told = [0xee; 2];
        block.read_config(34, &mut told);
        let told = u16::from_le_bytes(told);
        let offered = block.features().bits() & F_MQ != 0;
        // §5.2.4: the field is there only with the feature.
        assert_eq!(
            (told, offered),
            if queues > 1 {
                (queues, true)
            } else {
                (0, false)
            }
        );
        assert_eq!(block.queue_sizes(), vec![256; queues.into()]);
    }
}

#[test]
fn each_queue_has_a_lane_where_the_disk_lets_it_and_the_driver_knows_of_it() {
    let file = image();
    let on_file = |overlay| {
        let options = Options {
            overlay,
            ..Options::default()
        };
        Block::with_manner(open(&[file.path()], &options).unwrap(), "disk", manner(3))
    };
    let lanes = |block: &mut Block, mq: bool| -> Vec<Vec<u16>> {
        let acked = block.features().bits() & !F_MQ | if mq { F_MQ } else { 0 };
        let lanes = block.activate(Features::from_bits_retain(acked)).unwrap();
        lanes
            .iter()
            .map(|lane| lane.queues.iter().map(|queue| queue.0).collect())
            .collect()
    };
    let mut raw = on_file(None);
    assert_eq!(lanes(&mut raw, true), [[0], [1], [2]]);
    assert_eq!(lanes(&mut raw, false), [[0]]);
    drop(raw);
    let mut overlay = on_file(Some(Keep::Memory));
    assert_eq!(lanes(&mut overlay, true), [[0, 1, 2]]);
    assert_eq!(lanes(&mut overlay, false), [[0]]);
}

const SECTORS_EACH: u64 = 64;

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(3 * SECTORS_EACH * SECTOR).unwrap();
    file
}

/// A device with three queues on two threads, and their drivers.
struct Live {
    machine: Machine,
    drivers: Vec<Driver>,
    _io: [IoThread; 2],
}

impl Live {
    fn new(file: &NamedTempFile, options: &Options, features: u64) -> Self {
        let io = ["io0", "io1"].map(|name| IoThread::spawn(name, |e| panic!("{e}")).unwrap());
        let disk = open(&[file.path()], options).unwrap();
        let device = Box::new(Block::with_manner(disk, "live", manner(3)));
        let memory = testing::memory();
        let threads = io.iter().map(IoThread::handle).collect();
        let machine = Machine::new(device, &memory, threads, Tape::default()).unwrap();
        assert!(machine.negotiate(VERSION_1 | 1 << 9 | features));
        let drivers = (0..3u64)
            .map(|n| Driver::new(&memory, 0x1000 + n * 0x10_0000, QUEUE_SIZE))
            .collect();
        Self {
            machine,
            drivers,
            _io: io,
        }
    }

    fn start(&self, queues: &[u16]) {
        for queue in queues {
            let at = usize::from(*queue);
            self.machine.set_queue(*queue, &self.drivers[at]);
        }
        self.machine.set(reg::STATUS, status::DRIVER_OK);
    }

    fn wait(&mut self, queue: u16, count: usize) {
        let start = Instant::now();
        let at = usize::from(queue);
        let mut used = 0;
        while used < count {
            assert!(start.elapsed() < Duration::from_secs(60), "queue {queue}");
            used += self.drivers[at].take_used().len();
            thread::yield_now();
        }
        assert_eq!(used, count);
    }
}

/// All of it through one queue is there through another once it was flushed through the third.
#[test]
fn queues_are_of_one_disk() {
    for engine in engines() {
        for overlay in [None, Some(Keep::Memory)] {
            let file = image();
            let options = Options {
                engine,
                overlay: overlay.clone(),
                ..Options::default()
            };
            let mut live = Live::new(&file, &options, F_MQ);
            live.start(&[0, 1, 2]);
            for round in 1..=20u8 {
                live.drivers.iter_mut().for_each(Driver::recycle);
                for (n, queue) in (0..3u64).zip(0..3u16) {
                    for sector in 0..4 {
                        let at = n * SECTORS_EACH + sector;
                        let byte = round ^ u8::try_from(at).unwrap();
                        let driver = &mut live.drivers[usize::try_from(n).unwrap()];
                        ask(driver, OUT, at, &[byte; 512], 0);
                    }
                    live.machine.kick(queue);
                }
                (0..3).for_each(|queue| live.wait(queue, 4));
                ask(&mut live.drivers[2], FLUSH, 0, &[], 0);
                live.machine.kick(2);
                live.wait(2, 1);
                for n in 0..3u64 {
                    for sector in 0..4 {
                        let at = n * SECTORS_EACH + sector;
                        let (other, queue) = match n {
                            0 => (1, 1),
                            1 => (2, 2),
                            _ => (0, 0),
                        };
                        let (_, status) = ask(&mut live.drivers[other], IN, at, &[], 512);
                        live.machine.kick(queue);
                        live.wait(queue, 1);
                        let byte = round ^ u8::try_from(at).unwrap();
                        assert_eq!(live.drivers[other].read(status - 512, 512), [byte; 512]);
                    }
                }
            }
            assert!(!live.machine.faulted());
            drop(live);
            let is_zero = fs::read(file.path()).unwrap().iter().all(|byte| *byte == 0);
            assert_eq!(is_zero, overlay.is_some());
        }
    }
}

#[test]
fn drivers_that_miscount_get_what_there_is() {
    for (features, set_up, kicked, served) in [
        // Only a later one, and kicks of queues that are not set up or not there.
        (F_MQ, &[2][..], &[0, 1, 2, 3, 63, 64, u32::MAX][..], Some(2)),
        (F_MQ, &[0, 2], &[2, 1], Some(2)),
        // More than it agreed to: nobody serves them, and the first is none the worse for it.
        (0, &[0, 1, 2], &[1, 2, 0], Some(0)),
        (0, &[1], &[1], None),
        (F_MQ, &[], &[0], None),
    ] {
        let file = image();
        let mut live = Live::new(&file, &Options::default(), features);
        live.start(set_up);
        for queue in set_up {
            ask(&mut live.drivers[usize::from(*queue)], IN, 0, &[], 512);
        }
        kicked
            .iter()
            .for_each(|queue| live.machine.set(0x50, *queue));
        if let Some(queue) = served {
            live.wait(queue, 1);
        }
        assert!(!live.machine.faulted(), "{set_up:?}");
        if features == 0 {
            for queue in [1, 2] {
                assert_eq!(live.drivers[queue].take_used(), []);
            }
        }
    }
}
