//! Frames to the peer: one system call for each, and no waiting.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::super::backend::HEADER;
use super::room::Room;
use super::tcp::SEEN;
use super::{ETHERNET, PREFIX, cut, guard};
use crate::iovec::{self, IoVec, MAX_BUFFERS};
use crate::mem::GuestSlice;

/// Longer frames end the connection, or are lost: passt takes them for an attack.
const LONGEST: usize = 65535;

/// What is on its way.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// What the other end may send in return.
    room: Room,
    /// The part of a frame that the socket had no room for.
    rest: Vec<u8>,
    /// How much of it went since.
    gone: usize,
    /// Here for its allocation.
    frame: Vec<IoVec<'static>>,
}

impl Outgoing {
    pub(super) fn new(room: u32) -> Self {
        Self {
            room: Room::new(room),
            rest: Vec::new(),
            gone: 0,
            frame: Vec::new(),
        }
    }

    /// Sends what is left of the frame before.
    pub(super) fn flush(&mut self, socket: &UnixStream) -> io::Result<()> {
        while self.gone < self.rest.len() {
            let rest = GuestSlice::from(&mut self.rest[self.gone..]);
            self.gone += iovec::send(socket.as_fd(), &[IoVec::new(&rest)])?;
        }
        self.rest.clear();
        self.gone = 0;
        Ok(())
    }

    /// Sends a frame, which has a virtio header in front.
    pub(super) fn send(&mut self, socket: &UnixStream, frame: &[IoVec<'_>]) -> io::Result<()> {
        self.flush(socket)?;
        let len = iovec::total(frame).saturating_sub(HEADER);
        let refused = |kind, why: &str| Err(io::Error::new(kind, why));
        let Some(prefix) = u32::try_from(len)
            .ok()
            .filter(|_| (ETHERNET..=LONGEST).contains(&len))
        else {
            return refused(ErrorKind::InvalidInput, "a frame of an impossible length");
        };
        // The beginning is copied before it is looked at and changed: the guest may change it at any time.
        let mut front = [0; PREFIX + SEEN];
        front[..PREFIX].copy_from_slice(&prefix.to_be_bytes());
        let seen = iovec::gather(frame, HEADER, &mut front[PREFIX..]);
        let front = &mut front[..PREFIX + seen];
        self.room.limit(&mut front[PREFIX..]);
        if guard::is_for_loopback(&front[PREFIX..]) {
            return refused(
                ErrorKind::PermissionDenied,
                "the host's loopback is not for guests",
            );
        }
        let front = GuestSlice::from(front);
        let mut whole = iovec::recycle(std::mem::take(&mut self.frame));
        whole.push(IoVec::new(&front));
        cut(frame, HEADER + seen, len - seen, &mut whole);
        let sent = self.send_whole(socket, &whole);
        self.frame = iovec::recycle(whole);
        sent
    }

    /// Sends what there is room for, and keeps the rest.
    fn send_whole(&mut self, socket: &UnixStream, whole: &[IoVec<'_>]) -> io::Result<()> {
        if whole.len() > MAX_BUFFERS {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "a frame in too many pieces",
            ));
        }
        let sent = iovec::send(socket.as_fd(), whole)?;
        self.rest
            .resize(iovec::total(whole).saturating_sub(sent), 0);
        iovec::gather(whole, sent, &mut self.rest);
        Ok(())
    }
}
