//! Address routing: which device answers a port or a physical address.
//!
//! A bus is filled once while the machine is assembled and then shared, immutable and without a lock,
//! by all vCPU threads (`Arc<Bus>`).

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// A device reachable by port I/O or MMIO.
///
/// Accesses from the guest cannot fail: a bad one is a guest bug. The device ignores it, or reads as
/// all ones. `data` is 1, 2, 4 or 8 bytes long, little-endian; `offset` is relative to the range the
/// device was inserted at and always inside it.
pub trait BusDevice: fmt::Debug + Send + Sync {
    /// The guest reads `data.len()` bytes at `offset`. `data` arrives filled with ones.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device could not be put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or wraps around the end of the address space.
    #[error("bus range {base:#x}+{len:#x} is empty or wraps around")]
    BadRange {
        /// First address of the range.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// Another device answers there already.
    #[error("bus range {base:#x}+{len:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address of the range.
        base: u64,
        /// Its length in bytes.
        len: u64,
        /// First address of the range that was there before.
        other: u64,
    },
}

#[derive(Debug)]
struct Slot {
    base: u64,
    /// Last address, inclusive, so that a range may end at the top of the address space.
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// A set of disjoint address ranges and the devices behind them, sorted by address.
#[derive(Debug, Default)]
pub struct Bus {
    slots: Vec<Slot>,
}

impl Bus {
    /// An empty bus: every read gives ones, every write is dropped.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer `len` bytes from `base`.
    ///
    /// # Errors
    /// The range must be non-empty, must not wrap, and must be free.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|reach| base.checked_add(reach))
            .ok_or(BusError::BadRange { base, len })?;
        let at = self.slots.partition_point(|slot| slot.last < base);
        if let Some(next) = self.slots.get(at)
            && next.base <= last
        {
            return Err(BusError::Overlap {
                base,
                len,
                other: next.base,
            });
        }
        self.slots.insert(at, Slot { base, last, device });
        Ok(())
    }

    /// Routes a guest read. `data` is filled with ones where nothing answers. Returns whether a device
    /// did.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        match self.find(address, data.len()) {
            Some((slot, offset)) => {
                slot.device.read(offset, data);
                true
            }
            None => false,
        }
    }

    /// Routes a guest write. Returns whether a device took it.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((slot, offset)) => {
                slot.device.write(offset, data);
                true
            }
            None => false,
        }
    }

    /// The slot that holds all `len` bytes from `address`; an access across its end finds nothing.
    fn find(&self, address: u64, len: usize) -> Option<(&Slot, u64)> {
        let slot = self
            .slots
            .get(self.slots.partition_point(|slot| slot.last < address))?;
        let offset = address.checked_sub(slot.base)?;
        let reach = u64::try_from(len.checked_sub(1)?).ok()?;
        (address.checked_add(reach)? <= slot.last).then_some((slot, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = u8::try_from(offset).unwrap();
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn routes_to_the_device_that_owns_the_address() {
        let (low, high) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let mut bus = Bus::new();
        bus.insert(0x200, 0x10, high.clone()).unwrap();
        bus.insert(0x100, 0x10, low.clone()).unwrap();
        assert!(bus.write(0x10f, &[7]));
        assert!(bus.write(0x200, &[8, 9]));
        assert_eq!(*low.0.lock().unwrap(), [(0xf, vec![7])]);
        assert_eq!(*high.0.lock().unwrap(), [(0, vec![8, 9])]);
        let mut data = [0; 2];
        assert!(bus.read(0x203, &mut data));
        assert_eq!(
            data,
            [3, 0xff],
            "the device wrote one byte, the rest stays ones"
        );
    }

    #[test]
    fn nobody_home_reads_ones() {
        let mut bus = Bus::new();
        bus.insert(0x100, 4, Arc::new(Recorder::default())).unwrap();
        for (address, len) in [(0xff, 1), (0x104, 1), (0x103, 2), (0xfe, 4), (u64::MAX, 8)] {
            let mut data = vec![0; len];
            assert!(!bus.read(address, &mut data), "{address:#x}+{len}");
            assert!(data.iter().all(|byte| *byte == 0xff));
            assert!(!bus.write(address, &data));
        }
        assert!(!bus.read(0x100, &mut []));
    }

    #[test]
    fn refuses_overlaps_and_impossible_ranges() {
        let device = || Arc::new(Recorder::default());
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, device()).unwrap();
        for (base, len) in [
            (0x100, 0x10),
            (0xff, 2),
            (0x10f, 1),
            (0, 0x1000),
            (0x105, 1),
        ] {
            let error = bus.insert(base, len, device()).unwrap_err();
            assert_eq!(
                error,
                BusError::Overlap {
                    base,
                    len,
                    other: 0x100
                }
            );
        }
        for (base, len) in [(0, 0), (u64::MAX, 2)] {
            assert_eq!(
                bus.insert(base, len, device()),
                Err(BusError::BadRange { base, len })
            );
        }
        bus.insert(0x110, 1, device()).unwrap();
        bus.insert(u64::MAX, 1, device()).unwrap();
    }
}
