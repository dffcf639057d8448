//! How much the other end may send before the guest has seen it: what the socket between them has room for.
//!
//! A peer that makes TCP segments sends as many as the guest's windows allow. Those that the socket has no
//! room for are lost, and passt of 2023 takes them as sent: it is back for them two seconds later, with as
//! much as fits then, and after a few times it resets the connection. A guest's window is megabytes, and
//! the socket of an ordinary user has room for some 400 KiB. So the windows in the guest's segments are
//! made smaller on their way out (RFC 9293 §3.8.6: a sender is to cope with windows that shrink), such
//! that all of them together are no larger than the room.
//!
//! ```text
//! │◄──────────────────────── room ───────────────────────►│
//! │ A's window  │ B's window │ C's  │   for the next one  │
//! ```
//!
//! Each connection has the same share, and one share is left for whoever comes. A newcomer gets what is
//! free, and more when the others have spoken again, and so made their windows smaller. A connection keeps
//! its share for a while after its last word: the peer still knows it, and may be waiting for its two
//! seconds to pass.
//!
//! A share has to hold more than one segment: Linux waits up to 40 ms with its acknowledgement of one, for
//! another that nobody may send. So the guest's beginnings of connections ask for smaller segments, too.
//!
//! A guest that lies about its windows harms its own connections.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::tcp::{Connection, FIN, LARGEST_SHIFT, RST, SYN, Segment};

/// The largest buffer worth having.
const LARGEST: usize = 4 << 20;

/// How finely time is taken.
const SLICE: Duration = Duration::from_millis(250);
/// A connection that has sent nothing for so many slices does not count.
const PATIENCE: u32 = 16;
/// The same of one that the guest has closed: most likely it is over.
const PATIENCE_CLOSED: u32 = 2;
/// So many segments fill the room.
const SEGMENTS: u32 = 48;
/// Smaller ones are not worth it: RFC 8200 §5, less headers.
const LEAST_SEGMENT: u32 = 1220;
/// As many connections are known, and no more memory is used.
const MOST: usize = 4096;

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
    /// Bytes of a segment.
    segment: u16,
    connections: HashMap<Connection, Known>,
    /// Connections that count, and the bytes that they may be sent.
    count: u32,
    given: u32,
    start: Instant,
    /// The slice of time that is now.
    slice: u32,
}

/// What is known of a connection.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// The guest shifts its window by this, as it said when the connection began.
    shift: u8,
    /// The guest sends no more.
    closed: bool,
    /// The slice in which it last sent something.
    last: u32,
    /// The window that the peer knows, in bytes. Zero where the connection does not count.
    window: u32,
}

impl Default for Known {
    /// One of which the beginning was not seen: it is taken for the worst.
    fn default() -> Self {
        Self {
            shift: LARGEST_SHIFT,
            closed: false,
            last: 0,
            window: 0,
        }
    }
}

impl Room {
    pub(super) fn new(bytes: u32) -> Self {
        // No host has more, and sums stay far from where they would not fit.
        let bytes = bytes.min(1 << 30);
        Self {
            bytes,
            segment: u16::try_from((bytes / SEGMENTS).max(LEAST_SEGMENT)).unwrap_or(u16::MAX),
            connections: HashMap::new(),
            count: 0,
            given: 0,
            start: Instant::now(),
            slice: 0,
        }
    }

    /// Limits the window in the frame that begins with `front`, if it is one of TCP.
    pub(super) fn limit(&mut self, front: &mut [u8]) {
        if let Some(segment) = Segment::of(front) {
            self.limit_segment(segment, self.start.elapsed());
        }
    }

