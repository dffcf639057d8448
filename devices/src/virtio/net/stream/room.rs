//! How much the other end may send before the guest has seen it: what the socket between them has room for.
//!
//! A peer that makes TCP segments sends as many as the guest's window allows. Those that the socket has no
//! room for are lost, and passt of 2023 takes them as sent: it is back for them two seconds later, with as
//! much as fits then, and after a few times it resets the connection. A guest's window is megabytes, and
//! the socket of an ordinary user has room for some 400 KiB. So the windows in the guest's segments are
//! made no larger than that on their way out (RFC 9293 §3.8.6: a sender is to cope with windows that
//! shrink). Connections that are in use share the room.
//!
//! A guest that lies about its windows harms its own connections.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::ETHERNET;

/// The largest buffer worth having.
const LARGEST: usize = 4 << 20;

/// Bytes of a frame that have to be seen: up to the end of the longest TCP header (RFC 9293 §3.1) behind
/// the longest IPv4 header (RFC 791 §3.1).
pub(super) const SEEN: usize = ETHERNET + 60 + 60;

/// A connection that has sent nothing for so long does not count.
const SLICE: Duration = Duration::from_millis(250);
/// Less is not worth a segment.
const LEAST: u32 = 4096;

/// A TCP header without options.
const TCP: usize = 20;
/// IANA protocol number of TCP.
const PROTOCOL: u8 = 6;
const SYN: u8 = 1 << 1;

/// Gives the peer's end of a stream as large a buffer to send from as it may have, and says how many bytes
/// can always be put there.
///
/// # Errors
/// This is no socket.
pub fn make_room(peer: &UnixStream) -> io::Result<u32> {
    // Cut to net.core.wmem_max, and doubled for what the kernel has beside the bytes: socket(7). Short
    // segments take that much indeed.
    let now = sockopt::socket_send_buffer_size(peer)?;
    sockopt::set_socket_send_buffer_size(peer, LARGEST.max(now / 2))?;
    let size = sockopt::socket_send_buffer_size(peer)?;
    Ok(u32::try_from(size / 2).unwrap_or(u32::MAX))
}

/// The windows of one guest.
pub(super) struct Room {
    /// Bytes for all connections together.
    bytes: u32,
    /// By the guest's port, which connections have in common that are those of one listener, mostly: what
    /// the guest shifts its window by, as it said when the connection began (RFC 7323 §2.2).
    shifts: Box<[u8]>,
    /// By the port as well: the slice in which it last sent something. Both are zeroes that take no memory
    /// before they are written.
    slices: Box<[u32]>,
    start: Instant,
    /// The slice of time that is now, from 1 on.
    slice: u32,
    /// Ports that sent something in it.
    now: u32,
    /// And in the one before.
    before: u32,
}

impl Room {
    pub(super) fn new(bytes: u32) -> Self {
        Self {
            bytes,
            shifts: vec![0; 1 << 16].into(),
            slices: vec![0; 1 << 16].into(),
            start: Instant::now(),
            slice: 1,
            now: 0,
            before: 0,
        }
    }

    /// Limits the window in the frame that begins with `front`, if it is one of TCP.
    pub(super) fn limit(&mut self, front: &mut [u8]) {
        if let Some(tcp) = segment(front) {
            self.limit_segment(tcp, self.start.elapsed());
        }
    }

    /// As [`limit`](Self::limit), for a TCP header at a time.
    fn limit_segment(&mut self, tcp: &mut [u8], time: Duration) {
        let Some(&[s0, s1, .., flags, w0, w1, c0, c1, _, _]) = tcp.first_chunk::<TCP>() else {
            return;
        };
        let port = usize::from(u16::from_be_bytes([s0, s1]));
        let share = self.share(port, time);
        if flags & SYN != 0 {
            // Its own window is not scaled, and small.
            self.shifts[port] = window_shift(tcp);
            return;
        }
        let window = u16::from_be_bytes([w0, w1]);
        let limit = u16::try_from(share >> self.shifts[port]).unwrap_or(u16::MAX);
        // Zero would stop a connection of which the guest has said no such thing.
        let limit = limit.max(1);
        if window > limit {
            let checksum = adjusted(u16::from_be_bytes([c0, c1]), window, limit);
            tcp[14..16].copy_from_slice(&limit.to_be_bytes());
            tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
        }
    }

