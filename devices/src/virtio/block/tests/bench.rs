//! A disk's lane without a device in front of it: operations on it as function calls.

use std::io;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use crate::virtio::block::Engine;
use crate::virtio::block::disk::{Disk, DiskLane, DiskOp, Progress, Tag};

/// The engines that this host has.
pub(in crate::virtio::block) fn engines() -> Vec<Engine> {
    match Engine::IoUring.check() {
        Ok(()) => vec![Engine::Sync, Engine::IoUring],
        Err(error) => {
            eprintln!("skipped: io_uring, which this host does not have: {error}");
            vec![Engine::Sync]
        }
    }
}

/// Operations that a lane can have under way.
pub(in crate::virtio::block) const DEPTH: u16 = 8;

/// A lane that somebody waits for.
#[derive(Debug)]
pub(in crate::virtio::block) struct Bench {
    pub(in crate::virtio::block) lane: Box<dyn DiskLane>,
}

impl Bench {
    pub(in crate::virtio::block) fn new(disk: &Arc<dyn Disk>) -> Self {
        Self {
            lane: disk.lane(DEPTH).unwrap(),
        }
    }

    pub(in crate::virtio::block) fn run(&mut self, op: DiskOp<'_>) -> io::Result<()> {
        match self.lane.submit(Tag(0), op) {
            Progress::Done(result) => result,
            Progress::Pending => {
                self.lane.start();
                let mut done = self.lane.completed(true);
                assert_eq!(done.len(), 1);
                let (tag, result) = done.remove(0);
                assert_eq!(tag, Tag(0));
                result
            }
        }
    }

    /// Starts what was submitted, and waits until so many operations have ended, all of them well.
    pub(in crate::virtio::block) fn finish(&mut self, mut pending: usize) {
        self.lane.start();
        while pending > 0 {
            for (_, result) in self.lane.completed(true) {
                result.unwrap();
                pending -= 1;
            }
        }
    }

    /// Reads into buffers of these lengths.
    pub(in crate::virtio::block) fn read(
        &mut self,
        offset: u64,
        lens: &[usize],
    ) -> io::Result<Vec<u8>> {
        let mut memory: Vec<Vec<u8>> = lens.iter().map(|len| vec![0xee; *len]).collect();
        let buffers: Vec<_> = memory
            .iter_mut()
            .map(|bytes| VolatileSlice::from(&mut bytes[..]))
            .collect();
        self.run(DiskOp::Read {
            offset,
            buffers: &buffers,
        })?;
        Ok(memory.concat())
    }

    pub(in crate::virtio::block) fn write(
        &mut self,
        offset: u64,
        parts: &[&[u8]],
    ) -> io::Result<()> {
        self.write_as(offset, parts, false)
    }

    pub(in crate::virtio::block) fn write_as(
        &mut self,
        offset: u64,
        parts: &[&[u8]],
        through: bool,
    ) -> io::Result<()> {
        let mut memory: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let buffers: Vec<_> = memory
            .iter_mut()
            .map(|bytes| VolatileSlice::from(&mut bytes[..]))
            .collect();
        self.run(DiskOp::Write {
            offset,
            buffers: &buffers,
            through,
        })
    }

    pub(in crate::virtio::block) fn zero(
        &mut self,
        offset: u64,
        len: u64,
        unmap: bool,
    ) -> io::Result<()> {
        self.run(DiskOp::WriteZeroes {
            offset,
            len,
            unmap,
            through: false,
        })
    }

    pub(in crate::virtio::block) fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.run(DiskOp::Discard { offset, len })
    }

    pub(in crate::virtio::block) fn flush(&mut self) -> io::Result<()> {
        self.run(DiskOp::Flush)
    }
}
