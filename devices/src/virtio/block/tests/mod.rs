//! The device as its driver meets it: real rings in fake memory, a fake disk behind.

pub(super) mod bench;
mod case;
mod controlled;
mod direct;
mod face;
mod flow;
mod malformed;
pub(super) mod model;
mod odd;
mod property;
mod queues;
mod raw;
mod several;
mod throttled;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::Block;
use super::disk::{Disk, DiskInfo, DiskLane, DiskOp, Progress, SECTOR, Tag};
use crate::io::QueueIo;
use crate::mem::{GuestMemory, GuestSlice};
use crate::virtio::testing::{self, Descriptor, Driver};
use crate::virtio::{DeviceFault, Features, QueueIndex, QueueWorker, VirtioDevice};

const QUEUE: QueueIndex = QueueIndex(0);
/// Sectors of the fake disk.
const SECTORS: u64 = 128;
/// Entries of the queue.
const QUEUE_SIZE: u16 = 32;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// VIRTIO_BLK_F_FLUSH.
const F_FLUSH: Features = Features::from_bits_retain(1 << 9);

/// What reached the fake disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Read(u64, u64),
    Write(u64, u64, bool),
    Flush,
    Discard(u64, u64),
    Zero(u64, u64, bool, bool),
}

/// The fake disk's insides, shared with the test.
#[derive(Debug, Default)]
struct Insides {
    bytes: Vec<u8>,
    ops: Vec<Op>,
    /// Operations end only when the test or a waiting call says so.
    hold: bool,
    held: Vec<(Tag, io::Result<()>)>,
    released: Vec<(Tag, io::Result<()>)>,
    /// Operations from this one on fail with this error number.
    fail: Option<(usize, i32)>,
    /// Calls that waited.
    waits: usize,
    /// Lanes that were opened.
    lanes: usize,
}

/// A disk in memory that remembers what it was asked. Byte n is n / 512, in the lower eight bits.
#[derive(Debug)]
struct FakeDisk {
    info: DiskInfo,
    insides: Arc<Mutex<Insides>>,
}

#[derive(Debug)]
struct FakeLane {
    event: EventFd,
    insides: Arc<Mutex<Insides>>,
}

impl FakeDisk {
    fn new(info: DiskInfo) -> Self {
        let bytes = (0..info.capacity)
            .map(|n| u8::try_from(n / SECTOR % 256).unwrap())
            .collect();
        let insides = Insides {
            bytes,
            ..Insides::default()
        };
        Self {
            info,
            insides: Arc::new(Mutex::new(insides)),
        }
    }
}

/// The part of a disk that `offset` and `len` name; a request outside it must never get here.
fn part(bytes: &mut [u8], offset: u64, len: u64) -> &mut [u8] {
    let from = usize::try_from(offset).unwrap();
    &mut bytes[from..from + usize::try_from(len).unwrap()]
}