    /// The part of the room for a connection that sends something now.
    fn share(&mut self, port: usize, time: Duration) -> u32 {
        let slice = time.as_millis() / SLICE.as_millis() + 1;
        let slice = u32::try_from(slice).unwrap_or(u32::MAX);
        if slice != self.slice {
            let adjacent = slice == self.slice.saturating_add(1);
            self.before = if adjacent { self.now } else { 0 };
            (self.slice, self.now) = (slice, 0);
        }
        if self.slices[port] != slice {
            self.slices[port] = slice;
            self.now += 1;
        }
        let connections = self.now.max(self.before).max(1);
        (self.bytes / connections).max(LEAST)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// The TCP header and what comes behind it, of a frame that has one, whole or the first fragment.
fn segment(front: &mut [u8]) -> Option<&mut [u8]> {
    let packet = front.get_mut(ETHERNET - 2..)?;
    let (kind, packet) = packet.split_first_chunk_mut()?;
    let header = match *kind {
        // IPv4, RFC 791 §3.1: the header's length in words, the fragment's offset, the protocol.
        [0x08, 0x00] => {
            let [length, .., f0, f1, _, protocol] = *packet.first_chunk::<10>()?;
            let words = usize::from(length & 0xf);
            let first = u16::from_be_bytes([f0, f1]) & 0x1fff == 0;
            (first && protocol == PROTOCOL && words >= 5).then_some(4 * words)?
        }
        // IPv6, RFC 8200 §3: nobody puts other headers between.
        [0x86, 0xdd] => (*packet.get(6)? == PROTOCOL).then_some(40)?,
        _ => return None,
    };
    packet.get_mut(header..)
}

/// RFC 9293 §3.1: options are one byte, or a kind, a length and a value. Window scale is kind 3.
fn window_shift(tcp: &[u8]) -> u8 {
    let length = tcp.get(12).map_or(0, |byte| 4 * usize::from(byte >> 4));
    let mut options = tcp.get(TCP..length.min(tcp.len())).unwrap_or_default();
    loop {
        match *options {
            [3, 3, shift, ..] => return shift.min(14),
            [] | [0, ..] | [_] => return 0,
            [1, ..] => options = &options[1..],
            [_, length, ..] => options = options.get(usize::from(length.max(2))..).unwrap_or(&[]),
        }
    }
}

/// A checksum over what had `old` where it has `new`: RFC 1624 §3.
fn adjusted(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let [high, low] = [sum >> 16, sum & 0xffff];
    let sum = high + low;
    // Twice: the first carry may bring another.
    let sum = (sum >> 16) + (sum & 0xffff);
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u32 = 1024;

    /// A segment of the guest's, in an IPv4 packet with `words` of header.
    fn ipv4(words: u8, flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xee; 12];
        frame.extend([8, 0, 0x40 | words, 0, 0, 0, 0, 0, 0x40, 0, 64, 6]);
        frame.resize(ETHERNET + 4 * usize::from(words), 7);
        frame.extend(tcp(flags, window, options));
        frame
    }

    fn ipv6(flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xee; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        frame.resize(ETHERNET + 40, 7);
        frame.extend(tcp(flags, window, options));
        frame
    }

    /// From port 5000, with a right checksum where the pseudo header is nothing.
    fn tcp(flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
        let words = u8::try_from(5 + options.len() / 4).unwrap();
        let mut tcp = [5000u16.to_be_bytes(), 80u16.to_be_bytes()].concat();
        tcp.extend([1, 2, 3, 4, 5, 6, 7, 8, words << 4, flags]);
        tcp.extend(window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(options);
        let sum = (!sum(&tcp)).to_be_bytes();
        tcp[16..18].copy_from_slice(&sum);
        tcp
    }

    /// RFC 1071.
    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|word| match *word {
            [high, low] => u32::from(u16::from_be_bytes([high, low])),
            _ => 0,
        });
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum.try_into().unwrap()
    }

    const SCALE: [u8; 8] = [2, 4, 5, 0xb4, 1, 3, 3, 7];

    /// The window that is left of one of `window` units.
    fn left(room: &mut Room, mut frame: Vec<u8>, header: usize) -> u16 {
        room.limit(&mut frame);
        let tcp = &frame[header..];
        assert_eq!(sum(tcp), 0xffff, "the checksum is wrong");
        u16::from_be_bytes([tcp[14], tcp[15]])
    }

    #[test]
    fn a_window_is_as_large_as_the_room() {
        let mut room = Room::new(200 * KIB);
        room.limit(&mut ipv4(5, SYN, 64240, &SCALE));
        let mut limited = |window| left(&mut room, ipv4(5, 16, window, &[]), 34);
        assert_eq!(limited(0), 0, "the guest has no room");
        assert_eq!(limited(100), 100);
        assert_eq!(limited(1600), 1600);
        for window in [1601, 5000, 0x8000, 0xfffe, 0xffff] {
            assert_eq!(limited(window), 1600);
        }
    }

