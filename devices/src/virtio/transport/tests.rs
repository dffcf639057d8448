//! A virtio-mmio device driven through its registers alone, by well-behaved drivers and by hostile ones.

use std::io::Write;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Sender, channel};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio::{LEN, QUEUE_NOTIFY};
use crate::bus::BusDevice;
use crate::io::{IoHandle, IoThread, QueueIo, QueueSet};
use crate::mem::GuestMemory;
use crate::virtio::block::{Block, Options, open};
use crate::virtio::testing::reg::{
    CONFIG, DEVICE_AREA, DEVICE_FEATURES, DEVICE_FEATURES_SEL, INTERRUPT_ACK, INTERRUPT_STATUS,
    QUEUE_READY, QUEUE_SEL, QUEUE_SIZE, QUEUE_SIZE_MAX, STATUS,
};
use crate::virtio::testing::status::{DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET};
use crate::virtio::testing::{self, Descriptor, Driver, END, NEXT, Tape, memory};
use crate::virtio::{
    ActivateError, DeviceFault, Features, Lane, QueueIndex, QueueWorker, Source, VirtioDevice,
    VirtioKind, Wake,
};

const VERSION_1: u64 = 1 << 32;
const SECTORS: u64 = 16;
const SIZE: u16 = 16;
const BASE: u64 = 0x1000;

fn io_thread() -> IoThread {
    IoThread::spawn("io", |error| panic!("{error}")).unwrap()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "no {what} within the deadline");
        yield_now();
    }
}

/// A device on the bus and the memory its driver uses.
struct Machine {
    registers: testing::Machine,
    memory: GuestMemory,
    _image: Option<NamedTempFile>,
}

impl Deref for Machine {
    type Target = testing::Machine;

    fn deref(&self) -> &Self::Target {
        &self.registers
    }
}

impl Machine {
    fn new(
        io: &[IoHandle],
        memory: GuestMemory,
        device: Box<dyn VirtioDevice>,
        image: Option<NamedTempFile>,
    ) -> Self {
        Self {
            registers: testing::Machine::new(device, &memory, io.into(), Tape::default()).unwrap(),
            memory,
            _image: image,
        }
    }

    /// A disk whose every byte is the number of its sector.
    fn block(io: &IoThread) -> Self {
        let mut image = NamedTempFile::new().unwrap();
        for sector in 0..SECTORS {
            let byte = u8::try_from(sector).unwrap();
            image.write_all(&[byte; 512]).unwrap();
        }
        let disk = open(&[image.path()], &Options::default()).unwrap();
        Self::new(
            &[io.handle()],
            memory(),
            Box::new(Block::new(disk, "disk")),
            Some(image),
        )
    }

    /// The whole initialization of Virtio 1.2 §3.1.1.
    fn start(&self) -> Driver {
        assert!(self.negotiate(VERSION_1));
        let driver = Driver::new(&self.memory, BASE, SIZE);
        self.set_queue(0, &driver);
        assert_eq!(self.get(QUEUE_READY), 1);
        self.set(STATUS, DRIVER_OK);
        assert_eq!(self.get(STATUS), DRIVER_OK);
        driver
    }

    /// Reads one sector and acknowledges the interrupt.
    fn read_sector(&self, driver: &mut Driver, sector: u64) {
        driver.recycle();
        let mut header = [0; 16];
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let parts = [
            driver.readable(&header),
            driver.writable(512),
            driver.writable(1),
        ];
        let head = driver.submit(&parts);
        self.kick(0);
        wait_for("interrupt", || self.line.read().is_ok());
        assert_eq!(driver.take_used(), [(head, 513)]);
        let byte = u8::try_from(sector).unwrap();
        assert_eq!(driver.read(parts[1].address, 512), [byte; 512]);
        assert_eq!(driver.read(parts[2].address, 1), [0]);
        assert_eq!(self.get(INTERRUPT_STATUS), 1);
        self.set(INTERRUPT_ACK, 1);
        assert_eq!(self.get(INTERRUPT_STATUS), 0);
    }

    /// After whatever was done to it, a reset brings the device back.
    fn assert_recovers(&self) {
        self.set(STATUS, 0);
        let _ = self.line.read();
        let mut driver = self.start();
        self.read_sector(&mut driver, 3);
    }
}

#[test]
fn identifies_itself() {
    let io = io_thread();
    let machine = Machine::block(&io);
    let ids = [0, 4, 8].map(|offset| machine.get(offset));
    assert_eq!(ids, [u32::from_le_bytes(*b"virt"), 2, 2]);
    assert_eq!(machine.get(QUEUE_SIZE_MAX), 256);
    for absent in [1, 64, u32::MAX] {
        machine.set(QUEUE_SEL, absent);
        assert_eq!(machine.get(QUEUE_SIZE_MAX), 0);
        assert_eq!(machine.get(QUEUE_READY), 0);
        machine.set(QUEUE_SIZE, 3);
        machine.set(QUEUE_READY, 1);
        machine.set(QUEUE_NOTIFY, absent);
    }
    assert_eq!(machine.get(STATUS), 0);
}

