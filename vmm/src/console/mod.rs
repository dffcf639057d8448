//! The host's end of the serial console: where a guest's output goes and its input comes from.
//!
//! A [`Console`] is opened before the VM is made, so that everything that can be wrong with it is said
//! before anything runs. [`Console::attach`] then puts a 16550A in front of it and gives three things to
//! three owners: the port to the bus, the input to the I/O thread, and a [`ConsoleGuard`] to the VM,
//! which flushes and ends the console when the VM has ended.
//!
//! ```text
//! vCPU threads ─► SerialPort ─┬► ring ─► writer thread ─► file, terminal, pipe, client
//!                     ▲       └► ring ─► tap thread ─► lines, for whoever takes the VM's events
//! I/O thread ─────────┘◄─ filter ◄───────────────────── terminal, pipe, client
//! ```

mod config;
mod consumer;
mod error;
mod lines;
mod pty;
mod sink;
mod tap;
mod unix;

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::irq::IrqLine;
pub use devices::legacy::serial::InputFilter;
use devices::legacy::serial::{InputQueue, SerialInput, SerialPort};
use event_manager::MutEventSubscriber;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use self::config::{ConsoleConfig, ConsoleConfigError};
use self::consumer::{Consumer, Custom, Descriptor, Policy};
pub use self::error::ConsoleError;
use self::pty::Pty;
use self::sink::{Sink, SinkWriter};
use self::tap::Tap;
use self::unix::{Slot, SocketInput, SocketOutput};
use crate::events::EventSender;
use crate::socket::{self, SocketFile};

/// How long the end of a VM waits for the reader of its console, unless told otherwise.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// The treatment of a consumer that is supposed to be there: lossless, as long as it takes something
/// every two seconds.
const POLICY: Policy = Policy {
    capacity: 1 << 20,
    patience: Duration::from_secs(2),
    expects_reader: true,
};

/// Where input comes from.
#[derive(Debug)]
enum Input {
    Nowhere,
    Descriptor(OwnedFd),
    Clients(UnixListener, Arc<Slot>),
}

/// Where output goes.
struct Output {
    consumer: Box<dyn Consumer>,
    policy: Policy,
    name: String,
}

/// What has to stay as long as the console does.
#[derive(Debug)]
enum Keep {
    Nothing,
    Slave(pty::Slave),
    Socket(SocketFile),
}

/// The host's end of a console, opened and not yet attached to a guest.
pub struct Console {
    input: Input,
    output: Option<Output>,
    filter: Option<InputFilter>,
    keep: Keep,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("input", &self.input)
            .field("output", &self.output.as_ref().map(|output| &output.name))
            .field("filter", &self.filter.is_some())
            .field("keep", &self.keep)
            .finish()
    }
}

impl Console {
    /// Opens what `config` names. Files and sockets are made here.
    ///
    /// # Errors
    /// Says in one line what is in the way, and the remedy.
    pub fn open(config: &ConsoleConfig) -> Result<Self, ConsoleError> {
        match config {
            ConsoleConfig::Stdio => Self::stdio(),
            ConsoleConfig::File(path) => Self::file(path),
            ConsoleConfig::Pty => Self::pty().map_err(ConsoleError::Pty),
            ConsoleConfig::Unix(path) => Self::unix(path),
            ConsoleConfig::None => Ok(Self::none()),
        }
    }

    /// An embedder's own: input from any descriptor, output to any writer, which is called on the
    /// console's own thread and may block for as long as it likes. While it does, the guest goes on;
    /// see [`ConsoleGuard::close`] for the end.
    #[must_use]
    pub fn from_parts(input: Option<OwnedFd>, output: Box<dyn Write + Send>) -> Self {
        Self::new(
            input.map_or(Input::Nowhere, Input::Descriptor),
            Output {
                consumer: Box::new(Custom(output)),
                policy: POLICY,
                name: "a custom writer".to_owned(),
            },
            Keep::Nothing,
        )
    }

    /// No input, and output that is dropped.
    #[must_use]
    pub fn none() -> Self {
        Self {
            input: Input::Nowhere,
            output: None,
            filter: None,
            keep: Keep::Nothing,
        }
    }

    /// Takes input from this descriptor and from nowhere else. A socket then lets nobody in.
    #[must_use]
    pub fn with_input(mut self, input: OwnedFd) -> Self {
        self.input = Input::Descriptor(input);
        self
    }

