//! The data path of a vsock: packets from and to the rings.
//!
//! Owned by one I/O thread, with all connections: there are no locks and no second copy of anything. Data
//! goes straight between the guest's buffers and the sockets; only what a socket does not take is kept.
//!
//! Neither ring is ever left with work for which nobody comes back: a `pop` that finds the receive queue
//! empty has the driver kick for it, and the transmit queue is left unfinished only while refusals wait
//! for buffers of the receive queue.

use std::io;

use super::muxer::Muxer;
use super::packet::HEADER;
use super::{RX, TX};
use crate::io::QueueIo;
use crate::iovec::{self, IoVec, IoVecs};
use crate::virtio::{DeviceFault, QueueIndex, QueueWorker, Source, Wake};

/// The worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) muxer: Muxer,
    /// The transmit queue may hold packets.
    unheard: bool,
}

impl Worker {
    pub(super) fn new(muxer: Muxer) -> Self {
        Self {
            muxer,
            unheard: false,
        }
    }

    /// Moves packets in both directions as far as the rings allow.
    fn pump(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        loop {
            while self.unheard && self.muxer.has_room() {
                let Some(chain) = io.pop(TX)? else {
                    self.unheard = false;
                    break;
                };
                let mut buffers: IoVecs<'_> = chain.readable.iter().map(IoVec::new).collect();
                self.muxer.hear(&mut buffers).map_err(fault)?;
                io.complete(TX, chain.head, 0)?;
            }
            self.fill(io)?;
            if !self.unheard || !self.muxer.has_room() {
                return Ok(());
            }
        }
    }

    /// Gives the guest packets as long as there are some, and buffers for them.
    fn fill(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while self.muxer.has_packets() {
            let Some(chain) = io.pop(RX)? else {
                break;
            };
            let buffers: IoVecs<'_> = chain.writable.iter().map(IoVec::new).collect();
            if iovec::total(&buffers) <= HEADER {
                // No driver gives so little; it gets it back unused.
                io.complete(RX, chain.head, 0)?;
                continue;
            }
            match self.muxer.next_packet(&buffers).map_err(fault)? {
                Some(len) => io.complete(RX, chain.head, len)?,
                None => {
                    io.unpop(RX)?;
                    break;
                }
            }
        }
        Ok(())
    }
}

fn fault(source: io::Error) -> DeviceFault {
    DeviceFault::Host {
        what: "watching the sockets of a vsock",
        source,
    }
}

impl QueueWorker for Worker {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.muxer.fd(),
            token: 0,
            wake: Wake::Readable,
        }]
    }

    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        // Buffers of the event queue stay where they are: the one event there is, a transport reset, is
        // for guests that were moved (Virtio 1.2 §5.10.6.7).
        self.unheard |= queue == TX;
        self.pump(io)
    }

    fn on_source(&mut self, _token: u32, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        self.muxer.poll().map_err(fault)?;
        self.pump(io)
    }
}
