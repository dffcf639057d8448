//! The streams of a command, multiplexed over one channel with a window for each. Both ends run this:
//! on one a stream has a source, a descriptor that is read and sent on; on the other a sink, where what
//! arrives is written.
//!
//! ```text
//! source ─ read, at most the credit ─► Data ═══ channel ═══► waiting, at most the window ─ write ─► sink
//!        ◄──────────────────────────── Credit ◄═════════════ what the sink has taken
//! ```
//!
//! Descriptors other than the channel may be blocking: a source is read only when there is something, and
//! a blocking sink given at most what a pipe that is ready must take. One thread owns a mux; its memory is
//! allocated when it is made.

mod sink;

use alloc::vec::Vec;
use core::fmt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, read, write};

use self::sink::Sink;
use crate::frame::{Control, Decoder, Frame, HEADER, MAX_PAYLOAD, Malformed, Stream};

/// Bytes of one stream that may be under way.
pub const WINDOW: u32 = 256 * 1024;
/// Credit is given back in portions of at least this, so that it costs next to nothing.
const PORTION: u32 = WINDOW / 4;
/// No more data is read while so much waits for the channel.
const BACKLOG: usize = 4 * MAX_PAYLOAD;
/// Why a channel cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MuxError {
    /// The peer closed it.
    Closed,
    /// The peer says what makes no sense.
    Malformed(Malformed),
    /// The system refuses.
    System(Errno),
}

impl fmt::Display for MuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the other end closed the channel"),
            Self::Malformed(what) => write!(f, "the other end sent {what}"),
            Self::System(errno) => write!(f, "{errno}"),
        }
    }
}

impl core::error::Error for MuxError {}

/// This end of a stream.
#[derive(Debug)]
enum End {
    /// Not used, or over.
    None,
    Source {
        fd: OwnedFd,
        /// Bytes that the peer can still take.
        credit: u32,
    },
    Sink(Sink),
}

/// What a wait found.
struct Ready {
    ends: [PollFlags; 3],
    channel: PollFlags,
    also: [bool; MAX_ALSO],
}

/// All streams of one command, and the channel they share.
#[derive(Debug)]
pub struct Mux {
    channel: OwnedFd,
    decoder: Decoder,
    /// Whole frames, of which the first `sent` bytes are gone.
    out: Vec<u8>,
    sent: usize,
    ends: [End; 3],
}

/// The most descriptors that a caller may have watched along.
pub const MAX_ALSO: usize = 2;

impl Mux {
    /// A mux over `channel`, which must be non-blocking, and no streams yet.
    #[must_use]
    pub fn new(channel: OwnedFd) -> Self {
        Self {
            channel,
            decoder: Decoder::default(),
            out: Vec::with_capacity(2 * BACKLOG),
            sent: 0,
            ends: [End::None, End::None, End::None],
        }
    }

    /// Sends what can be read from `fd` as `stream`.
    pub fn source(&mut self, stream: Stream, fd: OwnedFd) {
        let credit = WINDOW;
        self.ends[stream as usize] = End::Source { fd, credit };
    }

    /// Writes what arrives of `stream` to `fd`.
    pub fn sink(&mut self, stream: Stream, fd: OwnedFd) {
        self.ends[stream as usize] = End::Sink(Sink::new(fd));
    }

    /// Says something to the peer. It goes out with the next [`step`](Self::step)s.
    pub fn say(&mut self, control: Control) {
        Frame::Control(control).encode(&mut self.out);
    }

    /// Whether everything said is on its way.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether everything that arrived was written to where it belongs.
    #[must_use]
    pub fn is_delivered(&self) -> bool {
        self.ends.iter().all(|end| match end {
            End::Sink(sink) => sink.fd.is_none() || sink.waiting.is_empty(),
            _ => true,
        })
    }