    /// As [`limit`](Self::limit), for a segment at a time.
    fn limit_segment(&mut self, mut segment: Segment<'_>, time: Duration) {
        self.pass_time(time);
        let connection = segment.connection();
        let before = self.leave(&connection);
        if segment.has(RST) {
            return;
        }
        let mut known = before.unwrap_or_default();
        if segment.has(SYN) {
            segment.limit_segments(self.segment);
            known = Known {
                shift: segment.window_shift(),
                ..Known::default()
            };
        }
        known.closed |= segment.has(FIN);
        known.last = self.slice;
        // RFC 7323 §2.2: a SYN's own window is not scaled.
        let shift = if segment.has(SYN) { 0 } else { known.shift };
        let share = self.share(segment.has(FIN));
        // Zero would stop a connection of which the guest has said no such thing.
        let limit = u16::try_from(share >> shift).unwrap_or(u16::MAX).max(1);
        if segment.window() > limit {
            segment.set_window(limit);
        }
        // At most 65535 << 14.
        known.window = (u32::from(segment.window()) << shift).max(1);
        self.enter(connection, known);
    }

    /// The part of the room for a connection that sends something now, and is not counted.
    fn share(&self, last_words: bool) -> u32 {
        let free = self.bytes.saturating_sub(self.given);
        let fair = self.bytes / self.count.saturating_add(2);
        let least = self.segment.into();
        if last_words {
            least
        } else {
            fair.min(free).max(least)
        }
    }

    fn leave(&mut self, connection: &Connection) -> Option<Known> {
        let known = self.connections.remove(connection)?;
        if known.window > 0 {
            self.count -= 1;
            self.given -= known.window;
        }
        Some(known)
    }

    fn enter(&mut self, connection: Connection, known: Known) {
        if self.connections.len() >= MOST {
            self.connections.retain(|_, known| known.window > 0);
        }
        // One too many is not known next time, and has the smallest of windows then.
        if self.connections.len() < MOST {
            self.count += 1;
            self.given += known.window;
            self.connections.insert(connection, known);
        }
    }

