//! A virtio-mmio device driven through its registers alone, by well-behaved drivers and by hostile ones.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio::{LEN, MmioTransport, QUEUE_NOTIFY};
use crate::bus::BusDevice;
use crate::io::{IoThread, QueueIo, QueueSet};
use crate::mem::GuestMemory;
use crate::virtio::block::{Block, raw::RawDisk};
use crate::virtio::testing::{Descriptor, Driver, END, NEXT, memory};
use crate::virtio::{
    ActivateError, DeviceFault, Features, Lane, QueueIndex, QueueWorker, Source, VirtioDevice,
    VirtioKind, Wake,
};

const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_SIZE_MAX: u64 = 0x34;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const DESCRIPTORS: u64 = 0x80;
const DRIVER_AREA: u64 = 0x90;
const DEVICE_AREA: u64 = 0xa0;
const CONFIG: u64 = 0x100;

const DRIVER: u32 = 1 | 2;
const FEATURES_OK: u32 = DRIVER | 8;
const DRIVER_OK: u32 = FEATURES_OK | 4;
const NEEDS_RESET: u32 = 64;

const VERSION_1: u64 = 1 << 32;
const SECTORS: u64 = 16;
const SIZE: u16 = 16;
const BASE: u64 = 0x1000;

fn io_thread() -> IoThread {
    IoThread::spawn("io", |error| panic!("{error}")).unwrap()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "no {what} within the deadline");
        yield_now();
    }
}

/// A device on the bus and the memory its driver uses.
struct Machine {
    device: MmioTransport,
    line: Arc<EventFd>,
    memory: GuestMemory,
    _image: Option<NamedTempFile>,
}

impl Machine {
    fn new(
        io: &IoThread,
        memory: GuestMemory,
        device: Box<dyn VirtioDevice>,
        image: Option<NamedTempFile>,
    ) -> Self {
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let device =
            MmioTransport::new(device, memory.clone(), [io.handle()].into(), line.clone()).unwrap();
        Self {
            device,
            line,
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
        let disk = RawDisk::open(image.path(), false).unwrap();
        Self::new(
            io,
            memory(),
            Box::new(Block::new(Box::new(disk))),
            Some(image),
        )
    }

    fn get(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.device.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn set(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    fn set_long(&self, offset: u64, value: u64) {
        let [a, b, c, d, high @ ..] = value.to_le_bytes();
        self.device.write(offset, &[a, b, c, d]);
        self.device.write(offset + 4, &high);
    }

    fn faulted(&self) -> bool {
        self.get(STATUS) & NEEDS_RESET != 0
    }

    fn offered(&self) -> u64 {
        let half = |select| {
            self.set(DEVICE_FEATURES_SEL, select);
            u64::from(self.get(DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Up to FEATURES_OK; returns whether the device agreed.
    fn negotiate(&self, features: u64) -> bool {
        self.set(STATUS, 0);
        assert_eq!(self.get(STATUS), 0);
        self.set(STATUS, DRIVER);
        let [a, b, c, d, high @ ..] = features.to_le_bytes();
        for (select, half) in [[a, b, c, d], high].into_iter().enumerate() {
            self.set(DRIVER_FEATURES_SEL, u32::try_from(select).unwrap());
            self.device.write(DRIVER_FEATURES, &half);
        }
        self.set(STATUS, FEATURES_OK);
        self.get(STATUS) == FEATURES_OK
    }

    fn set_rings(&self, [descriptors, driver, device]: [u64; 3]) {
        self.set(QUEUE_SEL, 0);
        self.set(QUEUE_SIZE, u32::from(SIZE));
        self.set_long(DESCRIPTORS, descriptors);
        self.set_long(DRIVER_AREA, driver);
        self.set_long(DEVICE_AREA, device);
        self.set(QUEUE_READY, 1);
    }

    /// The whole initialization of Virtio 1.2 §3.1.1.
    fn start(&self) -> Driver {
        assert!(self.negotiate(VERSION_1));
        let driver = Driver::new(&self.memory, BASE, SIZE);
        let rings = [
            driver.descriptor_table(),
            driver.avail_ring(),
            driver.used_ring(),
        ];
        self.set_rings(rings);
        assert_eq!(self.get(QUEUE_READY), 1);
        self.set(STATUS, DRIVER_OK);
        assert_eq!(self.get(STATUS), DRIVER_OK);
        driver
    }

    /// Rings the doorbell as KVM does.
    fn ring(&self) {
        self.device.doorbells()[0].write(1).unwrap();
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
        self.ring();
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
        machine.ring();
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
        machine.set_rings(rings);
        assert!(machine.faulted(), "part {part} at {address:#x}");
    }
    // Moved away after they were found good.
    assert!(machine.negotiate(VERSION_1));
    machine.set_rings(good);
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
    machine.set_rings([0x1000, 0x2000, 0x3000]);
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
    bad.ring();
    wait_for("fault", || bad.faulted());
    assert_eq!(bad.get(INTERRUPT_STATUS) & 2, 2);
    for sector in 0..SECTORS {
        bad.ring();
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
    let busy = Machine::new(&io, memory.clone(), Box::new(Restless(memory)), None);
    let quiet = Machine::block(&io);
    busy.start();
    let mut neighbour = quiet.start();
    busy.ring();
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
    let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let handles = threads.iter().map(IoThread::handle).collect();
    let device = MmioTransport::new(
        Box::new(TwoLanes(sender)),
        memory.clone(),
        handles,
        line.clone(),
    );
    let machine = Machine {
        device: device.unwrap(),
        line,
        memory,
        _image: None,
    };
    assert!(machine.negotiate(VERSION_1));
    for queue in 0..2 {
        let driver = Driver::new(&machine.memory, BASE + 0x1000 * u64::from(queue), SIZE);
        machine.set(QUEUE_SEL, queue);
        machine.set(QUEUE_SIZE, u32::from(SIZE));
        machine.set_long(DESCRIPTORS, driver.descriptor_table());
        machine.set_long(DRIVER_AREA, driver.avail_ring());
        machine.set_long(DEVICE_AREA, driver.used_ring());
        machine.set(QUEUE_READY, 1);
    }
    machine.set(STATUS, DRIVER_OK);
    for _ in 0..2 {
        let (_, token) = seen.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(token.as_deref(), Some("7"));
    }
    for (queue, thread) in [(0, "one"), (1, "two"), (0, "one")] {
        machine.set(QUEUE_NOTIFY, queue);
        let (seen_queue, name) = seen.recv_timeout(Duration::from_secs(20)).unwrap();
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