    /// Whether a source has something to read at this moment.
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.ends.iter().any(|end| {
            let End::Source { fd, .. } = end else {
                return false;
            };
            let mut ready = [PollFd::new(fd, PollFlags::IN)];
            let polled = poll(&mut ready, Some(&Timespec::default()));
            polled.is_ok() && ready[0].revents().contains(PollFlags::IN)
        })
    }

    /// Ends all sources: their peers see the end of the stream.
    pub fn end_sources(&mut self) {
        for stream in Stream::ALL {
            if matches!(self.ends[stream as usize], End::Source { .. }) {
                self.end_source(stream);
            }
        }
    }

    /// Waits until something can be done, and does it. `heard` gets what the peer says beside the
    /// streams. Returns which of `also`, at most [`MAX_ALSO`] descriptors, can be read.
    ///
    /// # Errors
    /// The channel cannot go on.
    pub fn step(
        &mut self,
        also: &[BorrowedFd<'_>],
        timeout: Option<&Timespec>,
        heard: &mut dyn FnMut(Control),
    ) -> Result<[bool; MAX_ALSO], MuxError> {
        let Ready {
            ends,
            channel,
            also,
        } = self.wait(also, timeout)?;
        for (stream, ready) in Stream::ALL.into_iter().zip(ends) {
            if !ready.is_empty() {
                self.serve(stream, ready)?;
            }
        }
        if channel.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.receive(heard)?;
        }
        self.give_credit();
        // Tried without asking: it is nearly always possible.
        self.transmit()?;
        // There may be room only now, and nothing else would come of it.
        if self.give_credit() {
            self.transmit()?;
        }
        Ok(also)
    }

    /// What is ready of the three streams, the channel, and what else is watched.
    fn wait(&self, also: &[BorrowedFd<'_>], timeout: Option<&Timespec>) -> Result<Ready, MuxError> {
        let room = self.out.len() < BACKLOG;
        let channel = if self.out.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        // A stream that must wait is left out altogether, or its peer's hanging up would end the wait
        // again and again.
        let mut watched = [const { None }; 3];
        for (watched, end) in watched.iter_mut().zip(&self.ends) {
            *watched = match end {
                End::Source { fd, credit } if room && *credit > 0 => Some((fd, PollFlags::IN)),
                End::Sink(Sink {
                    fd: Some(fd),
                    waiting,
                    ..
                }) if waiting.is_empty() => Some((fd, PollFlags::empty())),
                End::Sink(Sink { fd: Some(fd), .. }) => Some((fd, PollFlags::OUT)),
                _ => None,
            };
        }
        let mut fds: [PollFd<'_>; 1 + 3 + MAX_ALSO] =
            core::array::from_fn(|_| PollFd::new(&self.channel, channel));
        let mut count = 1;
        let also = also.iter().take(MAX_ALSO);
        let others = also.map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN));
        let streams = watched
            .iter()
            .flatten()
            .map(|(fd, flags)| PollFd::new(*fd, *flags));
        for fd in streams.chain(others) {
            fds[count] = fd;
            count += 1;
        }
        match poll(&mut fds[..count], timeout) {
            Ok(_) => {}
            // Nothing is ready, then.
            Err(Errno::INTR) => fds.iter_mut().for_each(PollFd::clear_revents),
            Err(errno) => return Err(MuxError::System(errno)),
        }
        let mut ready = fds[1..count].iter().map(PollFd::revents);
        let ends = watched.map(|watched| match watched {
            Some(_) => ready.next().unwrap_or(PollFlags::empty()),
            None => PollFlags::empty(),
        });
        let also = core::array::from_fn(|_| ready.next().is_some_and(|flags| !flags.is_empty()));
        Ok(Ready {
            ends,
            channel: fds[0].revents(),
            also,
        })
    }

    /// Moves what one stream has or takes.
    fn serve(&mut self, stream: Stream, ready: PollFlags) -> Result<(), MuxError> {
        match &mut self.ends[stream as usize] {
            End::None => Ok(()),
            End::Source { .. } => self.read_source(stream),
            End::Sink(sink) => {
                let gone = if ready.contains(PollFlags::OUT) {
                    !sink.write()
                } else {
                    ready.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
                };
                if gone {
                    // Nobody reads it: the peer need not go on.
                    sink.fd = None;
                    sink.waiting.clear();
                    Frame::Closed(stream).encode(&mut self.out);
                }
                self.tidy(stream);
                Ok(())
            }
        }
    }

    fn read_source(&mut self, stream: Stream) -> Result<(), MuxError> {
        let End::Source { fd, credit } = &mut self.ends[stream as usize] else {
            return Ok(());
        };
        let start = self.out.len();
        let most = MAX_PAYLOAD.min(*credit as usize);
        Frame::Data(stream, &[]).encode(&mut self.out);
        self.out.resize(start + HEADER + most, 0);
        let got = read(fd.as_fd(), &mut self.out[start + HEADER..]);
        let count = *got.as_ref().unwrap_or(&0);
        let bytes = u16::try_from(count).unwrap_or(0);
        self.out.truncate(start + HEADER + count);
        if count > 0 {
            self.out[start + 2..start + HEADER].copy_from_slice(&bytes.to_le_bytes());
            *credit -= u32::from(bytes);
            return Ok(());
        }
        self.out.truncate(start);
        match got {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A terminal whose last user has gone reads as an error: its end too.
            _ => self.end_source(stream),
        }
        Ok(())
    }

    fn end_source(&mut self, stream: Stream) {
        Frame::Eof(stream).encode(&mut self.out);
        self.ends[stream as usize] = End::None;
    }

    /// Closes a sink that has got all it will get.
    fn tidy(&mut self, stream: Stream) {
        let end = &mut self.ends[stream as usize];
        if let End::Sink(sink) = end
            && sink.ended
            && sink.waiting.is_empty()
        {
            *end = End::None;
        }
    }

    /// Tells the peer what the sinks have taken, unless it leaves unread what it was told before; whether
    /// there is news.
    fn give_credit(&mut self) -> bool {
        let mut news = false;
        for (stream, end) in Stream::ALL.into_iter().zip(&mut self.ends) {
            if let End::Sink(sink) = end
                && sink.owed >= PORTION
                && self.out.len() < BACKLOG
            {
                Frame::Credit(stream, sink.owed).encode(&mut self.out);
                sink.owed = 0;
                news = true;
            }
        }
        news
    }

    fn receive(&mut self, heard: &mut dyn FnMut(Control)) -> Result<(), MuxError> {
        let room = self.decoder.room();
        match read(&self.channel, room) {
            Ok(0) => return Err(MuxError::Closed),
            Ok(count) => self.decoder.fill(count),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(Errno::CONNRESET | Errno::PIPE | Errno::IO) => return Err(MuxError::Closed),
            Err(errno) => return Err(MuxError::System(errno)),
        }
        while let Some(frame) = self.decoder.next_frame().map_err(MuxError::Malformed)? {
            match frame {
                Frame::Data(stream, data) => match &mut self.ends[stream as usize] {
                    End::Sink(sink) => sink.take(data).map_err(MuxError::Malformed)?,
                    _ => return Err(MuxError::Malformed(Malformed("data where none is taken"))),
                },
                Frame::Eof(stream) => {
                    if let End::Sink(sink) = &mut self.ends[stream as usize] {
                        sink.ended = true;
                        // Not self.tidy: the decoder is still borrowed for the frame.
                        if sink.waiting.is_empty() {
                            self.ends[stream as usize] = End::None;
                        }
                    }
                }
                Frame::Credit(stream, more) => {
                    if let End::Source { credit, .. } = &mut self.ends[stream as usize] {
                        *credit = credit
                            .checked_add(more)
                            .filter(|credit| *credit <= WINDOW)
                            .ok_or(MuxError::Malformed(Malformed(
                                "credit for what it did not get",
                            )))?;
                    }
                }
                Frame::Closed(stream) => {
                    if let end @ End::Source { .. } = &mut self.ends[stream as usize] {
                        *end = End::None;
                    }
                }
                Frame::Control(control) => heard(control),
            }
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), MuxError> {
        while self.sent < self.out.len() {
            match write(&self.channel, &self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET | Errno::PIPE | Errno::IO) => return Err(MuxError::Closed),
                Err(errno) => return Err(MuxError::System(errno)),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