    /// Connections that were silent for too long count no more.
    fn pass_time(&mut self, time: Duration) {
        let slice = u32::try_from(time.as_millis() / SLICE.as_millis()).unwrap_or(u32::MAX);
        if slice == self.slice {
            return;
        }
        self.slice = slice;
        (self.count, self.given) = (0, 0);
        for known in self.connections.values_mut() {
            let patience = match known.closed {
                true => PATIENCE_CLOSED,
                false => PATIENCE,
            };
            if known.window > 0 && slice - known.last <= patience {
                self.count += 1;
                self.given += known.window;
            } else {
                known.window = 0;
            }
        }
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("bytes", &self.bytes)
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tcp::testing::{OPTIONS, ipv4, ipv6};
    use super::*;

    const KIB: u32 = 1024;
    const ACK: u8 = 1 << 4;

    /// A guest's connections, told apart by the peer's port.
    struct Guest(Room);

    impl Guest {
        fn new(kib: u32) -> Self {
            Self(Room::new(kib * KIB))
        }

        /// The window, in bytes, that is left of 8 MiB in a segment to `port` at some millisecond.
        fn at(&mut self, ms: u64, port: u16, flags: u8) -> u32 {
            let options: &[u8] = if flags & SYN != 0 { &OPTIONS } else { &[] };
            let mut frame = ipv4(5, flags, 65535, options);
            frame[36..38].copy_from_slice(&port.to_be_bytes());
            let segment = Segment::of(&mut frame).unwrap();
            self.0.limit_segment(segment, Duration::from_millis(ms));
            let window = Segment::of(&mut frame).unwrap().window();
            u32::from(window) << if flags & SYN != 0 { 0 } else { 7 }
        }

        /// What the peer may send on all connections, if these are the windows it knows.
        fn begin(&mut self, ms: u64, ports: std::ops::Range<u16>) -> u32 {
            for port in ports.clone() {
                self.at(ms, port, SYN);
            }
            ports.map(|port| self.at(ms, port, ACK)).sum()
        }
    }

    #[test]
    fn one_connection_leaves_a_share_for_the_next() {
        let mut guest = Guest::new(192);
        assert_eq!(guest.at(0, 1, SYN), 65535, "SYN: without a scale");
        assert_eq!(guest.at(0, 1, ACK), 96 * KIB);
        guest.at(0, 2, SYN);
        assert_eq!(guest.at(0, 2, ACK), 64 * KIB);
        assert_eq!(guest.at(0, 1, ACK), 64 * KIB);
    }

    #[test]
    fn what_the_guest_says_of_less_stays() {
        let mut room = Room::new(192 * KIB);
        for mut frame in [
            ipv4(5, SYN, 64240, &[2, 4, 5, 0xb4, 1, 3, 3, 7]),
            ipv4(5, ACK, 0, &[]),
            ipv6(ACK, 1, &[]),
        ] {
            let same = frame.clone();
            room.limit(&mut frame);
            assert_eq!(frame, same);
        }
    }

    #[test]
    fn all_windows_together_fit() {
        const ROOM: u32 = 192 * KIB;
        for count in [2, 8, 40] {
            let mut guest = Guest::new(192);
            for ms in [0, 100, 300, 3000] {
                let all = match ms {
                    0 => guest.begin(0, 0..count),
                    _ => (0..count).map(|port| guest.at(ms, port, ACK)).sum(),
                };
                assert!(all <= ROOM, "{count} have {all} bytes after {ms} ms");
                // A newcomer finds room.
                let window = guest.begin(ms, count..count + 1);
                assert!(window >= ROOM / SEGMENTS / 128 * 128);
                guest.at(ms, count, RST);
            }
            // The peer may be back with all of it after two seconds.
            let first = guest.at(5900, 0, ACK);
            assert!(first <= ROOM / u32::from(count), "{first}");
        }
    }

    #[test]
    fn those_that_are_silent_or_over_make_room() {
        let mut guest = Guest::new(192);
        guest.begin(0, 0..8);
        assert!(guest.at(4100, 0, ACK) < 24 * KIB);
        assert_eq!(guest.at(4300, 0, ACK), 96 * KIB);
        // One that the guest ended counts for half a second, one that it broke off for none.
        guest.begin(5000, 8..9);
        assert_eq!(guest.at(5000, 8, FIN | ACK), 4 * KIB);
        assert_eq!(guest.at(5100, 0, ACK), 64 * KIB);
        assert_eq!(guest.at(6000, 0, ACK), 96 * KIB);
        guest.begin(6000, 9..10);
        guest.at(6000, 9, RST);
        assert_eq!(guest.at(6000, 0, ACK), 96 * KIB);
    }

    #[test]
    fn segments_are_a_small_part_of_the_room() {
        for (kib, expected) in [(1, 1220), (192, 4096), (4096, 65496)] {
            let mut frame = ipv4(5, SYN, 64240, &OPTIONS);
            Room::new(kib * KIB).limit(&mut frame);
            let size = u16::from_be_bytes([frame[56], frame[57]]);
            assert_eq!(size, expected);
        }
    }

    #[test]
    fn a_beginning_that_was_not_seen_is_taken_for_the_worst() {
        let mut guest = Guest::new(192);
        // Half of the room, in units of 16 KiB that may be of 128 bytes.
        assert_eq!(guest.at(0, 1, ACK), 6 * 128);
    }

    #[test]
    fn as_many_connections_as_a_guest_likes_take_no_more_memory() {
        let mut guest = Guest::new(192);
        for port in 0..u16::MAX {
            guest.at(0, port, SYN);
        }
        assert_eq!(guest.0.connections.len(), MOST);
        assert!(guest.0.given < u32::MAX / 2);
        // The first of them are known still, others are once these have been silent.
        assert_eq!(guest.at(0, 1, ACK), 4 * KIB);
        assert_eq!(guest.at(0, 60_000, ACK), 128);
        guest.at(5000, 60_000, SYN);
        assert_eq!(guest.at(5000, 60_000, ACK), 96 * KIB);
        assert_eq!(guest.0.connections.len(), 1);
    }
}
