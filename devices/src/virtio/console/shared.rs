//! What the parts of a console share: its size, and the input on its way to the guest.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::console::{CHUNK, Receiver};
use crate::virtio::VirtioInterrupt;

/// Input that waits for the guest to give buffers for it.
#[derive(Debug, Default)]
pub(super) struct Fifo {
    pub(super) bytes: VecDeque<u8>,
    /// Somebody was turned away and waits for room.
    waits: bool,
}

/// Shared by the face (vCPU threads), the worker (an I/O thread), the input (maybe another), and whoever
/// resizes the console.
#[derive(Debug)]
pub(super) struct Shared {
    /// `cols` and `rows` as configuration space has them, §5.3.4: 16 bits each, `cols` first.
    pub(super) size: AtomicU32,
    /// Whether the driver has somewhere to put input.
    pub(super) listens: AtomicBool,
    /// The way to the driver, once there is a transport.
    pub(super) interrupt: OnceLock<Arc<dyn VirtioInterrupt>>,
    fifo: Mutex<Fifo>,
    /// Wakes the worker: there is input.
    pub(super) input: EventFd,
    /// Wakes the input: there is room.
    room: EventFd,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            size: AtomicU32::new(0),
            listens: AtomicBool::new(false),
            interrupt: OnceLock::new(),
            fifo: Mutex::default(),
            input: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            room: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    pub(super) fn fifo(&self) -> MutexGuard<'_, Fifo> {
        self.fifo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Input has gone to the guest: whoever waits may go on.
    pub(super) fn made_room(&self, fifo: &mut Fifo) {
        if std::mem::take(&mut fifo.waits) {
            signal(&self.room);
        }
    }

    /// The driver has looked at the size.
    pub(super) fn listen(&self) {
        if !self.listens.swap(true, Ordering::AcqRel) {
            signal(&self.input);
        }
    }

    /// Has the driver read the size.
    pub(super) fn tell_size(&self) {
        if let Some(interrupt) = self.interrupt.get()
            && let Err(error) = interrupt.config()
        {
            log::warn!("console: the guest is not told of its new size: {error}");
        }
    }
}

fn signal(event: &EventFd) {
    // It can fail only by its counter being saturated, when it is readable anyway.
    let _ = event.write(1);
}

/// Keeps what comes before there is a driver: nobody throws it away.
impl Receiver for Shared {
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut fifo = self.fifo();
        let room = CHUNK.saturating_sub(fifo.bytes.len());
        let taken = room.min(bytes.len());
        fifo.bytes.extend(&bytes[..taken]);
        fifo.waits = taken < bytes.len();
        drop(fifo);
        if taken > 0 {
            signal(&self.input);
        }
        taken
    }

    fn room(&self) -> &EventFd {
        &self.room
    }
}

/// Controls a console from any thread. Cheap to clone; of no effect once the VM is over.
#[derive(Debug, Clone)]
pub struct ConsoleControl(Arc<Shared>);

impl ConsoleControl {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Gives the console so many columns and rows of characters.
    pub fn resize(&self, cols: u16, rows: u16) {
        let size = u32::from(cols) | u32::from(rows) << 16;
        if self.0.size.swap(size, Ordering::AcqRel) != size {
            self.0.tell_size();
        }
    }
}
