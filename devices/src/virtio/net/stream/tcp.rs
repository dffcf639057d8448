//! The guest's TCP segments, as far as their windows and sizes go: RFC 9293 §3.1, in IPv4 (RFC 791) or
//! IPv6 (RFC 8200).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ETHERNET;

/// Bytes of a frame that have to be seen: up to the end of the longest TCP header behind the longest
/// IPv4 header.
pub(super) const SEEN: usize = ETHERNET + 60 + 60;

/// A TCP header without options.
const HEADER: usize = 20;
/// IANA protocol number of TCP.
const PROTOCOL: u8 = 6;
/// RFC 7323 §2.3: the largest scale of a window.
pub(super) const LARGEST_SHIFT: u8 = 14;

/// Flags.
pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 1 << 1;
pub(super) const RST: u8 = 1 << 2;

/// What tells a connection from the others of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Connection {
    pub port: u16,
    pub peer: (IpAddr, u16),
}

/// The beginning of a segment, with a whole TCP header but for options.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    peer: IpAddr,
    tcp: &'a mut [u8],
}

impl<'a> Segment<'a> {
    /// The segment in the frame that begins with `front`, whole or the first fragment.
    pub(super) fn of(front: &'a mut [u8]) -> Option<Self> {
        let (kind, packet) = front.get_mut(ETHERNET - 2..)?.split_first_chunk_mut()?;
        let (peer, header) = match *kind {
            // IPv4: the header's length in words, the fragment's offset, the protocol, the destination.
            [0x08, 0x00] => {
                let [length, .., f0, f1, _, protocol] = *packet.first_chunk::<10>()?;
                let words = usize::from(length & 0xf);
                let first = u16::from_be_bytes([f0, f1]) & 0x1fff == 0;
                let header = (first && protocol == PROTOCOL && words >= 5).then_some(4 * words)?;
                let to: [u8; 4] = *packet.get(16..)?.first_chunk()?;
                (Ipv4Addr::from(to).into(), header)
            }
            // IPv6: nobody puts other headers between.
            [0x86, 0xdd] => {
                let header = (*packet.get(6)? == PROTOCOL).then_some(40)?;
                let to: [u8; 16] = *packet.get(24..)?.first_chunk()?;
                (Ipv6Addr::from(to).into(), header)
            }
            _ => return None,
        };
        let tcp = packet.get_mut(header..)?;
        (tcp.len() >= HEADER).then_some(Self { peer, tcp })
    }

