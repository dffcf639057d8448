//! Bytes straight between a socket and guest memory: sendmsg(2) and recvmsg(2) over guest slices.
//!
//! All the unsafe code of the vsock device. Calls never wait, whatever mode the socket is in, and a peer
//! that has left is an error, never a signal.

use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::{mem, ptr};

use crate::mem::GuestSlice;

/// The most buffers the kernel takes in one call: UIO_MAXIOV. What is beyond goes with the next one.
const MAX_BUFFERS: usize = 1024;

/// Guest buffers as the system calls take them.
#[derive(Debug)]
pub(super) struct Vector<'m> {
    parts: Vec<libc::iovec>,
    len: usize,
    /// Of whose memory the pointers are.
    _memory: PhantomData<GuestSlice<'m>>,
}

impl<'m> FromIterator<GuestSlice<'m>> for Vector<'m> {
    fn from_iter<T: IntoIterator<Item = GuestSlice<'m>>>(buffers: T) -> Self {
        let mut len = 0;
        let parts = buffers
            .into_iter()
            .take(MAX_BUFFERS)
            // Guest memory stays mapped while there are slices of it: the guard, which matters for
            // memory that is mapped per access, need not be kept.
            .map(|buffer| {
                len += buffer.len();
                libc::iovec {
                    iov_base: buffer.ptr_guard_mut().as_ptr().cast(),
                    iov_len: buffer.len(),
                }
            })
            .collect();
        Self {
            parts,
            len,
            _memory: PhantomData,
        }
    }
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// So many bytes, with which all buffers are filled: there may be more.
    Some(usize),
    /// So many bytes, and none are left: the next ones, or an end that is still to come, make an event.
    Last(usize),
    /// Nothing at the moment.
    Nothing,
    /// The peer sends no more.
    End,
}

/// Sends as much of `buffers` as the socket takes.
pub(super) fn send(to: &UnixStream, buffers: &mut Vector<'_>) -> io::Result<usize> {
    let header = buffers.header();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    retry(|| {
        // SAFETY: `header` points to the iovecs in `buffers`, which lives through the call, and they to
        // mapped guest memory, which outlives it by `'m`. The kernel only reads through them.
        check(unsafe { libc::sendmsg(to.as_raw_fd(), &header, flags) })
    })
}

/// Sends as many of `bytes` as the socket takes.
pub(super) fn send_bytes(to: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    retry(|| {
        // SAFETY: pointer and length are those of `bytes`, which the kernel only reads.
        check(unsafe { libc::send(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
    })
}

/// Fills `buffers`, which are not empty, as far as there are bytes.
pub(super) fn receive(from: &UnixStream, buffers: &mut Vector<'_>) -> io::Result<Found> {
    let mut header = buffers.header();
    let received = retry(|| {
        // SAFETY: as for sending; the kernel writes through the iovecs only during the call, and Rust has
        // no references to that memory, which the guest may change at any time anyway.
        check(unsafe { libc::recvmsg(from.as_raw_fd(), &mut header, libc::MSG_DONTWAIT) })
    });
    // A read also stops where descriptors came along (unix(7)), with more bytes behind them.
    let cut = header.msg_flags & libc::MSG_CTRUNC != 0;
    match received {
        Ok(0) => Ok(Found::End),
        Ok(count) if count < buffers.len && !cut => Ok(Found::Last(count)),
        Ok(count) => Ok(Found::Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Found::Nothing),
        Err(error) => Err(error),
    }
}

/// Reads bytes off the socket without taking them, as far as there are any.
pub(super) fn peek(from: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    receive_bytes(from, bytes, libc::MSG_PEEK)
}

/// Takes bytes off the socket, as far as there are any.
pub(super) fn take(from: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    receive_bytes(from, bytes, 0)
}

fn receive_bytes(from: &UnixStream, bytes: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    retry(|| {
        // SAFETY: pointer and length are those of `bytes`, which is borrowed for the call.
        check(unsafe {
            libc::recv(
                from.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                flags,
            )
        })
    })
}

impl Vector<'_> {
    fn header(&mut self) -> libc::msghdr {
        // SAFETY: a `msghdr` of zeroes is one without buffers, names and control data.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = match self.parts.is_empty() {
            true => ptr::null_mut(),
            false => self.parts.as_mut_ptr(),
        };
        // The type is the C library's: `size_t` or `int`.
        header.msg_iovlen = self.parts.len() as _;
        header
    }
}

fn check(transferred: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(transferred).map_err(|_| io::Error::last_os_error())
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn bytes_go_through_buffers_of_any_sizes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut a, mut b) = ([1, 2], [3, 4, 5]);
        let mut out: Vector<'_> = [&mut a[..], &mut b[..]]
            .into_iter()
            .map(GuestSlice::from)
            .collect();
        assert_eq!(send(&ours, &mut out).unwrap(), 5);
        let (mut c, mut d) = ([0; 4], [0; 4]);
        let mut into: Vector<'_> = [&mut c[..], &mut d[..]]
            .into_iter()
            .map(GuestSlice::from)
            .collect();
        assert_eq!(receive(&theirs, &mut into).unwrap(), Found::Last(5));
        assert_eq!(receive(&theirs, &mut into).unwrap(), Found::Nothing);
        send_bytes(&ours, &[9; 8]).unwrap();
        assert_eq!(receive(&theirs, &mut into).unwrap(), Found::Some(8));
        drop(ours);
        assert_eq!(receive(&theirs, &mut into).unwrap(), Found::End);
        drop(into);
        assert_eq!((c, d), ([9; 4], [9; 4]));
    }

    #[test]
    fn nothing_waits_and_nothing_is_a_signal() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut sent = 0;
        let error = loop {
            match send_bytes(&ours, &[0; 10_000]) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
        };
        assert!(sent > 0);
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert_eq!(
            take(&ours, &mut [0; 1]).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        drop(theirs);
        let error = send_bytes(&ours, &[0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_was_peeked_at_is_still_there() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"ab").unwrap();
        ours.write_all(b"cd").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(peek(&theirs, &mut bytes).unwrap(), 4);
        assert_eq!(take(&theirs, &mut bytes[..3]).unwrap(), 3);
        assert_eq!(&bytes[..4], b"abcd");
    }

    /// A peer that passes descriptors splits the stream at them; no byte after them may be missed.
    #[test]
    fn descriptors_along_the_way_hide_no_bytes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send_with_descriptor(&ours, b"one");
        send_bytes(&ours, b"two").unwrap();
        let mut bytes = [0; 16];
        let mut into: Vector<'_> = [GuestSlice::from(&mut bytes[..])].into_iter().collect();
        assert_eq!(receive(&theirs, &mut into).unwrap(), Found::Some(3));
        assert_eq!(receive(&theirs, &mut into).unwrap(), Found::Last(3));
    }

    fn send_with_descriptor(to: &UnixStream, bytes: &[u8]) {
        let mut part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut control = [0u64; 8];
        // SAFETY: a message of one buffer and one control message, both of which outlive the call; the
        // control buffer is aligned and large enough for one descriptor.
        unsafe {
            let mut header: libc::msghdr = mem::zeroed();
            header.msg_iov = &mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(4) as _;
            let message = libc::CMSG_FIRSTHDR(&header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(message)
                .cast::<libc::c_int>()
                .write_unaligned(0);
            assert!(libc::sendmsg(to.as_raw_fd(), &header, 0) > 0);
        }
    }
}
