//! Virtio over MMIO, Virtio 1.2 §4.2, without the legacy interface.
//!
//! The registers run on the vCPU threads, behind one mutex per device; doorbells do not come here, KVM
//! turns them into events on the device's I/O thread. The transport owns the device's face for good and
//! hands its data path to the I/O thread between DRIVER_OK and reset.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::io::{IoHandle, MAX_QUEUES, QueueSet, Session, SessionParts, TaskId};
use crate::irq::IrqLine;
use crate::mem::GuestMemory;
use crate::virtio::{Features, MAX_QUEUE_SIZE, QueueIndex, Status, VirtioDevice, VirtioInterrupt};

/// Bytes of address space a device takes: the registers and the configuration space.
pub const LEN: u64 = 0x1000;

/// "virt", §4.2.2, MagicValue.
const MAGIC: u32 = 0x7472_6976;
/// §4.2.2, Version: the non-legacy interface.
const VERSION: u32 = 2;
/// "mvm\0": names the implementation, for drivers that care (§4.2.2, VendorID).
const VENDOR: u32 = 0x006d_766d;

/// Register offsets, §4.2.2 table 4.1.
mod reg {
    pub const MAGIC_VALUE: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const VENDOR_ID: u64 = 0x0c;
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
    pub const QUEUE_DESC_LOW: u64 = 0x80;
    pub const QUEUE_DESC_HIGH: u64 = 0x84;
    pub const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x94;
    pub const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0xa4;
    pub const CONFIG_GENERATION: u64 = 0xfc;
    pub const CONFIG: u64 = 0x100;
}

/// Offset of the doorbell register within the device, §4.2.2, QueueNotify. The driver writes the queue's
/// number, as 32 bits.
pub const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;

/// §4.2.2, InterruptStatus.
const USED_BUFFER: u32 = 1;
/// §4.2.2, InterruptStatus.
const CONFIG_CHANGE: u32 = 2;

/// The part of a device that its I/O thread may change: status and interrupt. Shared by the transport
/// and the session.
#[derive(Debug)]
struct Signals {
    status: AtomicU8,
    interrupts: AtomicU32,
    generation: AtomicU32,
    line: Arc<dyn IrqLine>,
}

impl Signals {
    fn raise(&self, cause: u32) -> io::Result<()> {
        self.interrupts.fetch_or(cause, Ordering::AcqRel);
        self.line.trigger()
    }

    fn status(&self) -> Status {
        Status::from_bits_retain(self.status.load(Ordering::Acquire))
    }
}

impl VirtioInterrupt for Signals {
    fn queue(&self, _queue: QueueIndex) -> io::Result<()> {
        self.raise(USED_BUFFER)
    }

    fn config(&self) -> io::Result<()> {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIG_CHANGE)
    }

    fn needs_reset(&self) {
        self.status
            .fetch_or(Status::NEEDS_RESET.bits(), Ordering::AcqRel);
        if let Err(error) = self.raise(CONFIG_CHANGE) {
            log::warn!("virtio device: interrupt lost: {error}");
        }
    }
}

/// A queue as the driver describes it, believed only at DRIVER_OK.
#[derive(Debug, Clone, Copy, Default)]
struct QueueSetup {
    size: u32,
    ready: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

/// A virtio-mmio device as it stands on the bus.
pub struct MmioTransport {
    // The owners are the vCPU threads, any of which may access the registers.
    registers: Mutex<Registers>,
    kicks: Arc<[EventFd]>,
}

struct Registers {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    /// The threads that the lanes are spread over.
    io: Arc<[IoHandle]>,
    kicks: Arc<[EventFd]>,
    signals: Arc<Signals>,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
    /// The lanes of the data path and their threads, while the driver runs the device.
    sessions: Vec<(IoHandle, TaskId)>,
}

impl MmioTransport {
    /// Puts `device` behind registers. The lanes of its data path will run on the threads of `io` in
    /// turn; `line` interrupts the driver.
    ///
    /// # Errors
    /// No descriptors are left for the doorbells, or the device offers more queues or larger ones than
    /// mvm allows.
    pub fn new(
        mut device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        io: Arc<[IoHandle]>,
        line: Arc<dyn IrqLine>,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let fits = |size: &u16| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE;
        if sizes.len() > usize::from(MAX_QUEUES) || !sizes.iter().all(fits) {
            return Err(io::Error::other("the device offers impossible queues"));
        }
        let queues = vec![QueueSetup::default(); sizes.len()];
        let kicks: Arc<[EventFd]> = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<Result<_, _>>()?;
        let signals = Arc::new(Signals {
            status: AtomicU8::new(0),
            interrupts: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            line,
        });
        device.connect(signals.clone());
        let mut registers = Registers {
            device,
            memory,
            io,
            kicks: kicks.clone(),
            signals,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues,
            sessions: Vec::new(),
        };
        registers.reset_queues();
        Ok(Self {
            registers: Mutex::new(registers),
            kicks,
        })
    }

