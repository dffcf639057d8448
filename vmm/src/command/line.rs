//! The line between a command's session and the machine, from the assembly of the machine to its end: a
//! port of the vsock, and for guests without a vsock driver the second serial port.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;

use devices::io::IoTask;
use devices::irq::IrqLine;
use devices::legacy::serial::SerialPort;

use super::session::{Session, SessionParts};
use super::{CommandEnd, CommandHandle, CommandIo, VSOCK_PORT};
use crate::console::{AttachedConsole, Console, ConsoleGuard, FLUSH_LIMIT};
use crate::error::BuildError;
use crate::flag::Flag;
use crate::lifecycle::Lifecycle;
use crate::threads::Threads;
use crate::vsock::Vsock;

/// A command's line: made, attached to the machine, started with it, joined at its end.
#[derive(Debug)]
pub(crate) struct CommandLine {
    handle: CommandHandle,
    /// Until the session starts.
    parts: Option<SessionParts>,
    /// The machine's end of the serial port, until it is attached.
    far: Option<UnixStream>,
    guard: Option<ConsoleGuard>,
    session: Option<Session>,
}

impl CommandLine {
    /// A line for a command with these streams, or this process's own.
    pub fn new(streams: Option<CommandIo>, vsock: Option<&Vsock>) -> Result<Self, BuildError> {
        let device = |source| BuildError::Device {
            what: "the command's streams",
            source,
        };
        let streams = match streams {
            Some(streams) => streams,
            None => CommandIo::inherit().map_err(device)?,
        };
        let (near, far) = UnixStream::pair().map_err(device)?;
        let (orders, inbox) = channel();
        let wake = Arc::new(Flag::new().map_err(device)?);
        // It fails only if somebody else listens there, and nobody has had the vsock before.
        let listener = vsock.and_then(|vsock| vsock.listen(VSOCK_PORT).ok());
        Ok(Self {
            handle: CommandHandle {
                orders,
                wake: Arc::clone(&wake),
            },
            parts: Some(SessionParts {
                serial: near,
                listener,
                streams,
                inbox,
                wake,
            }),
            far: Some(far),
            guard: None,
            session: None,
        })
    }

    /// The port for the bus, and its input for an I/O thread.
    pub fn attach(
        &mut self,
        line: Arc<dyn IrqLine>,
    ) -> Result<(Arc<SerialPort>, Option<IoTask>), BuildError> {
        let Some(output) = self.far.take() else {
            unreachable!("a line is attached once");
        };
        let input = output.try_clone().map_err(|source| BuildError::Device {
            what: "the command's channel",
            source,
        })?;
        let console = Console::from_parts(Some(input.into()), Box::new(output));
        let AttachedConsole { port, input, guard } = console.prepare(None)?.attach(line)?;
        self.guard = Some(guard);
        Ok((port, input))
    }

    /// Starts the session: the machine is about to run.
    pub fn start(&mut self, lifecycle: &Arc<Lifecycle>, threads: &Threads) -> io::Result<()> {
        if let Some(guard) = &mut self.guard {
            guard.start()?;
        }
        if let Some(parts) = self.parts.take() {
            self.session = Some(Session::start(parts, Arc::clone(lifecycle), threads)?);
        }
        Ok(())
    }

    /// A handle to the command.
    pub fn handle(&self) -> CommandHandle {
        self.handle.clone()
    }

    /// How the command ended. The VM is over, and no thread of it uses the port any more.
    pub fn join(mut self) -> CommandEnd {
        if let Some(guard) = self.guard.take() {
            guard.close(FLUSH_LIMIT);
        }
        let lost = CommandEnd::Lost { started: false };
        self.session.take().map_or(lost, Session::join)
    }
}