#[test]
fn features_stand_only_if_offered_and_modern() {
    let io = io_thread();
    let machine = Machine::block(&io);
    let offered = machine.offered();
    assert!(machine.negotiate(offered));
    assert!(machine.negotiate(VERSION_1));
    assert!(!machine.negotiate(offered & !VERSION_1));
    assert!(!machine.negotiate(0));
    for bit in (0..64).filter(|bit| offered & 1 << bit == 0) {
        assert!(!machine.negotiate(VERSION_1 | 1 << bit), "feature {bit}");
    }
    machine.set(DEVICE_FEATURES_SEL, 2);
    assert_eq!(machine.get(DEVICE_FEATURES), 0);
    machine.assert_recovers();
}

#[test]
fn serves_again_after_each_reset() {
    let io = io_thread();
    let machine = Machine::block(&io);
    for round in 0..50 {
        let mut driver = machine.start();
        machine.read_sector(&mut driver, round % SECTORS);
        machine.read_sector(&mut driver, 1);
        machine.set(STATUS, 0);
        assert_eq!(machine.get(STATUS), 0);
        assert_eq!(machine.get(QUEUE_READY), 0);
    }
}

#[test]
fn impossible_sizes_need_a_reset() {
    let io = io_thread();
    let machine = Machine::block(&io);
    for size in [0, 3, 257, 512, 0x1_0010, 1 << 31, u32::MAX] {
        assert!(machine.negotiate(VERSION_1));
        machine.set(QUEUE_SIZE, size);
        assert!(machine.faulted(), "size {size}");
        machine.set(QUEUE_READY, 1);
        machine.set(STATUS, DRIVER_OK);
        machine.kick(0);
        assert!(machine.faulted());
    }
    machine.assert_recovers();
}

#[test]
fn impossible_rings_need_a_reset() {
    let io = io_thread();
    let machine = Machine::block(&io);
    let good = [0x1000, 0x2000, 0x3000];
    for (part, address) in [
        (0, 0x1008),
        (1, 0x2001),
        (2, 0x3002),
        (0, END - 16),
        (1, END - 2),
        (2, END - 4),
        (0, END),
        (1, 1 << 40),
        (0, u64::MAX - 15),
        (1, u64::MAX - 1),
        (2, u64::MAX - 3),
        (1, 0),
    ] {
        assert!(machine.negotiate(VERSION_1));
        let mut rings = good;
        rings[part] = address;
        machine.set_rings(0, SIZE, rings);
        assert!(machine.faulted(), "part {part} at {address:#x}");
    }
    // Moved away after they were found good.
    assert!(machine.negotiate(VERSION_1));
    machine.set_rings(0, SIZE, good);
    assert!(!machine.faulted());
    machine.set_long(DEVICE_AREA, END);
    machine.set(STATUS, DRIVER_OK);
    assert!(machine.faulted());
    machine.assert_recovers();
}

#[test]
fn steps_out_of_order_need_a_reset() {
    let io = io_thread();
    let machine = Machine::block(&io);
    machine.set(STATUS, DRIVER);
    machine.set_rings(0, SIZE, [0x1000, 0x2000, 0x3000]);
    assert!(machine.faulted(), "ready before FEATURES_OK");
    machine.set(STATUS, 0);
    machine.set(STATUS, DRIVER | 4);
    assert_eq!(machine.get(STATUS), DRIVER | NEEDS_RESET);
    machine.set(STATUS, 0);
    machine.set(STATUS, DRIVER | NEEDS_RESET);
    assert!(!machine.faulted(), "only the device sets the bit");
    machine.assert_recovers();
}

#[test]
fn a_faulted_device_leaves_its_neighbour_alone() {
    let io = io_thread();
    let (bad, good) = (Machine::block(&io), Machine::block(&io));
    let mut neighbour = good.start();
    let mut driver = bad.start();
    let buffer = Descriptor::readable(0x8000, 16);
    driver.set_descriptor(0, buffer.with(NEXT, 1));
    driver.set_descriptor(1, buffer.with(NEXT, 0));
    driver.publish(0);
    bad.kick(0);
    wait_for("fault", || bad.faulted());
    assert_eq!(bad.get(INTERRUPT_STATUS) & 2, 2);
    for sector in 0..SECTORS {
        bad.kick(0);
        good.read_sector(&mut neighbour, sector);
    }
    bad.assert_recovers();
}

/// Whose driver makes a buffer available each time one is taken.
#[derive(Debug)]
struct Restless(GuestMemory);

struct RestlessWorker(Driver);

impl VirtioDevice for Restless {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Block
    }
    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }
    fn features(&self) -> Features {
        Features::VERSION_1
    }
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    fn activate(&mut self, _acked: Features) -> Result<Vec<Lane>, ActivateError> {
        let mut driver = Driver::new(&self.0, BASE, SIZE);
        driver.set_descriptor(0, Descriptor::writable(0x8000, 1));
        driver.publish(0);
        Ok(Lane::whole(RestlessWorker(driver)))
    }
}