    /// One event per queue, to be written when the driver writes that queue's number to
    /// [`QUEUE_NOTIFY`].
    #[must_use]
    pub fn doorbells(&self) -> &[EventFd] {
        &self.kicks
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        // Registers stay usable after a panic elsewhere: each is valid by itself.
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers();
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            data.fill(0);
            registers.device.read_config(offset, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            // §4.2.2.2: registers are accessed as aligned words only; anything else reads as ones.
            *word = registers.read(offset).unwrap_or(u32::MAX).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.registers();
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            registers.device.write_config(offset, data);
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            registers.write(offset, u32::from_le_bytes(word));
        }
    }
}

/// One half of a 64-bit value, by the value of a selector register.
fn half(value: u64, selector: u32) -> u32 {
    let shift = match selector {
        0 => 0,
        1 => 32,
        _ => return 0,
    };
    u32::try_from(value >> shift & u64::from(u32::MAX)).unwrap_or(0)
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !u64::from(u32::MAX) | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & u64::from(u32::MAX) | u64::from(high) << 32;
}

impl Registers {
    fn read(&self, offset: u64) -> Option<u32> {
        let selected = self.queues.get(usize::try_from(self.queue_sel).ok()?);
        Some(match offset {
            reg::MAGIC_VALUE => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => self.device.kind() as u32,
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => half(self.device.features().bits(), self.device_features_sel),
            reg::QUEUE_SIZE_MAX => self.selected_max().into(),
            reg::QUEUE_READY => selected.is_some_and(|queue| queue.ready).into(),
            reg::INTERRUPT_STATUS => self.signals.interrupts.load(Ordering::Acquire),
            reg::STATUS => self.signals.status().bits().into(),
            reg::CONFIG_GENERATION => self.signals.generation.load(Ordering::Acquire),
            // Everything else is write-only, or a shared memory region that does not exist, which
            // reads as ones (§4.2.2.1).
            _ => return None,
        })
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES => self.accept_features(value),
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_NOTIFY => self.kick(value),
            reg::INTERRUPT_ACK => {
                self.signals.interrupts.fetch_and(!value, Ordering::AcqRel);
            }
            reg::STATUS => self.set_status(value),
            _ => self.set_up_queue(offset, value),
        }
    }

    fn selected_max(&self) -> u16 {
        let selected = usize::try_from(self.queue_sel).unwrap_or(usize::MAX);
        self.device
            .queue_sizes()
            .get(selected)
            .copied()
            .unwrap_or(0)
    }

    /// The driver's features stand once it has set FEATURES_OK (§3.1.1, step 5).
    fn accept_features(&mut self, value: u32) {
        if self.signals.status().contains(Status::FEATURES_OK) {
            return;
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            _ => {}
        }
    }

    /// A doorbell that KVM did not catch, such as one for a queue that does not exist.
    fn kick(&self, queue: u32) {
        if let Some(kick) = usize::try_from(queue)
            .ok()
            .and_then(|queue| self.kicks.get(queue))
        {
            // A saturated counter is a kick already pending.
            let _ = kick.write(1);
        }
    }