    /// Puts a filter on the input, to see keys that are not for the guest. While it is there, input is
    /// read even if the guest takes none; what is too far ahead of the guest is dropped.
    #[must_use]
    pub fn with_filter(mut self, filter: InputFilter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Where the user finds this console, if that is not known already: the terminal of a `pty`, or the
    /// socket.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.keep {
            Keep::Nothing => None,
            Keep::Slave(slave) => Some(slave.path()),
            Keep::Socket(file) => Some(file.path()),
        }
    }

    /// Puts a serial port that interrupts on `line` in front of this console, and starts its writer
    /// thread. What the guest prints also goes to `events`, line by line.
    ///
    /// # Errors
    /// Fails if the host has no eventfd or thread left.
    pub fn attach(
        self,
        line: Arc<dyn IrqLine>,
        events: Option<EventSender>,
    ) -> Result<AttachedConsole, ConsoleError> {
        let mut sinks = Vec::with_capacity(2);
        if let Some(Output {
            consumer,
            policy,
            name,
        }) = self.output
        {
            sinks
                .push(Sink::start("console", consumer, policy, name).map_err(ConsoleError::Start)?);
        }
        if let Some(events) = events {
            let tap = Box::new(Tap::new(events));
            let name = "the VM's events".to_owned();
            sinks.push(Sink::start("tap", tap, tap::POLICY, name).map_err(ConsoleError::Start)?);
        }
        let writer = Writers(sinks.iter().map(Sink::writer).collect());
        let port = Arc::new(SerialPort::new(line, Box::new(writer)).map_err(ConsoleError::Start)?);
        let queue = InputQueue::new(Arc::clone(&port), self.filter);
        let input: Option<Box<dyn MutEventSubscriber + Send>> = match self.input {
            Input::Nowhere => None,
            Input::Descriptor(fd) => Some(Box::new(SerialInput::new(queue, fd))),
            Input::Clients(listener, slot) => {
                Some(Box::new(SocketInput::new(listener, slot, queue)))
            }
        };
        Ok(AttachedConsole {
            port,
            input,
            guard: ConsoleGuard {
                sinks,
                keep: self.keep,
            },
        })
    }

    fn new(input: Input, output: Output, keep: Keep) -> Self {
        Self {
            input,
            output: Some(output),
            filter: None,
            keep,
        }
    }

    fn stdio() -> Result<Self, ConsoleError> {
        // Duplicates: closing them leaves the process its own.
        let stdio = |stream, fd: io::Result<OwnedFd>| {
            fd.map_err(|source| ConsoleError::Stdio { stream, source })
        };
        let input = stdio("input", io::stdin().as_fd().try_clone_to_owned())?;
        let output = stdio("output", io::stdout().as_fd().try_clone_to_owned())?;
        Ok(Self::new(
            Input::Descriptor(input),
            Output {
                consumer: Box::new(Descriptor::new(output)),
                policy: POLICY,
                name: "standard output".to_owned(),
            },
            Keep::Nothing,
        ))
    }

    fn file(path: &Path) -> Result<Self, ConsoleError> {
        if let Some(parent) = socket::missing_parent(path) {
            let (path, parent) = (path.to_owned(), parent.to_owned());
            return Err(ConsoleError::NoParent { path, parent });
        }
        // Non-blocking only matters for a FIFO, whose open would wait for a reader.
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::TRUNC
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o666)).map_err(|error| {
            let path = path.to_owned();
            match error {
                Errno::ISDIR => ConsoleError::IsFolder(path),
                Errno::NXIO => ConsoleError::NoReader(path),
                error => ConsoleError::File {
                    path,
                    source: error.into(),
                },
            }
        })?;
        Ok(Self::new(
            Input::Nowhere,
            Output {
                consumer: Box::new(Descriptor::new(file)),
                policy: POLICY,
                name: path.display().to_string(),
            },
            Keep::Nothing,
        ))
    }

    fn pty() -> io::Result<Self> {
        let Pty { master, slave } = Pty::open()?;
        Ok(Self::new(
            Input::Descriptor(master.try_clone()?),
            Output {
                consumer: Box::new(Descriptor::new(master)),
                policy: pty::POLICY,
                name: slave.path().display().to_string(),
            },
            Keep::Slave(slave),
        ))
    }

    fn unix(path: &Path) -> Result<Self, ConsoleError> {
        let (listener, file) = socket::listen(path)?;
        let slot = Arc::new(Slot::new().map_err(ConsoleError::Start)?);
        Ok(Self::new(
            Input::Clients(listener, Arc::clone(&slot)),
            Output {
                consumer: Box::new(SocketOutput(slot)),
                policy: unix::POLICY,
                name: path.display().to_string(),
            },
            Keep::Socket(file),
        ))
    }
}

/// Where the port's output goes: nowhere, to the console, to the tap, or to both.
struct Writers(Vec<SinkWriter>);

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

/// A console in front of a guest, for its three owners.
pub struct AttachedConsole {
    /// For the bus.
    pub port: Arc<SerialPort>,
    /// For the I/O thread, if there is any input.
    pub input: Option<Box<dyn MutEventSubscriber + Send>>,
    /// For the VM, to end it with.
    pub guard: ConsoleGuard,
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

/// Ends a console: what the guest has said is written out, its thread is joined, its socket removed.
///
/// Dropping it closes it with [`FLUSH_LIMIT`].
#[derive(Debug)]
pub struct ConsoleGuard {
    sinks: Vec<Sink>,
    keep: Keep,
}

impl ConsoleGuard {
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

#[cfg(test)]
mod tests;