impl QueueWorker for RestlessWorker {
    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while let Some(chain) = io.pop(queue)? {
            io.complete(queue, chain.head, 0)?;
        }
        self.0.publish(0);
        Ok(())
    }
}

#[test]
fn a_driver_that_never_stops_does_not_starve_the_thread() {
    let io = io_thread();
    let memory = memory();
    let busy = Machine::new(
        &[io.handle()],
        memory.clone(),
        Box::new(Restless(memory)),
        None,
    );
    let quiet = Machine::block(&io);
    busy.start();
    let mut neighbour = quiet.start();
    busy.kick(0);
    wait_for("interrupt", || busy.line.read().is_ok());
    quiet.read_sector(&mut neighbour, 5);
    busy.set(STATUS, 0);
    assert_eq!(busy.get(STATUS), 0);
}

/// A device of two queues, each a lane of its own, whose workers say which thread they run on.
#[derive(Debug)]
struct TwoLanes(Sender<(QueueIndex, Option<String>)>);

struct LaneWorker(Sender<(QueueIndex, Option<String>)>, EventFd);

impl VirtioDevice for TwoLanes {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Net
    }
    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }
    fn features(&self) -> Features {
        Features::VERSION_1
    }
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    fn activate(&mut self, _acked: Features) -> Result<Vec<Lane>, ActivateError> {
        let lane = |queue| {
            let event = EventFd::new(EFD_NONBLOCK).unwrap();
            event.write(1).unwrap();
            Lane {
                queues: QueueSet::of([QueueIndex(queue)]),
                worker: Box::new(LaneWorker(self.0.clone(), event)),
            }
        };
        Ok(vec![lane(0), lane(1)])
    }
}

impl QueueWorker for LaneWorker {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.1.as_raw_fd(),
            token: 7,
            wake: Wake::Change,
        }]
    }
    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        let other = QueueIndex(1 - queue.0);
        assert!(io.pop(other).is_err(), "the other lane's queue");
        let thread = std::thread::current().name().map(str::to_owned);
        self.0.send((queue, thread)).unwrap();
        Ok(())
    }
    fn on_source(&mut self, token: u32, _io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        // Not read: a source of changes wakes once all the same.
        self.0
            .send((QueueIndex(10), Some(token.to_string())))
            .unwrap();
        Ok(())
    }
}

#[test]
fn each_lane_has_its_queues_on_a_thread_of_its_own() {
    let spawn = |name| IoThread::spawn(name, |error| panic!("{error}")).unwrap();
    let threads = [spawn("one"), spawn("two")];
    let (sender, seen) = channel();
    let memory = memory();
    let handles = threads.each_ref().map(IoThread::handle);
    let machine = Machine::new(&handles, memory, Box::new(TwoLanes(sender)), None);
    assert!(machine.negotiate(VERSION_1));
    for queue in 0..2 {
        let driver = Driver::new(&machine.memory, BASE + 0x1000 * u64::from(queue), SIZE);
        machine.set_queue(queue, &driver);
    }
    machine.set(STATUS, DRIVER_OK);
    for _ in 0..2 {
        let (_, token) = seen.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(token.as_deref(), Some("7"));
    }
    for (queue, thread) in [(0, "one"), (1, "two"), (0, "one")] {
        machine.set(QUEUE_NOTIFY, queue);
        let (seen_queue, name) = seen.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(u32::from(seen_queue.0), queue);
        assert_eq!(name.as_deref(), Some(thread));
    }
    machine.set(STATUS, 0);
    assert!(seen.try_recv().is_err(), "both lanes are gone");
}

#[test]
fn any_width_at_any_offset_is_harmless() {
    let io = io_thread();
    let machine = Machine::block(&io);
    let _driver = machine.start();
    for width in [1, 2, 3, 4, 8] {
        for offset in 0..LEN {
            let mut data = vec![0xff; width];
            machine.device.read(offset, &mut data);
            if offset < CONFIG && (width != 4 || offset % 4 != 0) {
                assert!(data.iter().all(|byte| *byte == 0xff), "{offset:#x}+{width}");
            }
            if width != 4 {
                machine.device.write(offset, &data);
            }
        }
    }
    assert_eq!(machine.get(STATUS), DRIVER_OK, "only words are registers");
    let mut long = [0; 8];
    machine.device.read(CONFIG, &mut long);
    assert_eq!(u64::from_le_bytes(long), SECTORS);
    machine.device.read(LEN - 8, &mut long);
    assert_eq!(long, [0; 8]);
    machine.assert_recovers();
}

#[test]
fn random_writes_are_harmless() {
    let io = io_thread();
    let machine = Machine::block(&io);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let statuses = [0, 1, DRIVER, FEATURES_OK, DRIVER_OK, u32::MAX];
    for _ in 0..20_000 {
        let offset = 4 * random(0x50);
        let value = u32::try_from(random(1 << 32)).unwrap();
        let value = match random(4) {
            0 => value,
            1 => value & 0x000f_fff0,
            2 => value & 3,
            _ => statuses[usize::try_from(random(6)).unwrap()],
        };
        machine.set(offset, value);
        machine.get(offset);
    }
    machine.assert_recovers();
}
