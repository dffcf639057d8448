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
    /// shows only when it is read, and what does not fit would be lost. Made with the first read: a card that
    /// no driver uses needs none.
    spare: Vec<u8>,
    /// About how long frames have been lately. A frame is read into buffers for that and the spare, though
    /// there may be many more buffers: the kernel looks at each of them.
    usual: usize,
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
            spare: Vec::new(),
            usual: 0,
            waiting: None,
            list: Vec::new(),
        }
    }

    /// Reads a frame into the first of `buffers`, and the rest of it into the spare; how long it is, and how
    /// much of it the buffers took at most.
    fn read(&mut self, buffers: &[IoVec<'_>]) -> io::Result<(usize, usize)> {
        self.spare.resize(LARGEST, 0);
        let (front, covered) = front(buffers, self.usual);
        let mut list = iovec::recycle(std::mem::take(&mut self.list));
        list.extend(front);
        if covered < LARGEST {
            list.push(IoVec::new(&GuestSlice::from(&mut self.spare[..])));
        }
        let read = iovec::readv(self.fd.as_fd(), &list);
        self.list = iovec::recycle(list);
        let len = read.map_err(link_down)?;
        // One long frame is enough to expect another, and it takes many short ones to expect none.
        self.usual = len.max(self.usual - self.usual / 64);
        Ok((len, covered))
    }
}

/// The first of `buffers` that have `want` bytes together, and how many they have.
fn front<'b, 'm>(buffers: &'b [IoVec<'m>], want: usize) -> (&'b [IoVec<'m>], usize) {
    let (mut count, mut covered) = (0, 0);
    for buffer in buffers {
        if covered >= want {
            break;
        }
        count += 1;
        covered += buffer.len();
    }
    (&buffers[..count], covered)
}

impl NetBackend for TapQueue {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn restart(&mut self) {
        self.waiting = None;
    }

    fn receive(&mut self, buffers: &[IoVec<'_>]) -> io::Result<Received> {
        if let Some(frame) = &self.waiting {
            let len = frame.len();
            if len > iovec::total(buffers) {
                return Ok(Received::TooLong(len));
            }
            iovec::scatter(buffers, 0, frame);
            self.waiting = None;
            return Ok(Received::Frame(len));
        }
        let (len, covered) = self.read(buffers)?;
        if len <= covered {
            return Ok(Received::Frame(len));
        }
        let beyond = &self.spare[..len - covered];
        if len <= iovec::total(buffers) {
            iovec::scatter(buffers, covered, beyond);
            return Ok(Received::Frame(len));
        }
        let mut frame = vec![0; covered];
        iovec::gather(buffers, 0, &mut frame);
        frame.extend(beyond);
        self.waiting = Some(frame);
        Ok(Received::TooLong(len))
    }

    fn discard(&mut self) -> io::Result<()> {
        if self.waiting.take().is_none() {
            self.read(&[])?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn frames_fill_the_buffers_they_need_whatever_came_before() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut queue = TapQueue::new(ours.into());
        let short = std::iter::repeat_n(60, 300);
        let lens = [60, 9000, 60, 20_000, 1, 1024, 513].into_iter();
        for len in lens.clone().chain(short).chain(lens) {
            let sent: Vec<u8> = (0..=250).cycle().take(len).collect();
            theirs.send(&sent).unwrap();
            let mut memory = vec![[0xee; 512]; 40];
            let buffers: Vec<_> = memory
                .iter_mut()
                .map(|bytes| IoVec::new(&GuestSlice::from(&mut bytes[..])))
                .collect();
            assert_eq!(queue.receive(&buffers).unwrap(), Received::Frame(len));
            let bytes = memory.concat();
            assert_eq!(bytes[..len], sent, "{len} bytes");
            assert!(bytes[len..].iter().all(|byte| *byte == 0xee));
        }
    }
}
