//! What a guest has sent and the host side has not taken yet.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;

use super::credit::WINDOW;
use super::stream;
use crate::iovec::{self, IoVec};

/// Bytes that wait for a socket to take them: at most [`WINDOW`], and no memory while there are none.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: VecDeque<u8>,
}

impl Backlog {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes wait.
    pub(super) fn len(&self) -> u32 {
        // At most WINDOW.
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    /// How many more there is room for.
    pub(super) fn room(&self) -> u32 {
        WINDOW.saturating_sub(self.len())
    }

    /// Puts `buffers` without their first `skip` bytes behind the others, as far as there is room.
    pub(super) fn push(&mut self, buffers: &[IoVec<'_>], mut skip: usize) {
        if self.bytes.capacity() == 0 {
            // All of it at once: grown step by step it could become twice as large. The host gives it
            // memory only as it is filled.
            self.bytes.reserve_exact(WINDOW as usize);
        }
        let mut chunk = [0; 4096];
        loop {
            let room = chunk.len().min(self.room() as usize);
            let count = iovec::gather(buffers, skip, &mut chunk[..room]);
            if count == 0 {
                return;
            }
            self.bytes.extend(&chunk[..count]);
            skip += count;
        }
    }

    /// Gives the socket as much as it takes; how many bytes that were.
    pub(super) fn flush(&mut self, to: &UnixStream) -> io::Result<u32> {
        let before = self.len();
        while !self.bytes.is_empty() {
            let (first, _) = self.bytes.as_slices();
            match stream::send_bytes(to, first) {
                Ok(count) => drop(self.bytes.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let flushed = before - self.len();
        if self.bytes.is_empty() {
            *self = Self::default();
        }
        Ok(flushed)
    }

    /// Drops all of it; how many bytes that were.
    pub(super) fn clear(&mut self) -> u32 {
        std::mem::take(self).len()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::mem::GuestSlice;

    #[test]
    fn it_takes_a_window_and_no_more() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut backlog = Backlog::default();
        let mut bytes = vec![7; 100_000];
        for _ in 0..4 {
            backlog.push(&[IoVec::new(&GuestSlice::from(&mut bytes[..]))], 0);
        }
        assert_eq!((backlog.len(), backlog.room()), (WINDOW, 0));
        assert_eq!(backlog.bytes.capacity(), WINDOW as usize);
        let taken = backlog.flush(&ours).unwrap();
        assert!(taken > 0 && taken < WINDOW, "{taken}");
        assert_eq!(backlog.len(), WINDOW - taken);
        assert_eq!(backlog.clear(), WINDOW - taken);
        assert_eq!(backlog.bytes.capacity(), 0);
    }

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut backlog = Backlog::default();
        let mut expected: Vec<u8> = Vec::new();
        let mut seen: Vec<u8> = Vec::new();
        for round in 0..60u8 {
            let mut one = vec![round; 30_000 + usize::from(round)];
            let mut two = [round ^ 0xff; 3];
            expected.extend(&one[1..]);
            expected.extend(&two);
            let buffers =
                [&mut one[..], &mut two[..]].map(|bytes| IoVec::new(&GuestSlice::from(bytes)));
            backlog.push(&buffers, 1);
            while !backlog.is_empty() {
                backlog.flush(&ours).unwrap();
                // In small steps, so that the ring wraps.
                let mut some = [0; 5000];
                if let Ok(count) = theirs.read(&mut some) {
                    seen.extend(&some[..count]);
                }
                if backlog.room() > 60_000 {
                    break;
                }
            }
        }
        backlog.flush(&ours).unwrap();
        while !backlog.is_empty() || seen.len() < expected.len() {
            let mut some = [0; 50_000];
            if let Ok(count) = theirs.read(&mut some) {
                seen.extend(&some[..count]);
            }
            backlog.flush(&ours).unwrap();
        }
        assert!(seen == expected);
    }

    #[test]
    fn a_peer_that_has_left_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let mut backlog = Backlog::default();
        backlog.push(&[IoVec::new(&GuestSlice::from(&mut [1, 2, 3][..]))], 0);
        let error = backlog.flush(&ours).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}