    #[test]
    fn headers_of_all_lengths_are_found() {
        for words in 5..=15 {
            let mut room = Room::new(128 * KIB);
            room.limit(&mut ipv4(words, SYN | 16, 64240, &SCALE));
            let header = ETHERNET + 4 * usize::from(words);
            let left = left(&mut room, ipv4(words, 16, 50000, &[1, 1, 1, 1]), header);
            assert_eq!(left, 1024);
        }
        let mut room = Room::new(128 * KIB);
        room.limit(&mut ipv6(SYN, 64240, &SCALE));
        assert_eq!(left(&mut room, ipv6(16, 50000, &[]), 54), 1024);
    }

    #[test]
    fn a_beginning_stays_as_it_is() {
        let mut room = Room::new(4 * KIB);
        let frame = ipv4(5, SYN, 64240, &SCALE);
        let mut same = frame.clone();
        room.limit(&mut same);
        assert_eq!(same, frame);
    }

    #[test]
    fn a_window_without_a_scale_is_in_bytes() {
        let mut room = Room::new(32 * KIB);
        room.limit(&mut ipv4(5, SYN, 64240, &SCALE));
        // The port's next connection.
        room.limit(&mut ipv4(5, SYN, 64240, &[2, 4, 5, 0xb4]));
        assert_eq!(left(&mut room, ipv4(5, 16, 65535, &[]), 34), 32768);
        // One that did not begin here.
        let mut room = Room::new(32 * KIB);
        assert_eq!(left(&mut room, ipv4(5, 16, 65535, &[]), 34), 32768);
    }

    #[test]
    fn options_that_make_no_sense_are_no_scale() {
        for options in [
            &[][..],
            &[3],
            &[3, 3],
            &[3, 0, 7, 0],
            &[9, 0, 3, 3],
            &[9, 1, 3, 3],
            &[9, 200, 3, 3, 7],
            &[0, 3, 3, 7],
        ] {
            let mut tcp = tcp(SYN, 1, &[]);
            tcp[12] = 0xf0;
            tcp.extend(options);
            let shift = window_shift(&tcp);
            assert!(shift <= 14, "{options:?}");
            tcp[12] = 0;
            assert_eq!(window_shift(&tcp), 0, "a header without room for options");
        }
        let mut tcp = tcp(SYN, 1, &[3, 3, 255, 0]);
        assert_eq!(window_shift(&tcp), 14, "RFC 7323 §2.3");
        tcp.truncate(22);
        assert_eq!(window_shift(&tcp), 0);
    }

    #[test]
    fn connections_share_the_room() {
        let mut room = Room::new(400 * KIB);
        let at = |port: usize, room: &mut Room, ms| room.share(port, Duration::from_millis(ms));
        assert_eq!(at(1, &mut room, 0), 400 * KIB);
        assert_eq!(at(1, &mut room, 1), 400 * KIB);
        assert_eq!(at(2, &mut room, 2), 200 * KIB);
        assert_eq!(at(1, &mut room, 3), 200 * KIB);
        // In the next slice too, until it is known who is left.
        assert_eq!(at(2, &mut room, 251), 200 * KIB);
        assert_eq!(at(2, &mut room, 501), 400 * KIB);
        assert_eq!(at(1, &mut room, 5000), 400 * KIB);
        for port in 0..1000 {
            at(port, &mut room, 5001);
        }
        assert_eq!(at(7, &mut room, 5002), LEAST);
    }

    #[test]
    fn what_is_not_tcp_stays_as_it_is() {
        let mut udp = ipv4(5, 16, 65535, &[]);
        udp[23] = 17;
        let mut fragment = ipv4(5, 16, 65535, &[]);
        fragment[21] = 9;
        let mut arp = ipv4(5, 16, 65535, &[]);
        arp[13] = 6;
        let mut behind_options = ipv6(16, 65535, &[]);
        behind_options[20] = 0;
        let mut impossible = ipv4(5, 16, 65535, &[]);
        impossible[14] = 0x44;
        for frame in [udp, fragment, arp, behind_options, impossible] {
            let mut same = frame.clone();
            Room::new(1).limit(&mut same);
            assert_eq!(same, frame);
        }
        // And what is cut off anywhere.
        for frame in [ipv4(5, 16, 65535, &[]), ipv6(16, 65535, &[])] {
            for len in 0..frame.len() {
                let mut cut = frame[..len].to_vec();
                Room::new(1).limit(&mut cut);
                assert_eq!(cut, frame[..len]);
            }
        }
    }
}