    pub(super) fn connection(&self) -> Connection {
        Connection {
            port: self.word(0),
            peer: (self.peer, self.word(2)),
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.tcp[13] & flag != 0
    }

    /// In units of the connection's scale.
    pub(super) fn window(&self) -> u16 {
        self.word(14)
    }

    pub(super) fn set_window(&mut self, window: u16) {
        self.set_word(14, window);
    }

    /// What a SYN says that windows will be shifted by: RFC 7323 §2.2.
    pub(super) fn window_shift(&self) -> u8 {
        let shift = self.option([3, 3]).and_then(|at| self.tcp.get(at));
        shift.map_or(0, |shift| (*shift).min(LARGEST_SHIFT))
    }

    /// Lets the segments that come in return have at most so many bytes, where a SYN allows more: RFC 9293
    /// §3.7.1.
    pub(super) fn limit_segments(&mut self, bytes: u16) {
        if let Some(at) = self.option([2, 4])
            && at + 2 <= self.tcp.len()
            && self.word(at) > bytes
        {
            self.set_word(at, bytes);
        }
    }

    /// Where the value of the option begins that has this kind and length. Options are one byte, or a kind,
    /// a length and a value: RFC 9293 §3.1.
    fn option(&self, wanted: [u8; 2]) -> Option<usize> {
        let end = 4 * usize::from(self.tcp[12] >> 4);
        let options = self.tcp.get(..end.min(self.tcp.len()))?;
        let mut at = HEADER;
        loop {
            at += match *options.get(at..)? {
                [kind, length, _, ..] if [kind, length] == wanted => return Some(at + 2),
                [] | [0, ..] | [_] => return None,
                [1, ..] => 1,
                [_, length, ..] => usize::from(length.max(2)),
            }
        }
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.tcp[at], self.tcp[at + 1]])
    }

    /// Changes two bytes, and the checksum with them: RFC 1624 §3.
    fn set_word(&mut self, at: usize, new: u16) {
        // Of two of the words that the sum is over, each has one byte.
        let aligned = |word: u16| {
            if at.is_multiple_of(2) {
                word
            } else {
                word.swap_bytes()
            }
        };
        let [old, sum] = [self.word(at), self.word(16)];
        let sum = u32::from(!sum) + u32::from(!aligned(old)) + u32::from(aligned(new));
        // Twice: the first carry may bring another.
        let fold = |sum: u32| (sum >> 16) + (sum & 0xffff);
        let sum = u16::try_from(fold(fold(sum))).unwrap_or(u16::MAX);
        self.tcp[at..at + 2].copy_from_slice(&new.to_be_bytes());
        self.tcp[16..18].copy_from_slice(&(!sum).to_be_bytes());
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A segment size of 65496, and a window scale of 7.
    pub(crate) const OPTIONS: [u8; 8] = [2, 4, 0xff, 0xd8, 1, 3, 3, 7];

    /// A segment of the guest's port 5000, in an IPv4 packet with `words` of header.
    pub(crate) fn ipv4(words: u8, flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xee; 12];
        frame.extend([8, 0, 0x40 | words, 0, 0, 0, 0, 0, 0x40, 0, 64, 6]);
        frame.resize(ETHERNET + 4 * usize::from(words), 7);
        frame.extend(tcp(flags, window, options));
        frame
    }

    pub(crate) fn ipv6(flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xee; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        frame.resize(ETHERNET + 40, 7);
        frame.extend(tcp(flags, window, options));
        frame
    }

    /// From port 5000, with a right checksum where the pseudo header is nothing.
    pub(crate) fn tcp(flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
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
    pub(crate) fn sum(bytes: &[u8]) -> u16 {
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
}

#[cfg(test)]
mod tests {
    use super::testing::{OPTIONS, ipv4, ipv6, sum, tcp};
    use super::*;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(7, 7, 7, 7));

    #[test]
    fn headers_of_all_lengths_are_found() {
        for words in 5..=15 {
            let mut frame = ipv4(words, SYN, 64240, &OPTIONS);
            let segment = Segment::of(&mut frame).unwrap();
            let peer = (PEER, 80);
            assert_eq!(segment.connection(), Connection { port: 5000, peer });
            assert!(segment.has(SYN) && !segment.has(RST));
            assert_eq!((segment.window(), segment.window_shift()), (64240, 7));
        }
        let mut frame = ipv6(16, 50000, &[]);
        let segment = Segment::of(&mut frame).unwrap();
        assert_eq!(segment.connection().peer.0, Ipv6Addr::from([7; 16]));
        assert_eq!((segment.window(), segment.window_shift()), (50000, 0));
    }

    #[test]
    fn the_checksum_follows_a_change() {
        for from in [0, 1, 1600, 0x7fff, 0x8000, 0xfffe, 0xffff] {
            for to in [0, 1, 1600, 0x7fff, 0x8000, 0xfffe, 0xffff] {
                let mut frame = ipv4(5, 16, from, &[]);
                let mut segment = Segment::of(&mut frame).unwrap();
                segment.set_window(to);
                assert_eq!(segment.window(), to);
                assert_eq!(sum(&frame[34..]), 0xffff, "from {from} to {to}");
            }
        }
    }

    #[test]
    fn segments_are_limited_where_a_syn_allows_more() {
        for (options, expected) in [
            (&[2, 4, 0xff, 0xd8][..], &[2, 4, 0x12, 0x34][..]),
            // At an odd place, and at the end.
            (
                &[1, 2, 4, 0xff, 0xd8, 0, 0, 0],
                &[1, 2, 4, 0x12, 0x34, 0, 0, 0],
            ),
            (&[1, 1, 3, 3, 7, 2, 4, 0x99], &[1, 1, 3, 3, 7, 2, 4, 0x99]),
            (&[2, 4, 0x12, 0x33], &[2, 4, 0x12, 0x33]),
            (&[2, 3, 0xff, 0xd8], &[2, 3, 0xff, 0xd8]),
            (&[0, 2, 4, 0xff], &[0, 2, 4, 0xff]),
        ] {
            let mut frame = ipv4(5, SYN, 64240, options);
            Segment::of(&mut frame).unwrap().limit_segments(0x1234);
            assert_eq!(frame[54..], *expected);
            assert_eq!(sum(&frame[34..]), 0xffff, "{options:?}");
        }
    }

    #[test]
    fn options_that_make_no_sense_are_no_scale() {
        let shift = |tcp: &mut [u8]| Segment { peer: PEER, tcp }.window_shift();
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
            assert!(shift(&mut tcp) <= LARGEST_SHIFT, "{options:?}");
            tcp[12] = 0;
            assert_eq!(shift(&mut tcp), 0, "a header without room for options");
        }
        let mut tcp = tcp(SYN, 1, &[3, 3, 255, 0]);
        assert_eq!(shift(&mut tcp), LARGEST_SHIFT);
        tcp.truncate(22);
        assert_eq!(shift(&mut tcp), 0);
    }

    #[test]
    fn what_is_not_tcp_is_no_segment() {
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
        for mut frame in [udp, fragment, arp, behind_options, impossible] {
            assert!(Segment::of(&mut frame).is_none());
        }
        // Nor what is cut off anywhere.
        for frame in [ipv4(5, 16, 65535, &[]), ipv6(16, 65535, &[])] {
            for len in 0..frame.len() {
                assert!(Segment::of(&mut frame[..len].to_vec()).is_none());
            }
        }
    }
}
