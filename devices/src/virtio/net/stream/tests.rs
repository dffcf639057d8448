//! A card's end of a stream against a peer that is not what it should be.

use std::io::{Read, Write};
use std::sync::Mutex;

use super::super::backend::HEADER;
use super::*;
use crate::mem::GuestSlice;

/// Counts how often it was ended.
#[derive(Debug, Clone, Default)]
struct Ended(Arc<Mutex<u32>>);

impl Peer for Ended {
    fn end(&mut self) -> String {
        *self.0.lock().unwrap() += 1;
        "the peer".to_owned()
    }
}

/// A stream, and the peer's end of it.
struct Case {
    stream: Stream,
    link: StreamLink,
    peer: UnixStream,
    ended: Ended,
    memory: Vec<Vec<u8>>,
}

impl Case {
    /// With receive buffers of these sizes.
    fn new(buffers: &[usize]) -> Self {
        let (socket, peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        let room = make_room(&peer).unwrap();
        let ended = Ended::default();
        let (stream, link) =
            Stream::new("card".to_owned(), socket, Box::new(ended.clone()), room).unwrap();
        Self {
            stream,
            link,
            peer,
            ended,
            memory: buffers.iter().map(|size| vec![0xaa; *size]).collect(),
        }
    }

    fn receive(&mut self) -> io::Result<Received> {
        let slices: Vec<_> = self
            .memory
            .iter_mut()
            .map(|bytes| GuestSlice::from(&mut bytes[..]))
            .collect();
        let buffers: Vec<_> = slices.iter().map(IoVec::new).collect();
        self.stream.receive(&buffers)
    }

    /// Receives a frame, which must be there.
    fn frame(&mut self) -> Vec<u8> {
        match self.receive().unwrap() {
            Received::Frame(len) => {
                let mut bytes = self.memory.concat();
                bytes.truncate(len);
                assert_eq!(bytes[..HEADER], [0; HEADER], "no virtio header");
                bytes.split_off(HEADER)
            }
            Received::TooLong(len) => panic!("{len} bytes are too many"),
        }
    }

    fn nothing(&mut self) {
        assert_eq!(self.receive().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    /// The link is down for good, and everybody knows.
    fn is_over(&mut self) {
        assert_eq!(self.receive().unwrap_err().kind(), ErrorKind::NetworkDown);
        let mut frame = header();
        frame.extend(body(60, 1));
        assert_eq!(self.send(frame).unwrap_err().kind(), ErrorKind::NetworkDown);
        let discarded = self.stream.discard();
        assert_eq!(discarded.unwrap_err().kind(), ErrorKind::NetworkDown);
        assert!(!self.link.link_is_up());
        assert_eq!(*self.ended.0.lock().unwrap(), 1);
    }

    /// Sends a frame in pieces of `sizes` and the rest.
    fn send_in(&mut self, mut frame: Vec<u8>, sizes: &[usize]) -> io::Result<()> {
        let mut rest = &mut frame[..];
        let mut slices = Vec::new();
        for size in sizes {
            let (piece, more) = std::mem::take(&mut rest).split_at_mut(*size);
            slices.push(GuestSlice::from(piece));
            rest = more;
        }
        slices.push(GuestSlice::from(rest));
        let buffers: Vec<_> = slices.iter().map(IoVec::new).collect();
        self.stream.send(&buffers)
    }

    fn send(&mut self, frame: Vec<u8>) -> io::Result<()> {
        self.send_in(frame, &[])
    }

    /// All that has arrived at the peer.
    fn arrived(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let end = self.peer.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::WouldBlock);
        bytes
    }
}

fn header() -> Vec<u8> {
    vec![0x55; HEADER]
}

/// A frame that is neither IPv4 nor IPv6.
fn body(len: usize, seed: u8) -> Vec<u8> {
    let mut body: Vec<u8> = (seed..=u8::MAX).cycle().take(len).collect();
    body[12..14].copy_from_slice(&[0x88, 0xb5]);
    body
}

fn prefixed(frame: &[u8]) -> Vec<u8> {
    let prefix = u32::try_from(frame.len()).unwrap().to_be_bytes();
    [&prefix, frame].concat()
}

#[test]
fn frames_arrive_one_by_one() {
    let mut case = Case::new(&[HEADER, 100, 1, 2000]);
    case.nothing();
    let frames = [body(14, 1), body(60, 2), body(1514, 3), body(61, 4)];
    let stream: Vec<u8> = frames.iter().flat_map(|frame| prefixed(frame)).collect();
    case.peer.write_all(&stream).unwrap();
    for frame in frames {
        assert_eq!(case.frame(), frame);
    }
    case.nothing();
    assert!(case.link.link_is_up());
}

#[test]
fn a_frame_torn_anywhere_arrives_whole() {
    let frames = [body(20, 1), body(30, 2)];
    let stream: Vec<u8> = frames.iter().flat_map(|frame| prefixed(frame)).collect();
    for at in 1..stream.len() {
        let mut case = Case::new(&[HEADER + 7, 9, 100]);
        case.peer.write_all(&stream[..at]).unwrap();
        let mut seen = Vec::new();
        while let Ok(Received::Frame(_)) = case.receive_and_keep(&mut seen) {}
        case.nothing();
        case.peer.write_all(&stream[at..]).unwrap();
        while let Ok(Received::Frame(_)) = case.receive_and_keep(&mut seen) {}
        assert_eq!(seen, frames, "torn at {at}");
    }
}

#[test]
fn a_frame_that_comes_byte_by_byte_arrives_whole() {
    let mut case = Case::new(&[HEADER + 1, 2, 3, 100]);
    let frame = body(50, 9);
    for byte in prefixed(&frame) {
        case.nothing();
        case.peer.write_all(&[byte]).unwrap();
    }
    assert_eq!(case.frame(), frame);
    case.nothing();
}

#[test]
fn a_frame_that_is_too_long_waits_for_room() {
    let mut case = Case::new(&[HEADER + 59]);
    let (long, short) = (body(60, 1), body(20, 2));
    case.peer.write_all(&prefixed(&long)).unwrap();
    case.peer.write_all(&prefixed(&short)).unwrap();
    for _ in 0..2 {
        assert_eq!(case.receive().unwrap(), Received::TooLong(HEADER + 60));
    }
    case.memory.push(vec![0; 1]);
    assert_eq!(case.frame(), long);
    assert_eq!(case.frame(), short);
}

#[test]
fn an_unwanted_frame_is_dropped_even_in_pieces() {
    let mut case = Case::new(&[HEADER + 100]);
    assert_eq!(
        case.stream.discard().unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let (unwanted, wanted) = (prefixed(&body(90, 1)), body(20, 2));
    case.peer.write_all(&unwanted[..2]).unwrap();
    assert_eq!(
        case.stream.discard().unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    case.peer.write_all(&unwanted[2..40]).unwrap();
    case.stream.discard().unwrap();
    case.nothing();
    case.peer.write_all(&unwanted[40..]).unwrap();
    case.peer.write_all(&prefixed(&wanted)).unwrap();
    assert_eq!(case.frame(), wanted);
}

#[test]
fn what_a_driver_had_half_of_is_not_given_to_the_next() {
    let mut case = Case::new(&[HEADER + 100]);
    let (half, whole) = (prefixed(&body(90, 1)), body(20, 2));
    case.peer.write_all(&half[..50]).unwrap();
    case.nothing();
    case.stream.restart();
    case.peer.write_all(&half[50..]).unwrap();
    case.peer.write_all(&prefixed(&whole)).unwrap();
    assert_eq!(case.frame(), whole);

    // A frame of which only the length came is nobody's yet.
    case.peer.write_all(&prefixed(&whole)[..4]).unwrap();
    case.nothing();
    case.stream.restart();
    case.peer.write_all(&whole).unwrap();
    assert_eq!(case.frame(), whole);
}

#[test]
fn impossible_lengths_end_the_link() {
    for len in [0, 1, 13, 65550, 1 << 20, u32::MAX] {
        let mut case = Case::new(&[HEADER + 70000]);
        case.peer.write_all(&prefixed(&body(60, 1))).unwrap();
        case.peer.write_all(&u32::to_be_bytes(len)).unwrap();
        assert_eq!(case.frame().len(), 60, "what came before is good");
        case.is_over();
        case.is_over();
    }
}

#[test]
fn the_longest_packet_there_is_fits() {
    let mut case = Case::new(&[HEADER + 70000]);
    let frame = body(65549, 1);
    // More than the socket takes at once, perhaps.
    let stream = prefixed(&frame);
    let mut rest = &stream[..];
    loop {
        match case.peer.write(rest) {
            Ok(sent) => rest = &rest[sent..],
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        if rest.is_empty() {
            break;
        }
        case.nothing();
    }
    assert!(case.frame() == frame);
}

#[test]
fn a_peer_that_goes_takes_the_link_along() {
    let mut case = Case::new(&[HEADER + 100]);
    case.peer.write_all(&prefixed(&body(60, 1))[..30]).unwrap();
    case.nothing();
    (case.peer, _) = UnixStream::pair().unwrap();
    case.is_over();

    // Sending finds out too, and no signal comes of it.
    let mut case = Case::new(&[HEADER + 100]);
    (case.peer, _) = UnixStream::pair().unwrap();
    let frame = [header(), body(60, 1)].concat();
    assert_eq!(case.send(frame).unwrap_err().kind(), ErrorKind::NetworkDown);
    case.is_over();
}

#[test]
fn frames_are_sent_behind_their_length() {
    let mut case = Case::new(&[]);
    let frames = [
        body(14, 1),
        body(53, 2),
        body(54, 3),
        body(55, 4),
        body(65535, 5),
    ];
    for frame in &frames {
        for sizes in [&[][..], &[HEADER], &[1, HEADER - 1, 3], &[HEADER + 14]] {
            case.send_in([header(), frame.clone()].concat(), sizes)
                .unwrap();
            assert!(
                case.arrived() == prefixed(frame),
                "{} in {sizes:?}",
                frame.len()
            );
        }
    }
}

#[test]
fn what_the_peer_would_take_amiss_is_not_sent() {
    let mut case = Case::new(&[HEADER + 100]);
    for len in [0, 1, 13, 65536, 70000] {
        let frame = [header(), vec![1; len]].concat();
        assert_eq!(
            case.send(frame).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
    let pieces = vec![1; HEADER + 1300];
    let sizes = vec![1; HEADER + 1290];
    let error = case.send_in(pieces, &sizes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    // An IPv4 packet to 127.0.0.1, in pieces that part its address.
    let mut loopback = [header(), body(60, 1)].concat();
    loopback[HEADER + 12..HEADER + 14].copy_from_slice(&[8, 0]);
    loopback[HEADER + 30..HEADER + 34].copy_from_slice(&[127, 0, 0, 1]);
    for sizes in [&[][..], &[HEADER + 13], &[HEADER + 32, 1]] {
        let error = case.send_in(loopback.clone(), sizes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
    assert!(case.arrived().is_empty());
    assert!(case.link.link_is_up(), "only these frames were lost");
}

#[test]
fn a_frame_sent_in_part_is_finished_first() {
    let mut case = Case::new(&[HEADER + 100]);
    let frame = |seed| [header(), body(60_000, seed)].concat();
    let mut expected = Vec::new();
    let mut seed = 0;
    while case.send(frame(seed)).is_ok() {
        expected.extend(prefixed(&body(60_000, seed)));
        seed += 1;
    }
    assert_eq!(
        case.send(frame(seed)).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    // The peer reads; the rest goes with the next frame, or before.
    let mut arrived = case.arrived();
    assert!(arrived.len() < expected.len(), "the last one went in part");
    case.stream.flush();
    arrived.extend(case.arrived());
    assert!(arrived == expected, "after {seed} frames");
    case.send(frame(7)).unwrap();
    assert!(case.arrived() == prefixed(&body(60_000, 7)));
}

/// A segment of TCP without options or data, in IPv4 from 10.0.2.15 to 10.0.2.2.
fn segment(flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
    let mut frame = body(14, 0);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend([10, 0, 2, 15, 10, 0, 2, 2]);
    frame.extend([0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, flags]);
    frame.extend(window.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(options);
    frame
}

#[test]
fn all_that_a_window_allows_has_room() {
    const SHIFT: u8 = 10;
    for segment_size in [1514, 9014, 65534] {
        let mut case = Case::new(&[HEADER + 70000]);
        let mut send = |frame| case.send([header(), frame].concat()).unwrap();
        send(segment(2, 64240, &[2, 4, 255, 0, 1, 3, 3, SHIFT]));
        // The guest has room for 48 MiB, in units of 1 KiB.
        send(segment(16, 49152, &[]));
        let stream = case.arrived();
        let acknowledgement = &stream[stream.len() - 54..];
        let window = u16::from_be_bytes([acknowledgement[48], acknowledgement[49]]);
        let window = usize::from(window) << SHIFT;
        assert!(window >= 64 << 10, "{window} bytes are too few");
        // As passt does: in one go, and what does not go is lost.
        let frames = window / segment_size;
        let burst = prefixed(&body(segment_size, 1)).repeat(frames);
        let sent = case.peer.write(&burst).unwrap();
        assert_eq!(sent, burst.len(), "of segments of {segment_size}");
        for _ in 0..frames {
            assert_eq!(case.frame().len(), segment_size);
        }
        case.nothing();
        // And one by one.
        for _ in 0..frames {
            let frame = prefixed(&body(segment_size, 1));
            assert_eq!(case.peer.write(&frame).unwrap(), frame.len());
        }
    }
}

impl Case {
    /// Receives into `seen`.
    fn receive_and_keep(&mut self, seen: &mut Vec<Vec<u8>>) -> io::Result<Received> {
        let received = self.receive()?;
        if let Received::Frame(len) = received {
            seen.push(self.memory.concat()[HEADER..len].to_vec());
        }
        Ok(received)
    }
}
