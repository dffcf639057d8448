//! A guest's console: where its output goes and its input comes from.
//!
//! A [`Console`] is opened before the VM is made, so that everything that can be wrong with it is said
//! before anything runs. The VM then puts its ports in front of it: a 16550A in any case, and a
//! virtio-console if it is one.
//!
//! ```text
//! vCPU threads ─► SerialPort ───┬─┬► ring ─► writer thread ─► file, terminal, pipe, client
//!                     ▲         │ └► ring ─► tap thread ─► lines, for whoever takes the VM's events
//! I/O thread ── virtio-console ─┘
//!                     ▲
//! I/O thread ─────────┴◄─ filter ◄────────────────────── terminal, pipe, client
//! ```
//! A full ring makes a vCPU wait at the serial port, and a guest at its virtio-console: an I/O thread
//! never waits.

mod attach;
mod bell;
mod config;
mod consumer;
mod error;
mod lines;
mod pty;
mod sink;
mod tail;
mod tap;
mod unix;

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use devices::console::InputFilter;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub(crate) use self::attach::{AttachedConsole, ConsoleGuard, PreparedConsole};
pub use self::config::{ConsoleConfig, ConsoleConfigError, ConsoleEnd, ConsolePort};
use self::consumer::{Consumer, Custom, Descriptor, Policy};
pub use self::error::ConsoleError;
use self::pty::Pty;
pub use self::tail::Tail;
use self::unix::{Slot, SocketOutput};
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
    port: ConsolePort,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("input", &self.input)
            .field("output", &self.output.as_ref().map(|output| &output.name))
            .field("filter", &self.filter.is_some())
            .field("keep", &self.keep)
            .field("port", &self.port)
            .finish()
    }
}

impl Console {
    /// Opens what `config` names. Files and sockets are made here.
    ///
    /// # Errors
    /// Says in one line what is in the way, and the remedy.
    pub fn open(config: &ConsoleConfig) -> Result<Self, ConsoleError> {
        let console = match &config.end {
            ConsoleEnd::Stdio => Self::stdio(),
            ConsoleEnd::File(path) => Self::file(path),
            ConsoleEnd::Pty => Self::pty().map_err(ConsoleError::Pty),
            ConsoleEnd::Unix(path) => Self::unix(path),
            ConsoleEnd::None => Ok(Self::none()),
        };
        console.map(|console| console.with_port(config.port))
    }

    /// An embedder's own: input from any descriptor, output to any writer, which is called on the
    /// console's own thread and may block for as long as it likes. While it does, the guest goes on; the
    /// end of the VM waits for it, up to [`FLUSH_LIMIT`].
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
            port: ConsolePort::Serial,
        }
    }

    /// Takes input from this descriptor and from nowhere else. A socket then lets nobody in.
    #[must_use]
    pub fn with_input(mut self, input: OwnedFd) -> Self {
        self.input = Input::Descriptor(input);
        self
    }

    /// What the console is for the guest; a serial port unless this says otherwise.
    #[must_use]
    pub fn with_port(mut self, port: ConsolePort) -> Self {
        self.port = port;
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

    fn new(input: Input, output: Output, keep: Keep) -> Self {
        Self {
            input,
            output: Some(output),
            filter: None,
            keep,
            port: ConsolePort::Serial,
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

#[cfg(test)]
mod tests;
