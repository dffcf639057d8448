//! The data path of a console. Owned by one I/O thread, which it never makes wait: output that the host
//! has no room for stays in the guest.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::console::{CHUNK, Output};
use crate::io::{Chain, QueueIo};
use crate::iovec::{IoVec, gather, scatter};
use crate::virtio::{DeviceFault, QueueIndex, QueueWorker, Source, Wake};

/// §5.3.2, receiveq of port 0.
const RECEIVE: QueueIndex = QueueIndex(0);
/// §5.3.2, transmitq of port 0.
const TRANSMIT: QueueIndex = QueueIndex(1);

/// There is input.
const INPUT: u32 = 0;
/// There is room for output.
const ROOM: u32 = 1;

/// Bytes of output in one event before the other devices of the thread get their turn.
const BUDGET: usize = 256 << 10;

/// How long a driver may take to look at the size. One that never does gets its input after that.
const DEAF: Duration = Duration::from_secs(2);

/// The worker.
pub(super) struct Worker {
    shared: Arc<Shared>,
    output: Arc<dyn Output>,
    /// Bytes of the first chain of the transmitq that have been taken.
    taken: usize,
    chunk: Box<[u8]>,
    /// When the driver was ready.
    start: Instant,
}

/// How far a chain of output got.
enum Sent {
    /// All of it was taken.
    Whole,
    /// There is no room for the rest.
    NoRoom,
    /// This event has done enough.
    Enough,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, output: Arc<dyn Output>) -> Self {
        Self {
            shared,
            output,
            taken: 0,
            chunk: vec![0; CHUNK].into(),
            start: Instant::now(),
        }
    }

    /// Gives the driver the input that it has buffers for.
    fn receive(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        if !self.shared.listens.load(Ordering::Acquire) && self.start.elapsed() < DEAF {
            return Ok(());
        }
        let mut fifo = self.shared.fifo();
        while !fifo.bytes.is_empty() && io.is_ready(RECEIVE) {
            let Some(chain) = io.pop(RECEIVE)? else {
                return Ok(());
            };
            let buffers: Vec<_> = chain.writable.iter().map(IoVec::new).collect();
            let filled = scatter(&buffers, 0, fifo.bytes.make_contiguous());
            fifo.bytes.drain(..filled);
            self.shared.made_room(&mut fifo);
            // At most CHUNK.
            let filled = u32::try_from(filled).unwrap_or(u32::MAX);
            io.complete(RECEIVE, chain.head, filled)?;
        }
        Ok(())
    }

    /// Takes the driver's output, as far as there is room for it.
    fn transmit(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        let mut budget = BUDGET;
        if !io.is_ready(TRANSMIT) {
            return Ok(());
        }
        while let Some(chain) = io.pop(TRANSMIT)? {
            match self.send(&chain, &mut budget) {
                Sent::Whole => {
                    self.taken = 0;
                    io.complete(TRANSMIT, chain.head, 0)?;
                }
                // The output says when there is room.
                Sent::NoRoom => return io.unpop(TRANSMIT),
                Sent::Enough => {
                    io.come_again(TRANSMIT);
                    return io.unpop(TRANSMIT);
                }
            }
        }
        Ok(())
    }

    /// Offers what has not been taken of a chain yet.
    fn send(&mut self, chain: &Chain<'_>, budget: &mut usize) -> Sent {
        let buffers: Vec<_> = chain.readable.iter().map(IoVec::new).collect();
        loop {
            let count = gather(&buffers, self.taken, &mut self.chunk);
            if count == 0 {
                return Sent::Whole;
            }
            if *budget == 0 {
                return Sent::Enough;
            }
            let taken = self.output.offer(&self.chunk[..count]);
            self.taken += taken;
            *budget = budget.saturating_sub(taken);
            if taken < count {
                return Sent::NoRoom;
            }
        }
    }
}

impl QueueWorker for Worker {
    fn sources(&self) -> Vec<Source> {
        let source = |fd, token| Source {
            fd,
            token,
            wake: Wake::Readable,
        };
        vec![
            source(self.shared.input.as_raw_fd(), INPUT),
            source(self.output.room(), ROOM),
        ]
    }

    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        match queue {
            RECEIVE => self.receive(io),
            TRANSMIT => self.transmit(io),
            _ => Ok(()),
        }
    }

    fn on_source(&mut self, token: u32, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        match token {
            INPUT => {
                // Non-blocking: nothing there means a spurious event.
                let _ = self.shared.input.read();
                self.receive(io)
            }
            ROOM => {
                self.output.seen();
                self.transmit(io)
            }
            _ => Ok(()),
        }
    }

    /// What the guest said before a reset, or before its end, is not lost if there is room for it.
    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        self.transmit(io)
    }
}