fn total(buffers: &[GuestSlice<'_>]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

impl Disk for FakeDisk {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn flush(&self) -> io::Result<()> {
        self.insides.lock().unwrap().ops.push(Op::Flush);
        Ok(())
    }

    fn lane(&self, _depth: u16) -> io::Result<Box<dyn DiskLane>> {
        self.insides.lock().unwrap().lanes += 1;
        Ok(Box::new(FakeLane {
            event: EventFd::new(0).unwrap(),
            insides: self.insides.clone(),
        }))
    }
}

impl DiskLane for FakeLane {
    fn submit(&mut self, tag: Tag, op: DiskOp<'_>) -> Progress {
        let mut insides = self.insides.lock().unwrap();
        let bytes = &mut insides.bytes;
        let done = match op {
            DiskOp::Read { offset, buffers } => {
                let mut data = &*part(bytes, offset, total(buffers));
                for buffer in buffers {
                    buffer.copy_from(data);
                    data = &data[buffer.len()..];
                }
                Op::Read(offset, total(buffers))
            }
            DiskOp::Write {
                offset,
                buffers,
                through,
            } => {
                let mut data = part(bytes, offset, total(buffers));
                for buffer in buffers {
                    buffer.copy_to(data);
                    data = &mut data[buffer.len()..];
                }
                Op::Write(offset, total(buffers), through)
            }
            DiskOp::Flush => Op::Flush,
            DiskOp::Discard { offset, len } => {
                part(bytes, offset, len).fill(0xdd);
                Op::Discard(offset, len)
            }
            DiskOp::WriteZeroes {
                offset,
                len,
                unmap,
                through,
            } => {
                part(bytes, offset, len).fill(0);
                Op::Zero(offset, len, unmap, through)
            }
        };
        insides.ops.push(done);
        let result = match insides.fail {
            Some((from, errno)) if insides.ops.len() > from => {
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        };
        if insides.hold {
            insides.held.push((tag, result));
            Progress::Pending
        } else {
            Progress::Done(result)
        }
    }

    fn completion_event(&self) -> Option<RawFd> {
        Some(self.event.as_raw_fd())
    }

    fn completed(&mut self, wait: bool) -> Vec<(Tag, io::Result<()>)> {
        let mut insides = self.insides.lock().unwrap();
        if wait {
            insides.waits += 1;
            if let Some(first) = (!insides.held.is_empty()).then(|| insides.held.remove(0)) {
                insides.released.push(first);
            }
        }
        std::mem::take(&mut insides.released)
    }
}

/// A driver, the device, and the disk behind it.
#[derive(Debug)]
struct Bench {
    memory: GuestMemory,
    driver: Driver,
    queues: [Queue; 1],
    block: Block,
    insides: Arc<Mutex<Insides>>,
}

/// A disk of [`SECTORS`] that can do everything.
fn info() -> DiskInfo {
    DiskInfo {
        capacity: SECTORS * SECTOR,
        read_only: false,
        block_size: 4096,
        discard: true,
    }
}

impl Bench {
    fn new(info: DiskInfo) -> Self {
        let disk = FakeDisk::new(info);
        let insides = Arc::clone(&disk.insides);
        let memory = testing::memory();
        let driver = Driver::new(&memory, 0x1000, QUEUE_SIZE);
        Self {
            queues: [driver.queue()],
            block: Block::new(Arc::new(disk), "fake"),
            memory,
            driver,
            insides,
        }
    }

    /// A worker for a driver that takes whatever is offered.
    fn worker(&mut self) -> Box<dyn QueueWorker> {
        self.worker_for(self.block.features())
    }

    /// A worker for a driver that takes `acked`.
    fn worker_for(&mut self, acked: Features) -> Box<dyn QueueWorker> {
        testing::worker(&mut self.block, acked)
    }

    fn kick(&mut self, worker: &mut dyn QueueWorker) -> Result<(), DeviceFault> {
        self.with_io(|io| worker.on_kick(QUEUE, io))
    }

    fn with_io<T>(&mut self, work: impl FnOnce(&mut QueueIo<'_>) -> T) -> T {
        let features = Features::VERSION_1;
        work(&mut QueueIo::new(&self.memory, &mut self.queues, features))
    }

    fn insides(&self) -> MutexGuard<'_, Insides> {
        self.insides.lock().unwrap()
    }

    fn ops(&self) -> Vec<Op> {
        self.insides().ops.clone()
    }
}

/// The header of a request.
fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// A discard or write-zeroes segment.
fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// The descriptors of a request laid out the usual way: header, data if any, status.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[u8], room: u32) -> Vec<Descriptor> {
    let mut chain = vec![driver.readable(&header(kind, sector))];
    if !data.is_empty() {
        chain.push(driver.readable(data));
    }
    if room > 0 {
        chain.push(driver.writable(room));
    }
    chain.push(driver.writable(1));
    chain
}

/// Submits a usual request; returns its head and the address of its status byte.
fn ask(driver: &mut Driver, kind: u32, sector: u64, data: &[u8], room: u32) -> (u16, u64) {
    let chain = request(driver, kind, sector, data, room);
    let status = chain[chain.len() - 1].address;
    (driver.submit(&chain), status)
}
