//! A console in front of a guest: its writer threads, its ports, its input, and its end.
//!
//! The serial port is there in any case, as every machine has one. With a virtio-console beside it, it
//! says what the guest's kernel says before it has found that one, and hears nothing.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::console::{self, DescriptorInput, InputQueue, Receiver};
use devices::irq::IrqLine;
use devices::legacy::serial::SerialPort;
use devices::virtio::console as virtio;
use event_manager::MutEventSubscriber;

use super::bell::Bell;
use super::sink::{Sink, SinkWriter};
use super::tap::{self, Tap};
use super::unix::SocketInput;
use super::{Console, ConsoleError, ConsolePort, FLUSH_LIMIT, Input, InputFilter, Keep, Output};
use crate::events::EventSender;

/// A console with its rings, whose serial port is still to come.
pub(crate) struct PreparedConsole {
    /// The virtio-console, if it is one.
    pub device: Option<virtio::Console>,
    receiver: Option<Arc<dyn Receiver>>,
    writers: Writers,
    input: Input,
    filter: Option<InputFilter>,
    guard: ConsoleGuard,
}

/// A console in front of a guest, for its three owners.
pub(crate) struct AttachedConsole {
    /// For the bus.
    pub port: Arc<SerialPort>,
    /// For the I/O thread, if there is any input.
    pub input: Option<Box<dyn MutEventSubscriber + Send>>,
    /// For the VM, to end it with.
    pub guard: ConsoleGuard,
}

impl Console {
    /// Makes the rings, and the virtio-console if it is one. What the guest prints also goes to `events`,
    /// line by line.
    ///
    /// # Errors
    /// Fails if the host has no descriptor left.
    pub(crate) fn prepare(
        self,
        events: Option<EventSender>,
    ) -> Result<PreparedConsole, ConsoleError> {
        let mut sinks = Vec::with_capacity(2);
        if let Some(Output {
            consumer,
            policy,
            name,
        }) = self.output
        {
            sinks.push(Sink::new("console", consumer, policy, name).map_err(ConsoleError::Start)?);
        }
        if let Some(events) = events {
            let tap = Box::new(Tap::new(events));
            let name = "the VM's events".to_owned();
            sinks.push(Sink::new("tap", tap, tap::POLICY, name).map_err(ConsoleError::Start)?);
        }
        let writers = Writers(sinks.iter().map(Sink::writer).collect());
        let device = match self.port {
            ConsolePort::Serial => None,
            ConsolePort::Virtio => {
                let output = PoliteWriters::new(writers.clone()).map_err(ConsoleError::Start)?;
                Some(virtio::Console::new(Arc::new(output)).map_err(ConsoleError::Start)?)
            }
        };
        Ok(PreparedConsole {
            receiver: device.as_ref().map(virtio::Console::receiver),
            device,
            writers,
            input: self.input,
            filter: self.filter,
            guard: ConsoleGuard {
                sinks,
                keep: self.keep,
            },
        })
    }
}

impl PreparedConsole {
    /// Adds the serial port, which interrupts on `line`.
    ///
    /// # Errors
    /// Fails if the host has no descriptor left.
    pub fn attach(self, line: Arc<dyn IrqLine>) -> Result<AttachedConsole, ConsoleError> {
        let port = SerialPort::new(line, Box::new(self.writers)).map_err(ConsoleError::Start)?;
        let port = Arc::new(port);
        let queue = InputQueue::new(self.receiver.unwrap_or(port.clone()), self.filter);
        let input: Option<Box<dyn MutEventSubscriber + Send>> = match self.input {
            Input::Nowhere => None,
            Input::Descriptor(fd) => Some(Box::new(DescriptorInput::new(queue, fd))),
            Input::Clients(listener, slot) => {
                Some(Box::new(SocketInput::new(listener, slot, queue)))
            }
        };
        Ok(AttachedConsole {
            port,
            input,
            guard: self.guard,
        })
    }
}

/// Where output goes: nowhere, to the console, to the tap, or to both. Waits for them.
#[derive(Debug, Clone)]
pub(super) struct Writers(pub(super) Vec<SinkWriter>);

impl Write for Writers {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for writer in &mut self.0 {
            writer.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same, for one who cannot wait.
#[derive(Debug)]
pub(super) struct PoliteWriters {
    writers: Writers,
    /// Rings when an offer that was cut short can go on.
    bell: Arc<Bell>,
}

impl PoliteWriters {
    pub(super) fn new(writers: Writers) -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        Ok(Self { writers, bell })
    }

    /// What all of them have room for.
    fn common_room(&self, wanted: usize) -> usize {
        let rooms = self.writers.0.iter();
        let rooms = rooms.map(|writer| writer.room(wanted, &self.bell));
        rooms.min().unwrap_or(wanted)
    }
}

impl console::Output for PoliteWriters {
    fn offer(&self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.common_room(rest.len()));
            if now.is_empty() {
                break;
            }
            self.writers.0.iter().for_each(|writer| writer.put(now));
            rest = later;
        }
        bytes.len() - rest.len()
    }

    fn room(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    fn seen(&self) {
        self.bell.hush();
    }
}

/// Ends a console: what the guest has said is written out, its thread is joined, its socket removed.
///
/// Dropping it closes it with [`FLUSH_LIMIT`].
#[derive(Debug)]
pub(crate) struct ConsoleGuard {
    sinks: Vec<Sink>,
    keep: Keep,
}

impl ConsoleGuard {
    /// Starts the writer threads. Until then the rings keep what the guest prints.
    pub fn start(&mut self) -> io::Result<()> {
        self.sinks.iter_mut().try_for_each(Sink::start)
    }

    /// Lets go of any vCPU that waits for the console's reader, and makes none wait from now on. To be
    /// called before vCPU threads are stopped and joined; what they have said is not lost by it.
    pub fn release_vcpus(&self) {
        self.sinks.iter().for_each(Sink::release);
    }

    /// Gives the reader up to `limit` to take what is there, then lets go. The writer thread is left
    /// behind only if it is stuck in an embedder's writer (or in a write that the system has promised
    /// not to block). Where it is not known that anybody reads (`pty`, `unix`), the wait is shorter.
    pub fn close(mut self, limit: Duration) {
        self.end(limit);
    }

    fn end(&mut self, limit: Duration) {
        let sinks = std::mem::take(&mut self.sinks);
        if sinks.is_empty() {
            return;
        }
        let start = Instant::now();
        for mut sink in sinks {
            sink.close(limit.saturating_sub(start.elapsed()));
        }
        if let Keep::Slave(slave) = &self.keep {
            slave.part();
        }
    }
}

impl Drop for ConsoleGuard {
    fn drop(&mut self) {
        self.end(FLUSH_LIMIT);
    }
}

impl fmt::Debug for PreparedConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedConsole")
            .field("device", &self.device)
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AttachedConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachedConsole")
            .field("port", &self.port)
            .field("input", &self.input.is_some())
            .field("guard", &self.guard)
            .finish()
    }
}
