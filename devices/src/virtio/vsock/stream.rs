//! What a socket of a connection has, or takes, at the moment: nothing here waits, whatever mode the
//! socket is in, and a peer that has left is an error, never a signal.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, recv};

use crate::iovec::{self, IoVec, MAX_BUFFERS, Received};

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// So many bytes; there may be more.
    Some(usize),
    /// So many bytes, and none are left: the next ones, or an end that is still to come, make an event.
    Last(usize),
    /// Nothing at the moment.
    Nothing,
    /// The peer sends no more.
    End,
}

/// Sends as much of `buffers` as the socket takes.
pub(super) fn send(to: &UnixStream, buffers: &[IoVec<'_>]) -> io::Result<usize> {
    let buffers = &buffers[..buffers.len().min(MAX_BUFFERS)];
    retry(|| iovec::send(to.as_fd(), buffers))
}

/// Sends as many of `bytes` as the socket takes.
pub(super) fn send_bytes(to: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(retry_on_intr(|| rustix::net::send(to, bytes, flags))?)
}

/// Fills `buffers`, which are not empty, as far as there are bytes.
pub(super) fn receive(from: &UnixStream, buffers: &[IoVec<'_>]) -> io::Result<Found> {
    let buffers = &buffers[..buffers.len().min(MAX_BUFFERS)];
    match retry(|| iovec::receive(from.as_fd(), buffers)) {
        Ok(Received { len: 0, .. }) => Ok(Found::End),
        Ok(Received { len, cut: false }) if len < iovec::total(buffers) => Ok(Found::Last(len)),
        Ok(Received { len, .. }) => Ok(Found::Some(len)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Found::Nothing),
        Err(error) => Err(error),
    }
}

/// Reads bytes off the socket without taking them, as far as there are any.
pub(super) fn peek(from: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    receive_bytes(from, bytes, RecvFlags::PEEK)
}

/// Takes bytes off the socket, as far as there are any.
pub(super) fn take(from: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    receive_bytes(from, bytes, RecvFlags::empty())
}

fn receive_bytes(from: &UnixStream, bytes: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    let flags = flags | RecvFlags::DONTWAIT;
    let (count, _) = retry_on_intr(|| recv(from, &mut *bytes, flags))?;
    Ok(count)
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
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
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::mem::GuestSlice;

    #[test]
    fn bytes_go_through_buffers_of_any_sizes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut a, mut b) = ([1, 2], [3, 4, 5]);
        let out = [&mut a[..], &mut b[..]].map(|bytes| IoVec::new(&GuestSlice::from(bytes)));
        assert_eq!(send(&ours, &out).unwrap(), 5);
        let (mut c, mut d) = ([0; 4], [0; 4]);
        let into = [&mut c[..], &mut d[..]].map(|bytes| IoVec::new(&GuestSlice::from(bytes)));
        assert_eq!(receive(&theirs, &into).unwrap(), Found::Last(5));
        assert_eq!(receive(&theirs, &into).unwrap(), Found::Nothing);
        send_bytes(&ours, &[9; 8]).unwrap();
        assert_eq!(receive(&theirs, &into).unwrap(), Found::Some(8));
        drop(ours);
        assert_eq!(receive(&theirs, &into).unwrap(), Found::End);
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
        let into = [IoVec::new(&GuestSlice::from(&mut bytes[..]))];
        assert_eq!(receive(&theirs, &into).unwrap(), Found::Some(3));
        assert_eq!(receive(&theirs, &into).unwrap(), Found::Last(3));
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
            let mut header: libc::msghdr = std::mem::zeroed();
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
