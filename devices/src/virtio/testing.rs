//! The driver's side of a virtqueue, for tests: rings and buffers in fake guest memory.
//!
//! A [`Driver`] makes well-formed chains with [`Driver::submit`] and [`Driver::submit_indirect`], and
//! whatever a hostile one would make with [`Driver::set_descriptor`], [`Driver::publish`] and
//! [`Driver::set_avail_idx`]. A [`Machine`] is the driver's other half, the registers.

mod machine;
mod ram;
mod tape;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes};

use crate::mem::{GuestAddress, GuestMemory};
use crate::virtio::{Features, QueueWorker, VirtioDevice};

pub use machine::{Machine, reg, status};
pub use ram::Ram;
pub use tape::{Step, Tape};

/// The chain goes on at `next`. Virtio 1.2 §2.7.5.
pub const NEXT: u16 = 1;
/// The buffer is device-writable.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Where the second region of [`memory`] begins, right behind the first: buffers may straddle it.
pub const SEAM: u64 = 0x20_0000;
/// The first address behind [`memory`].
pub const END: u64 = 0x40_0000;

/// Guest memory from 0 to [`END`], in two regions that meet at [`SEAM`].
pub fn memory() -> GuestMemory {
    let half = usize::try_from(SEAM).unwrap();
    GuestMemory::from_ranges(&[(GuestAddress(0), half), (GuestAddress(SEAM), half)]).unwrap()
}

/// The worker of a device whose data path is one lane.
pub fn worker(device: &mut dyn VirtioDevice, acked: Features) -> Box<dyn QueueWorker> {
    let mut lanes = device.activate(acked).unwrap();
    assert_eq!(lanes.len(), 1);
    lanes.remove(0).worker
}

/// One descriptor as it stands in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Where the buffer is.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

impl Descriptor {
    /// A buffer the device reads.
    pub fn readable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            flags: 0,
            next: 0,
        }
    }

    /// A buffer the device writes.
    pub fn writable(address: u64, len: u32) -> Self {
        Self {
            flags: WRITE,
            ..Self::readable(address, len)
        }
    }

    /// An indirect table.
    pub fn indirect(address: u64, len: u32) -> Self {
        Self {
            flags: INDIRECT,
            ..Self::readable(address, len)
        }
    }

    /// The same, with more flags and a link.
    pub fn with(self, flags: u16, next: u16) -> Self {
        Self {
            flags: self.flags | flags,
            next,
            ..self
        }
    }
}

/// One queue's driver. The rings lie from `base`, which is a multiple of 16; buffers behind them.
#[derive(Debug)]
pub struct Driver {
    memory: GuestMemory,
    /// Watches the memory, where somebody wants to know.
    ram: Option<Ram>,
    size: u16,
    base: u64,
    next_descriptor: u16,
    next_buffer: u64,
    avail_idx: u16,
    used_seen: u16,
}

