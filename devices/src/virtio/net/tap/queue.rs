//! One queue of a tap: a descriptor that a frame is read from or written to at once.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use crate::iovec::{self, IoVec};
use crate::mem::GuestSlice;
use crate::virtio::net::backend::{NetBackend, Received};

/// More than any frame has: 64 KiB of packet, and headers.
const LARGEST: usize = (1 << 16) + 256;

/// A queue of a tap; or of anything else whose frames are read and written whole, header included.
#[derive(Debug)]
pub struct TapQueue {
    fd: OwnedFd,
    /// Where the end of a frame goes that is longer than the buffers it is read into. How long a frame is
    /// shows only when it is read, and what does not fit would be lost.
    spare: Vec<u8>,
    /// A frame that was longer than its buffers, whole.
    waiting: Option<Vec<u8>>,
    /// The buffers and the spare, here for its allocation.
    list: Vec<IoVec<'static>>,
}

impl TapQueue {
    /// A queue whose frames go through `fd`, which does not block.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            spare: vec![0; LARGEST],
            waiting: None,
            list: Vec::new(),
        }
    }

    /// Reads a frame into `buffers`, which have `room` bytes, and the rest of it into the spare.
    fn read(&mut self, buffers: &[IoVec<'_>], room: usize) -> io::Result<usize> {
        if room >= LARGEST {
            return iovec::readv(self.fd.as_fd(), buffers).map_err(link_down);
        }
        let mut list = iovec::recycle(std::mem::take(&mut self.list));
        list.extend(buffers);
        list.push(IoVec::new(&GuestSlice::from(&mut self.spare[..])));
        let read = iovec::readv(self.fd.as_fd(), &list);
        self.list = iovec::recycle(list);
        read.map_err(link_down)
    }
}

impl NetBackend for TapQueue {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn restart(&mut self) {
        self.waiting = None;
    }

    fn receive(&mut self, buffers: &[IoVec<'_>]) -> io::Result<Received> {
        let room = iovec::total(buffers);
        if let Some(frame) = &self.waiting {
            let len = frame.len();
            if len > room {
                return Ok(Received::TooLong(len));
            }
            iovec::scatter(buffers, 0, frame);
            self.waiting = None;
            return Ok(Received::Frame(len));
        }
        let len = self.read(buffers, room)?;
        let Some(beyond) = len.checked_sub(room).filter(|beyond| *beyond > 0) else {
            return Ok(Received::Frame(len));
        };
        let mut frame = vec![0; room];
        iovec::gather(buffers, 0, &mut frame);
        frame.extend(&self.spare[..beyond]);
        self.waiting = Some(frame);
        Ok(Received::TooLong(len))
    }

    fn discard(&mut self) -> io::Result<()> {
        if self.waiting.take().is_none() {
            self.read(&[], 0)?;
        }
        Ok(())
    }

    fn send(&mut self, frame: &[IoVec<'_>]) -> io::Result<()> {
        // A tap takes a frame as a whole.
        iovec::writev(self.fd.as_fd(), frame)
            .map(drop)
            .map_err(link_down)
    }
}

/// The errors of an interface that is down, and of one that is gone.
fn link_down(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EIO | libc::EBADFD) => ErrorKind::NetworkDown.into(),
        _ => error,
    }
}
