//! A virtio-mmio device and its driver's half of the registers, one step of Virtio 1.2 §3.1.1 at a time.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Driver;
use super::tape::{Step, Tape};
use crate::bus::BusDevice;
use crate::io::IoHandle;
use crate::mem::GuestMemory;
use crate::virtio::VirtioDevice;
use crate::virtio::transport::mmio::MmioTransport;

/// Register offsets, Virtio 1.2 §4.2.2 table 4.1.
#[allow(missing_docs)]
pub mod reg {
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const DESCRIPTORS: u64 = 0x80;
    pub const DRIVER_AREA: u64 = 0x90;
    pub const DEVICE_AREA: u64 = 0xa0;
    pub const CONFIG_GENERATION: u64 = 0xfc;
    pub const CONFIG: u64 = 0x100;
}

/// Values of the status register on the way to a running device, §2.1.
#[allow(missing_docs)]
pub mod status {
    pub const DRIVER: u32 = 1 | 2;
    pub const FEATURES_OK: u32 = DRIVER | 8;
    pub const DRIVER_OK: u32 = FEATURES_OK | 4;
    pub const NEEDS_RESET: u32 = 64;
}

/// A device on its page of the bus.
#[derive(Debug)]
pub struct Machine {
    /// The device.
    pub device: MmioTransport,
    /// Its interrupts.
    pub line: Arc<EventFd>,
    tape: Tape,
}

impl Machine {
    /// Puts `device` behind registers, its data path on the threads of `io`.
    ///
    /// # Errors
    /// No descriptors are left, or the device is impossible.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: &GuestMemory,
        io: Arc<[IoHandle]>,
        tape: Tape,
    ) -> io::Result<Self> {
        let line = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let device = MmioTransport::new(device, memory.clone(), io, line.clone())?;
        Ok(Self { device, line, tape })
    }

    /// Reads as many bytes as fit `data`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), Ok(len)) = (u16::try_from(offset), u8::try_from(data.len())) {
            self.tape.push(|| Step::Read { offset, len });
        }
        data.fill(0xff);
        self.device.read(offset, data);
    }

    /// Writes `data`.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(offset) = u16::try_from(offset) {
            let data = data.to_vec();
            self.tape.push(|| Step::Write { offset, data });
        }
        self.device.write(offset, data);
    }

    /// Reads a register.
    pub fn get(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Writes a register.
    pub fn set(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    /// Writes a register and the one after it.
    pub fn set_long(&self, offset: u64, value: u64) {
        let [a, b, c, d, high @ ..] = value.to_le_bytes();
        self.write(offset, &[a, b, c, d]);
        self.write(offset + 4, &high);
    }

    /// Whether the device says that it needs a reset.
    #[must_use]
    pub fn faulted(&self) -> bool {
        self.get(reg::STATUS) & status::NEEDS_RESET != 0
    }

    /// The features that the device offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.set(reg::DEVICE_FEATURES_SEL, select);
            u64::from(self.get(reg::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// From a reset up to FEATURES_OK; whether the device agreed.
    #[must_use]
    pub fn negotiate(&self, features: u64) -> bool {
        self.set(reg::STATUS, 0);
        assert_eq!(self.get(reg::STATUS), 0, "a reset ends at once");
        self.set(reg::STATUS, status::DRIVER);
        let [a, b, c, d, high @ ..] = features.to_le_bytes();
        for (select, half) in (0..).zip([[a, b, c, d], high]) {
            self.set(reg::DRIVER_FEATURES_SEL, select);
            self.write(reg::DRIVER_FEATURES, &half);
        }
        self.set(reg::STATUS, status::FEATURES_OK);
        self.get(reg::STATUS) == status::FEATURES_OK
    }

    /// Sets a queue up, wherever its three parts are, and makes it ready.
    pub fn set_rings(&self, queue: u16, size: u16, [descriptors, driver, device]: [u64; 3]) {
        self.set(reg::QUEUE_SEL, queue.into());
        self.set(reg::QUEUE_SIZE, size.into());
        self.set_long(reg::DESCRIPTORS, descriptors);
        self.set_long(reg::DRIVER_AREA, driver);
        self.set_long(reg::DEVICE_AREA, device);
        self.set(reg::QUEUE_READY, 1);
    }

    /// Sets a queue up as `driver` laid it out.
    pub fn set_queue(&self, queue: u16, driver: &Driver) {
        self.set_rings(queue, driver.size(), driver.rings());
    }

    /// Rings a doorbell as KVM does; one that KVM does not know, through the register.
    pub fn kick(&self, queue: u16) {
        match self.device.doorbells().get(usize::from(queue)) {
            Some(doorbell) => {
                if let Ok(queue) = u8::try_from(queue) {
                    self.tape.push(|| Step::Kick(queue));
                }
                // A saturated counter is a kick already pending.
                let _ = doorbell.write(1);
            }
            None => self.set(reg::QUEUE_NOTIFY, queue.into()),
        }
    }
}