impl Driver {
    /// Rings for a queue of `size` entries, empty, at `base`.
    pub fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        Self::made(memory.clone(), None, base, size)
    }

    /// The same in memory that is watched: what the driver gives the device is noted there.
    pub fn watched(ram: &Ram, base: u64, size: u16) -> Self {
        let driver = Self::made(ram.memory().clone(), Some(ram.clone()), base, size);
        ram.give(driver.used_ring(), 6 + 8 * u64::from(size));
        driver
    }

    fn made(memory: GuestMemory, ram: Option<Ram>, base: u64, size: u16) -> Self {
        let mut driver = Self {
            memory,
            ram,
            size,
            base,
            next_descriptor: 0,
            next_buffer: 0,
            avail_idx: 0,
            used_seen: 0,
        };
        driver.recycle();
        for (ring, len) in [
            (base, 16 * u64::from(size)),
            (driver.avail_ring(), 6 + 2 * u64::from(size)),
            (driver.used_ring(), 6 + 8 * u64::from(size)),
        ] {
            driver.write(ring, &vec![0; usize::try_from(len).unwrap()]);
        }
        driver
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Address of the descriptor table.
    pub fn descriptor_table(&self) -> u64 {
        self.base
    }

    /// Address of the avail ring.
    pub fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    /// Address of the used ring.
    pub fn used_ring(&self) -> u64 {
        (self.avail_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// Where the queue's three parts are: descriptor table, avail ring, used ring.
    pub fn rings(&self) -> [u64; 3] {
        [self.descriptor_table(), self.avail_ring(), self.used_ring()]
    }

    /// The device's side of this queue, set up and ready.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_size(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptor_table()))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail_ring()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.used_ring()))
            .unwrap();
        queue.set_ready(true);
        queue
    }

    /// Forgets all descriptors and buffers, so that their space is used again.
    pub fn recycle(&mut self) {
        self.next_descriptor = 0;
        self.next_buffer = (self.used_ring() + 6 + 8 * u64::from(self.size)).next_multiple_of(4096);
    }

    /// Lets devices write to this memory, for a driver that gives it away in other ways than in a
    /// device-writable buffer.
    pub fn give(&self, start: u64, len: u64) {
        if let Some(ram) = &self.ram {
            ram.give(start, len);
        }
    }

    /// Address of a fresh buffer of `len` bytes.
    pub fn alloc(&mut self, len: u32) -> u64 {
        let address = self.next_buffer;
        self.next_buffer = (address + u64::from(len)).next_multiple_of(16);
        assert!(self.next_buffer <= END, "the test's guest memory is full");
        address
    }

    /// Address of a fresh buffer with `bytes` in it.
    pub fn alloc_with(&mut self, bytes: &[u8]) -> u64 {
        let address = self.alloc(u32::try_from(bytes.len()).unwrap());
        self.write(address, bytes);
        address
    }

    /// A device-readable descriptor of a fresh buffer with `bytes` in it.
    pub fn readable(&mut self, bytes: &[u8]) -> Descriptor {
        let address = self.alloc_with(bytes);
        Descriptor::readable(address, u32::try_from(bytes.len()).unwrap())
    }

    /// A device-writable descriptor of a fresh buffer of `len` bytes, each 0xee.
    pub fn writable(&mut self, len: u32) -> Descriptor {
        let address = self.alloc_with(&vec![0xee; usize::try_from(len).unwrap()]);
        Descriptor::writable(address, len)
    }

    /// Writes guest memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        match &self.ram {
            Some(ram) => ram.write(address, bytes),
            None => {
                let address = GuestAddress(address);
                self.memory.write_slice(bytes, address).unwrap();
            }
        }
    }

    /// Reads guest memory.
    pub fn read(&self, address: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        let address = GuestAddress(address);
        self.memory.read_slice(&mut bytes, address).unwrap();
        bytes
    }

    /// Puts a descriptor into the queue's table as it is.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.set_descriptor_at(self.base, index, descriptor);
    }

    /// Puts a descriptor into the table at `table` as it is.
    pub fn set_descriptor_at(&self, table: u64, index: u16, descriptor: Descriptor) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        if let Some(ram) = &self.ram
            && descriptor.flags & WRITE != 0
        {
            ram.give(descriptor.address, descriptor.len.into());
        }
        self.write(table + 16 * u64::from(index), &bytes);
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub fn publish(&mut self, head: u16) {
        let entry = self.avail_ring() + 4 + 2 * u64::from(self.avail_idx % self.size);
        self.write(entry, &head.to_le_bytes());
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Sets the avail index to whatever.
    pub fn set_avail_idx(&mut self, index: u16) {
        self.avail_idx = index;
        self.write(self.avail_ring() + 2, &index.to_le_bytes());
    }

    /// Makes a chain of `buffers` in the queue's own table available; returns its head.
    pub fn submit(&mut self, buffers: &[Descriptor]) -> u16 {
        let head = self.next_descriptor;
        let count = u16::try_from(buffers.len()).unwrap();
        assert!(count > 0 && head + count <= self.size, "the table is full");
        self.chain(self.base, head, buffers);
        self.next_descriptor += count;
        self.publish(head);
        head
    }

    /// Makes a chain of `buffers` in an indirect table available; returns its head.
    pub fn submit_indirect(&mut self, buffers: &[Descriptor]) -> u16 {
        let len = 16 * u32::try_from(buffers.len()).unwrap();
        let table = self.alloc(len);
        self.chain(table, 0, buffers);
        self.submit(&[Descriptor::indirect(table, len)])
    }

    /// Links `buffers` in the table at `table`, from entry `first` on.
    pub fn chain(&self, table: u64, first: u16, buffers: &[Descriptor]) {
        let mut rest = buffers;
        let mut index = first;
        while let [descriptor, more @ ..] = rest {
            let linked = match more {
                [] => *descriptor,
                _ => descriptor.with(NEXT, index + 1),
            };
            self.set_descriptor_at(table, index, linked);
            rest = more;
            index += 1;
        }
    }

    /// What the device has given back since the last call: heads and lengths.
    pub fn take_used(&mut self) -> Vec<(u16, u32)> {
        let ring = self.used_ring();
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(ring).unchecked_add(2))
            .unwrap();
        let mut used = Vec::new();
        while self.used_seen != index {
            let entry = ring + 4 + 8 * u64::from(self.used_seen % self.size);
            let element: u64 = self.memory.read_obj(GuestAddress(entry)).unwrap();
            let head = u16::try_from(element & 0xffff_ffff).unwrap();
            used.push((head, u32::try_from(element >> 32).unwrap()));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        used
    }
}
