//! Streams that can be told from damaged ones: bytes that look random, with their checksum behind them.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use rustix::net::{Shutdown, shutdown};

/// Bytes of a checksum.
const SUM: usize = 8;

/// FNV-1a, 64 bits.
#[derive(Debug, Clone, Copy)]
struct Checksum(u64);

impl Checksum {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// The next number that looks random, and depends on the state alone, which is not zero: xorshift64.
pub fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Fills `bytes` with what looks random and depends on the state alone.
pub fn noise(state: &mut u64, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random(state).to_le_bytes()[..chunk.len()]);
    }
}

/// Sends `len` bytes of noise and their checksum, and then no more.
///
/// # Errors
/// The stream does not take them.
pub fn send(stream: impl AsFd, seed: u64, len: u64) -> io::Result<()> {
    let mut file = File::from(stream.as_fd().try_clone_to_owned()?);
    let mut state = seed | 1 << 63;
    let mut sum = Checksum::new();
    let mut left = len;
    let mut bytes = vec![0; 16 << 10];
    while left > 0 {
        let now = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        noise(&mut state, &mut bytes[..now]);
        sum.add(&bytes[..now]);
        file.write_all(&bytes[..now])?;
        left -= now as u64;
    }
    file.write_all(&sum.0.to_le_bytes())?;
    Ok(shutdown(stream, Shutdown::Write)?)
}

/// Reads to the end; how many bytes there were, without their checksum.
///
/// # Errors
/// The stream fails, or what came is not what was sent.
pub fn receive(stream: impl AsFd) -> io::Result<u64> {
    let mut file = File::from(stream.as_fd().try_clone_to_owned()?);
    let mut sum = Checksum::new();
    let mut len = 0;
    // The last bytes may be the checksum.
    let mut held: Vec<u8> = Vec::new();
    let mut bytes = vec![0; 16 << 10];
    loop {
        let count = file.read(&mut bytes)?;
        if count == 0 {
            break;
        }
        held.extend(&bytes[..count]);
        let certain = held.len().saturating_sub(SUM);
        sum.add(&held[..certain]);
        len += certain as u64;
        held.drain(..certain);
    }
    if held == sum.0.to_le_bytes() {
        Ok(len)
    } else {
        let text = format!("the checksum of {len} bytes is wrong");
        Err(io::Error::new(ErrorKind::InvalidData, text))
    }
}

/// Sends and receives at the same time; how many bytes came.
///
/// # Errors
/// As for [`send`] and [`receive`].
pub fn exchange(stream: OwnedFd, seed: u64, len: u64) -> io::Result<u64> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(&stream, seed, len));
        let received = receive(&stream);
        let sent = sender.join();
        sent.unwrap_or_else(|_| Err(io::Error::other("the sender panicked")))?;
        received
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn both_ways_at_once_and_damage_is_seen() {
        for len in [0, 1, 7, 8, 9, 1 << 20] {
            let (one, two) = UnixStream::pair().unwrap();
            let other = thread::spawn(move || exchange(two.into(), 2, 10));
            assert_eq!(exchange(one.into(), 1, len).unwrap(), 10);
            assert_eq!(other.join().unwrap().unwrap(), len);
        }
        for damaged in [&b""[..], b"1234567", b"123456789"] {
            let (mut one, two) = UnixStream::pair().unwrap();
            one.write_all(damaged).unwrap();
            drop(one);
            assert!(receive(&two).is_err(), "{damaged:?}");
        }
    }
}
