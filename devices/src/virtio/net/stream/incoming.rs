//! Frames from the peer. The length of one comes with the body of the one before, so that a frame of
//! many takes one system call.
//!
//! ```text
//! … body │ len │ body             │ len │ bo…
//!              └─ guest buffers ──┴─ 4 ─┘
//!                   one readv(2)
//! ```

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::super::backend::{HEADER, Received};
use super::{ETHERNET, PREFIX, cut};
use crate::iovec::{self, IoVec};
use crate::mem::GuestSlice;

/// The longest packet there is (RFC 791), and Ethernet's header.
const LONGEST: usize = 65535 + ETHERNET;

/// Where in the stream the card is.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// The next frame's length, as far as it came.
    prefix: [u8; PREFIX],
    /// How far that is.
    known: usize,
    /// How much of the frame's body came.
    have: usize,
    /// Nobody wants the frame.
    unwanted: bool,
    /// Where unwanted frames go.
    sink: Vec<u8>,
    /// Here for its allocation.
    room: Vec<IoVec<'static>>,
}

impl Incoming {
    /// The buffers of the time before are gone, and with them what they had of a frame.
    pub(super) fn restart(&mut self) {
        self.unwanted |= self.have > 0;
    }

    pub(super) fn receive(
        &mut self,
        socket: &UnixStream,
        buffers: &[IoVec<'_>],
    ) -> io::Result<Received> {
        self.skip_unwanted(socket)?;
        let len = self.length(socket)?;
        if iovec::total(buffers) < HEADER + len {
            return Ok(Received::TooLong(HEADER + len));
        }
        while self.have < len {
            self.read_body(socket, buffers, len)?;
        }
        self.have = 0;
        iovec::scatter(buffers, 0, &[0; HEADER]);
        Ok(Received::Frame(HEADER + len))
    }

    pub(super) fn discard(&mut self, socket: &UnixStream) -> io::Result<()> {
        self.skip_unwanted(socket)?;
        self.length(socket)?;
        self.unwanted = true;
        match self.skip_unwanted(socket) {
            // It is dropped, whenever the rest of it comes.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    /// Bytes of the frame that is under way or next.
    fn length(&mut self, mut socket: &UnixStream) -> io::Result<usize> {
        while self.known < PREFIX {
            self.known += some(socket.read(&mut self.prefix[self.known..])?)?;
        }
        usize::try_from(u32::from_be_bytes(self.prefix))
            .ok()
            .filter(|len| (ETHERNET..=LONGEST).contains(len))
            .ok_or_else(|| {
                let len = u32::from_be_bytes(self.prefix);
                let what = format!("the other end sent a frame of {len} bytes");
                io::Error::new(ErrorKind::InvalidData, what)
            })
    }

    /// Reads what there is of the body, and then of the next length.
    fn read_body(
        &mut self,
        socket: &UnixStream,
        buffers: &[IoVec<'_>],
        len: usize,
    ) -> io::Result<()> {
        let mut next = [0; PREFIX];
        let next_slice = GuestSlice::from(&mut next[..]);
        let mut room = iovec::recycle(std::mem::take(&mut self.room));
        let rest = len - self.have;
        cut(buffers, HEADER + self.have, rest, &mut room);
        room.push(IoVec::new(&next_slice));
        let count = iovec::readv(socket.as_fd(), &room);
        self.room = iovec::recycle(room);
        let count = some(count?)?;
        let body = count.min(rest);
        self.have += body;
        if body == rest {
            self.prefix = next;
            self.known = count - body;
        }
        Ok(())
    }

    /// Reads the rest of a frame that nobody wants.
    fn skip_unwanted(&mut self, mut socket: &UnixStream) -> io::Result<()> {
        if !self.unwanted {
            return Ok(());
        }
        let len = self.length(socket)?;
        self.sink.resize(LONGEST, 0);
        while self.have < len {
            self.have += some(socket.read(&mut self.sink[..len - self.have])?)?;
        }
        (self.unwanted, self.have, self.known) = (false, 0, 0);
        Ok(())
    }
}

/// Nothing, where something was to come, is the end of a stream.
fn some(count: usize) -> io::Result<usize> {
    match count {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}
