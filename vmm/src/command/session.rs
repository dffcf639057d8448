//! The host's end of a command's channel: a thread that carries the streams until the command is over,
//! and sees to it that the VM is over then too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use init_lib::frame::VERSION;
use init_lib::{Control, Mux, MuxError, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{CommandEnd, CommandIo};
use crate::console::FLUSH_LIMIT;
use crate::events::EventKind;
use crate::flag::Flag;
use crate::lifecycle::{ExitReason, Lifecycle};
use crate::threads::Threads;
use crate::vsock::VsockListener;

/// How long a guest may take to power off once its command is over.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);
/// How long it waits for a guest's vsock connection before it looks elsewhere.
const GLANCE: Duration = Duration::from_millis(50);
/// How often a session looks at the clock where it must.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// What a session works with.
#[derive(Debug)]
pub(super) struct SessionParts {
    /// The host's end of the second serial port.
    pub serial: UnixStream,
    /// Where a guest with a vsock connects.
    pub listener: Option<VsockListener>,
    /// The command's streams.
    pub streams: CommandIo,
    /// What the command's handles say.
    pub inbox: Receiver<Control>,
    /// Raised when they have said something.
    pub wake: Arc<Flag>,
}

/// The thread.
#[derive(Debug)]
pub(super) struct Session(JoinHandle<CommandEnd>);

impl Session {
    /// Waits for a guest, and carries its command's streams.
    pub fn start(
        parts: SessionParts,
        lifecycle: Arc<Lifecycle>,
        threads: &Threads,
    ) -> io::Result<Self> {
        let SessionParts {
            serial,
            listener,
            streams,
            inbox,
            wake,
        } = parts;
        let body = Body {
            streams: Some(streams),
            lifecycle,
            inbox,
            wake,
            started: false,
            end: None,
        };
        let thread = threads.spawn("command", move || body.run(serial, listener))?;
        Ok(Self(thread))
    }

    /// How the command ended. The VM must be over.
    pub fn join(self) -> CommandEnd {
        let lost = CommandEnd::Lost { started: false };
        self.0.join().unwrap_or(lost)
    }
}

/// What the thread has.
struct Body {
    /// Until the guest has said hello.
    streams: Option<CommandIo>,
    lifecycle: Arc<Lifecycle>,
    inbox: Receiver<Control>,
    wake: Arc<Flag>,
    /// The guest has said that the command runs; that it says so again is of no interest.
    started: bool,
    end: Option<CommandEnd>,
}

impl Body {
    fn run(mut self, serial: UnixStream, listener: Option<VsockListener>) -> CommandEnd {
        if let Some(channel) = self.wait_for_guest(serial, listener) {
            if let Err(error) = channel.set_nonblocking(true) {
                log::warn!("the channel to the guest's init: {error}");
            }
            let mut mux = Mux::new(channel.into());
            let carried = self.carry(&mut mux);
            if let Err(error) = carried
                && error != MuxError::Closed
            {
                log::warn!("the guest's init is not understood: {error}");
                self.lifecycle.end(Ok(ExitReason::Deserted));
            }
            if self.end.is_some() {
                self.lifecycle.note(EventKind::CommandEnded);
                mux.say(Control::Bye);
            }
            // A broken channel is closed, by which the guest's init knows that all is over.
            self.see_off(carried.is_ok().then_some(mux));
        }
        self.end.unwrap_or(CommandEnd::Lost {
            started: self.started,
        })
    }

    /// The channel that the guest speaks on first; none if the VM ends before. Vsock connections come
    /// through memory, the rest through descriptors, so this looks at one after the other; it is over as
    /// soon as the guest's init runs.
    fn wait_for_guest(
        &self,
        serial: UnixStream,
        listener: Option<VsockListener>,
    ) -> Option<UnixStream> {
        loop {
            if let Some(listener) = &listener
                && let Ok(channel) = listener.accept(Some(GLANCE))
            {
                return Some(channel);
            }
            let mut fds = [
                PollFd::from_borrowed_fd(self.lifecycle.ended(), PollFlags::IN),
                PollFd::new(&serial, PollFlags::IN),
            ];
            let wait = listener.as_ref().map(|_| Timespec::default());
            let _ = poll(&mut fds, wait.as_ref());
            if !fds[1].revents().is_empty() {
                return Some(serial);
            }
            if !fds[0].revents().is_empty() {
                return None;
            }
        }
    }

    /// Carries until everything of the command has been delivered, or the VM is over and has nothing more
    /// to say.
    fn carry(&mut self, mux: &mut Mux) -> Result<(), MuxError> {
        let lifecycle = Arc::clone(&self.lifecycle);
        let wake = Arc::clone(&self.wake);
        // Set when the VM is over: what it said before is still on its way to here.
        let mut limit: Option<Instant> = None;
        while self.end.is_none() || !mux.is_delivered() {
            let mut heard = Vec::new();
            let also: [BorrowedFd<'_>; 2] = [wake.as_fd(), lifecycle.ended()];
            let (also, tick) = match limit {
                Some(limit) if Instant::now() >= limit => return Ok(()),
                Some(_) => (&also[..1], Some(&TICK)),
                None => (&also[..], None),
            };
            let [woken, over] = mux.step(also, tick, &mut |control| heard.push(control))?;
            if over && limit.is_none() {
                limit = Some(Instant::now() + FLUSH_LIMIT);
            }
            if woken {
                self.wake.lower();
                self.inbox.try_iter().for_each(|order| mux.say(order));
            }
            for control in heard {
                self.hear(control, mux);
            }
        }
        Ok(())
    }

    fn hear(&mut self, control: Control, mux: &mut Mux) {
        let end = match control {
            Control::Hello { version: VERSION } => {
                if let Some(streams) = self.streams.take() {
                    mux.source(Stream::Stdin, streams.stdin);
                    mux.sink(Stream::Stdout, streams.stdout);
                    mux.sink(Stream::Stderr, streams.stderr);
                }
                return;
            }
            Control::Warning(text) => {
                log::warn!("the guest's init: {}", String::from_utf8_lossy(&text));
                return;
            }
            Control::Failed { status, reason } => CommandEnd::NotStarted {
                status,
                reason: String::from_utf8_lossy(&reason).into_owned(),
            },
            Control::Exited { status } => CommandEnd::Exited(status),
            Control::Killed { signal } => CommandEnd::Killed(signal),
            Control::Started { .. } => {
                if !std::mem::replace(&mut self.started, true) {
                    self.lifecycle.note(EventKind::CommandStarted);
                }
                return;
            }
            // The rest is the host's to say.
            _ => return,
        };
        self.end.get_or_insert(end);
    }

    /// Waits for the guest to power off: its command is over, or nothing will be heard of it any more.
    fn see_off(&self, mut mux: Option<Mux>) {
        let limit = Instant::now() + POWER_OFF_LIMIT;
        while !self.lifecycle.is_over() {
            if Instant::now() >= limit {
                log::warn!("the guest does not power off after its command; the VM is ended");
                return self.lifecycle.end(Ok(ExitReason::Deserted));
            }
            let ended = self.lifecycle.ended();
            let stepped = mux
                .as_mut()
                .map(|mux| mux.step(&[ended], Some(&TICK), &mut |_| ()));
            if !matches!(stepped, Some(Ok(_))) {
                mux = None;
                let mut ended = [PollFd::from_borrowed_fd(ended, PollFlags::IN)];
                let _ = poll(&mut ended, Some(&TICK));
            }
        }
    }
}
