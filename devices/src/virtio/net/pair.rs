//! The data path of one queue pair: frames from the backend into receive buffers, and from transmit
//! buffers to the backend.
//!
//! Owned by one I/O thread, each pair possibly by another. Both directions go on until there is nothing
//! more to do (the backend would block, the queue is empty) or the event has had its share; what stops
//! one is what starts it again:
//!
//! | direction | stops at | starts again with |
//! |---|---|---|
//! | receive | no frame | the backend's descriptor |
//! | receive | no buffers | the driver's kick |
//! | transmit | no frames | the driver's kick |
//! | transmit | no room in the backend | the backend's descriptor |
//! | either | its limit | the throttle's timer |
//! | either | its share of the event | the session, by itself |

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backend::{HEADER, NetBackend, Received};
use super::shared::{PairShared, Shared};
use super::window::Window;
use crate::io::QueueIo;
use crate::iovec::{self, IoVec};
use crate::rate::Throttle;
use crate::virtio::errors::ErrorLog;
use crate::virtio::{DeviceFault, QueueIndex, QueueWorker, Source, Wake};

/// The backend's descriptor.
const BACKEND: u32 = 0;
/// [`PairShared::wake`].
const PLUGGED: u32 = 1;
/// More may be received.
const RECEIVE: u32 = 2;
/// More may be sent.
const SEND: u32 = 3;
/// Frames that are dropped in one event while the cable is out, before others get their turn.
const DISCARDS: usize = 256;

/// A backend as a face and its worker share it: the worker uses it, the face keeps it for the next
/// worker. They never wait for each other, since the face does not lock it while there is a worker.
pub(super) type SharedBackend = Arc<Mutex<Box<dyn NetBackend>>>;

/// The backend, even if a thread panicked with it.
pub(super) fn lock(backend: &SharedBackend) -> MutexGuard<'_, Box<dyn NetBackend>> {
    backend.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The receive queue of pair `index`, §5.1.2.
pub(super) fn receive_queue(index: u16) -> QueueIndex {
    QueueIndex(2 * index)
}

/// The transmit queue of pair `index`, §5.1.2.
pub(super) fn transmit_queue(index: u16) -> QueueIndex {
    QueueIndex(2 * index + 1)
}

/// What the driver and this device agreed on, as far as frames are concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// VIRTIO_NET_F_MRG_RXBUF.
    pub(super) mergeable: bool,
    /// VIRTIO_NET_F_GUEST_CSUM: the driver looks at the flags of a frame.
    pub(super) checksum_flags: bool,
    /// Bytes of the longest frame that is to be expected, header included.
    pub(super) longest: usize,
}

/// The pair's ends of the card's limiters.
#[derive(Debug)]
pub(super) struct Throttles {
    pub(super) receive: Throttle,
    pub(super) send: Throttle,
}

/// The worker of one pair.
#[derive(Debug)]
pub(super) struct PairWorker {
    backend: SharedBackend,
    lane: Lane,
}

/// Everything but the backend, so that it can be locked while this changes.
#[derive(Debug)]
struct Lane {
    index: u16,
    shared: Arc<Shared>,
    rules: Rules,
    throttles: Throttles,
    window: Window,
    /// The backend may have frames: it was not found without since it last woke this worker.
    readable: bool,
    /// The backend had no room for a frame, and has not woken this worker since.
    blocked: bool,
    /// The buffers of the frame that is being sent, here for its allocation.
    frame: Vec<IoVec<'static>>,
    errors: ErrorLog,
}

impl PairWorker {
    pub(super) fn new(
        index: u16,
        backend: SharedBackend,
        shared: Arc<Shared>,
        rules: Rules,
        throttles: Throttles,
    ) -> Self {
        lock(&backend).restart();
        Self {
            backend,
            lane: Lane {
                index,
                shared,
                rules,
                throttles,
                window: Window::new(receive_queue(index), rules.mergeable),
                readable: true,
                blocked: false,
                frame: Vec::new(),
                errors: ErrorLog::default(),
            },
        }
    }
}

impl QueueWorker for PairWorker {
    fn sources(&self) -> Vec<Source> {
        use std::os::fd::AsRawFd;
        let backend = Source {
            fd: lock(&self.backend).fd(),
            token: BACKEND,
            wake: Wake::Change,
        };
        let plugged = Source {
            fd: self.lane.pair().wake.as_raw_fd(),
            token: PLUGGED,
            wake: Wake::Readable,
        };
        let throttles = &self.lane.throttles;
        let (receive, send) = (&throttles.receive, &throttles.send);
        vec![backend, plugged, receive.source(RECEIVE), send.source(SEND)]
    }

    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        let mut backend = lock(&self.backend);
        if queue == receive_queue(self.lane.index) {
            self.lane.receive(backend.as_mut(), io)
        } else {
            self.lane.transmit(backend.as_mut(), io)
        }
    }

    fn on_source(&mut self, token: u32, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        let throttle = match token {
            RECEIVE => Some(&mut self.lane.throttles.receive),
            SEND => Some(&mut self.lane.throttles.send),
            _ => None,
        };
        if let Some(throttle) = throttle {
            let left = throttle.resume();
            return left
                .into_iter()
                .try_for_each(|queue| self.on_kick(queue, io));
        }
        let mut backend = lock(&self.backend);
        if token == PLUGGED {
            // Non-blocking: a spurious event finds nothing to read.
            let _ = self.lane.pair().wake.read();
        } else {
            self.lane.readable = true;
            backend.flush();
            if !self.lane.shared.has_link() {
                self.lane.shared.doubt_link();
            }
        }
        self.lane.receive(backend.as_mut(), io)?;
        if std::mem::take(&mut self.lane.blocked) {
            self.lane.transmit(backend.as_mut(), io)?;
        }
        Ok(())
    }

    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        self.lane.window.put_back(io)
    }
}

