//! How often a vCPU left the guest, by reason.
//!
//! Written by the vCPU's own thread alone, so that counting is a load and a store without a locked
//! instruction; read by anybody, at any time.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Why a vCPU left the guest. What KVM deals with by itself is not among it, such as a doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitKind {
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
    /// A signal: somebody wanted to look at the vCPU, or to end it.
    Interrupted,
}

const KINDS: usize = ExitKind::Interrupted as usize + 1;

/// One vCPU's counts. A cache line of their own keeps the threads out of each other's way.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct ExitCounter([AtomicU64; KINDS]);

impl ExitCounter {
    /// Counts one. Only the vCPU's own thread may.
    #[inline]
    pub fn count(&self, kind: ExitKind) {
        let counter = &self.0[kind as usize];
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn get(&self, kind: ExitKind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }
}

/// How often the vCPUs left the guest so that mvm had to act, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ExitCounts {
    /// Reads of I/O ports.
    pub port_reads: u64,
    /// Writes of I/O ports.
    pub port_writes: u64,
    /// Reads of device registers in memory.
    pub mmio_reads: u64,
    /// Writes of device registers in memory.
    pub mmio_writes: u64,
    /// Interruptions by mvm itself.
    pub interrupted: u64,
}

impl ExitCounts {
    /// The sum over all vCPUs.
    pub(crate) fn sum<'a>(vcpus: impl Iterator<Item = &'a ExitCounter>) -> Self {
        vcpus.fold(Self::default(), |sum, vcpu| Self {
            port_reads: sum.port_reads + vcpu.get(ExitKind::PortRead),
            port_writes: sum.port_writes + vcpu.get(ExitKind::PortWrite),
            mmio_reads: sum.mmio_reads + vcpu.get(ExitKind::MmioRead),
            mmio_writes: sum.mmio_writes + vcpu.get(ExitKind::MmioWrite),
            interrupted: sum.interrupted + vcpu.get(ExitKind::Interrupted),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_count() {
        use ExitKind::{Interrupted, MmioRead, MmioWrite, PortRead, PortWrite};
        let vcpus = [ExitCounter::default(), ExitCounter::default()];
        for (times, kind) in [PortRead, PortWrite, MmioRead, MmioWrite, Interrupted]
            .into_iter()
            .enumerate()
        {
            (0..=times).for_each(|_| vcpus[times % 2].count(kind));
            vcpus[1].count(kind);
        }
        let expected = ExitCounts {
            port_reads: 2,
            port_writes: 3,
            mmio_reads: 4,
            mmio_writes: 5,
            interrupted: 6,
        };
        assert_eq!(ExitCounts::sum(vcpus.iter()), expected);
    }
}