    /// Queues are set up between FEATURES_OK and DRIVER_OK (§3.1.1, step 7); a write at another time
    /// changes nothing, since the data path would not follow it.
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let status = self.signals.status();
        let max = self.selected_max();
        let selected = usize::try_from(self.queue_sel).unwrap_or(usize::MAX);
        let Some(queue) = self.queues.get_mut(selected) else {
            return;
        };
        if status.contains(Status::DRIVER_OK) {
            return;
        }
        match offset {
            reg::QUEUE_SIZE => {
                queue.size = value;
                if !value.is_power_of_two() || value > u32::from(max) {
                    self.fault("a queue size that is no power of two or larger than offered");
                }
            }
            reg::QUEUE_READY => {
                queue.ready = value & 1 != 0;
                let queue = *queue;
                if queue.ready && !status.contains(Status::FEATURES_OK) {
                    self.fault("a queue made ready before the features were agreed on");
                } else if queue.ready && self.ring(selected, queue).is_none() {
                    self.fault("a queue made ready whose rings are not in guest memory");
                }
            }
            reg::QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            reg::QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            reg::QUEUE_DRIVER_LOW => set_low(&mut queue.driver, value),
            reg::QUEUE_DRIVER_HIGH => set_high(&mut queue.driver, value),
            reg::QUEUE_DEVICE_LOW => set_low(&mut queue.device, value),
            reg::QUEUE_DEVICE_HIGH => set_high(&mut queue.device, value),
            _ => {}
        }
    }

    /// The queue as the driver describes it, if that is possible at all.
    fn ring(&self, index: usize, setup: QueueSetup) -> Option<Queue> {
        let mut queue = Queue::new(*self.device.queue_sizes().get(index)?).ok()?;
        if !setup.ready {
            return Some(queue);
        }
        queue.try_set_size(u16::try_from(setup.size).ok()?).ok()?;
        let [descriptors, driver, device] =
            [setup.descriptors, setup.driver, setup.device].map(GuestAddress);
        queue.try_set_desc_table_address(descriptors).ok()?;
        queue.try_set_avail_ring_address(driver).ok()?;
        queue.try_set_used_ring_address(device).ok()?;
        // §2.7: the three parts of a split queue and their sizes.
        let size = usize::from(queue.size());
        let parts = [
            (descriptors, 16 * size),
            (driver, 6 + 2 * size),
            (device, 6 + 8 * size),
        ];
        let inside = |(start, len)| GuestMemoryBackend::check_range(&self.memory, start, len);
        // virtio-queue takes an avail ring at address zero for one that was never set.
        if driver.0 == 0 || !parts.into_iter().all(inside) {
            return None;
        }
        queue.set_event_idx(self.acked().contains(Features::EVENT_IDX));
        queue.set_ready(true);
        Some(queue)
    }

    fn acked(&self) -> Features {
        Features::from_bits_retain(self.driver_features)
    }

    /// §2.1 and §3.1: the driver sets bits one after the other; zero resets the device.
    fn set_status(&mut self, value: u32) {
        let Some(wanted) = u8::try_from(value).ok().map(Status::from_bits_retain) else {
            return;
        };
        if wanted.is_empty() {
            return self.reset();
        }
        let old = self.signals.status();
        // Only the device sets NEEDS_RESET, and only a reset clears a bit.
        let mut added = wanted - old - Status::NEEDS_RESET;
        if added.contains(Status::FEATURES_OK) && !self.features_agree() {
            // §2.2.2: the driver reads the status back and sees that the bit is not there.
            added -= Status::FEATURES_OK;
        }
        let ready = (old | added).contains(Status::FEATURES_OK);
        if added.contains(Status::DRIVER_OK) && !ready {
            added -= Status::DRIVER_OK;
            self.fault("DRIVER_OK before the features were agreed on");
        }
        self.signals.status.fetch_or(added.bits(), Ordering::AcqRel);
        if added.contains(Status::DRIVER_OK) && !old.contains(Status::NEEDS_RESET) {
            self.activate();
        }
    }

    fn features_agree(&self) -> bool {
        let acked = self.acked();
        self.device.features().contains(acked) && acked.contains(Features::VERSION_1)
    }

    fn activate(&mut self) {
        if self.rings(QueueSet::ALL).is_none() {
            return self.fault("DRIVER_OK with impossible queues");
        }
        let features = self.acked();
        let lanes = match self.device.activate(features) {
            Ok(lanes) => lanes,
            Err(error) => return self.fault(&error.to_string()),
        };
        let threads = self.io.clone();
        for (lane, thread) in lanes.into_iter().zip(threads.iter().cycle()) {
            let parts = SessionParts {
                queues: self.rings(lane.queues).unwrap_or_default(),
                kicks: self.kicks.clone(),
                memory: self.memory.clone(),
                features,
                interrupt: self.signals.clone(),
            };
            match thread.add(Box::new(Session::new(lane.worker, parts))) {
                Ok(task) => self.sessions.push((thread.clone(), task)),
                Err(error) => return self.fault(&error.to_string()),
            }
        }
    }

    /// All queues, of which those in `own` are as the driver set them up and the others not ready; none
    /// if what the driver set up is impossible.
    fn rings(&self, own: QueueSet) -> Option<Vec<Queue>> {
        (0..)
            .zip(&self.queues)
            .map(|(index, setup)| {
                let ready = setup.ready && own.contains(QueueIndex(index));
                self.ring(usize::from(index), QueueSetup { ready, ..*setup })
            })
            .collect()
    }

    fn reset(&mut self) {
        self.stop();
        self.signals.status.store(0, Ordering::Release);
        self.signals.interrupts.store(0, Ordering::Release);
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.reset_queues();
    }

    /// §4.2.2: QueueSize starts out as the largest size, everything else as zero.
    fn reset_queues(&mut self) {
        for (queue, size) in self.queues.iter_mut().zip(self.device.queue_sizes()) {
            *queue = QueueSetup {
                size: u32::from(*size),
                ..QueueSetup::default()
            };
        }
    }

    /// Takes the data path back from its thread and ends it.
    fn stop(&mut self) {
        for (thread, task) in self.sessions.drain(..) {
            if let Err(error) = thread.remove(task) {
                log::debug!("virtio device: {error}");
            }
        }
    }

    fn fault(&self, reason: &str) {
        log::warn!(
            "virtio {:?} device needs reset: {reason}",
            self.device.kind()
        );
        self.signals.needs_reset();
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("queues", &self.kicks.len())
            .finish_non_exhaustive()
    }
}