/// The driver is done, or the VM is.
impl Drop for Lane {
    fn drop(&mut self) {
        let (received, sent) = (self.pair().received.read(), self.pair().sent.read());
        log::info!(
            "{}, queue pair {}: {received} received, {sent} sent",
            self.shared.name,
            self.index
        );
    }
}

impl Lane {
    fn pair(&self) -> &PairShared {
        &self.shared.pairs[usize::from(self.index)]
    }

    /// Receives until there is nothing more to receive or to receive it into.
    fn receive(
        &mut self,
        backend: &mut dyn NetBackend,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        if !self.shared.is_plugged() {
            self.discard_all(backend);
            return Ok(());
        }
        let queue = receive_queue(self.index);
        loop {
            // Also where there is no frame: one that comes then finds its buffers ready.
            self.window.fill(io, self.rules.longest)?;
            // Short of buffers because of the event's share, not the driver: the session comes back.
            let short = self.window.room() == 0 || io.cut_short().contains(queue);
            if short || !self.readable || !self.throttles.receive.admits(queue)? {
                return Ok(());
            }
            match backend.receive(self.window.buffers()) {
                Ok(Received::Frame(len)) => self.deliver(io, len)?,
                Ok(Received::TooLong(len)) => {
                    if !self.make_room(backend, io, len)? {
                        return Ok(());
                    }
                }
                Err(error) => self.stopped(&error),
            }
        }
    }

    /// Gives the driver the frame that is in the window.
    fn deliver(&mut self, io: &mut QueueIo<'_>, len: usize) -> Result<(), DeviceFault> {
        let Some(bytes) = len.checked_sub(HEADER) else {
            // No backend has such a thing; the buffers are as good as before.
            self.stopped(&ErrorKind::InvalidData.into());
            return Ok(());
        };
        if !self.rules.checksum_flags {
            // §5.1.6.4.1: flags are for drivers that know what to do with them.
            iovec::scatter(self.window.buffers(), 0, &[0]);
        }
        self.window.give(io, len)?;
        self.throttles.receive.charge(bytes as u64);
        self.pair().received.pass(bytes);
        Ok(())
    }

    /// A frame of `len` bytes does not fit into the window. Makes room for it or drops it, and says
    /// whether it makes sense to go on; if not, the driver's next kick brings buffers.
    fn make_room(
        &mut self,
        backend: &mut dyn NetBackend,
        io: &mut QueueIo<'_>,
        len: usize,
    ) -> Result<bool, DeviceFault> {
        self.rules.longest = self.rules.longest.max(len);
        self.window.fill(io, len)?;
        if self.window.room() >= len {
            return Ok(true);
        }
        if !self.window.is_at_its_largest(io)? {
            return Ok(false);
        }
        let _ = backend.discard();
        self.pair().received.drop_one();
        Ok(true)
    }

    /// Drops what arrives while the cable is out.
    fn discard_all(&mut self, backend: &mut dyn NetBackend) {
        for _ in 0..DISCARDS {
            if !self.readable {
                break;
            }
            match backend.discard() {
                Ok(()) => self.pair().received.drop_one(),
                Err(error) => self.stopped(&error),
            }
        }
    }

    /// Receiving gave `error` in place of a frame.
    fn stopped(&mut self, error: &io::Error) {
        match error.kind() {
            ErrorKind::Interrupted => return,
            ErrorKind::WouldBlock => {}
            ErrorKind::NetworkDown => self.doubt_link(),
            _ => self.note("receive", error),
        }
        self.readable = false;
    }

    /// Sends until there is nothing more to send or no room for it.
    fn transmit(
        &mut self,
        backend: &mut dyn NetBackend,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        let queue = transmit_queue(self.index);
        while !self.blocked && self.throttles.send.admits(queue)? {
            let Some(chain) = io.pop(queue)? else {
                break;
            };
            let mut frame = iovec::recycle(std::mem::take(&mut self.frame));
            frame.extend(chain.readable.iter().map(IoVec::new));
            let fault = |reason| DeviceFault::Request { queue, reason };
            if !chain.writable.is_empty() {
                return Err(fault("a frame with room to write to"));
            }
            let Some(bytes) = iovec::total(&frame).checked_sub(HEADER) else {
                return Err(fault("a frame shorter than its header"));
            };
            let sent = self.send(backend, &frame);
            self.frame = iovec::recycle(frame);
            match sent {
                Ok(()) => {
                    self.throttles.send.charge(bytes as u64);
                    self.pair().sent.pass(bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return io.unpop(queue);
                }
                Err(error) => {
                    self.pair().sent.drop_one();
                    match error.kind() {
                        ErrorKind::NetworkDown => self.doubt_link(),
                        _ => self.note("send", &error),
                    }
                }
            }
            io.complete_soon(queue, &[(chain.head, 0)])?;
        }
        Ok(())
    }

    fn send(&self, backend: &mut dyn NetBackend, frame: &[IoVec<'_>]) -> io::Result<()> {
        if !self.shared.is_plugged() {
            return Err(ErrorKind::NetworkDown.into());
        }
        loop {
            match backend.send(frame) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// The backend has no link, while the driver is told that there is one.
    fn doubt_link(&self) {
        if self.shared.is_up() {
            self.shared.doubt_link();
        }
    }

    fn note(&mut self, what: &str, error: &io::Error) {
        self.errors.note(&self.shared.name, what, error);
    }
}
