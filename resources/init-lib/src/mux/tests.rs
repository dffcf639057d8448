//! Two muxes that talk to each other over a socket pair.

extern crate std;

use alloc::vec;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::fd::{AsFd, OwnedFd};
use rustix::pipe::pipe;

use super::*;

const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// A host and a guest, connected.
fn pair() -> (Mux, Mux) {
    let (host, guest) = UnixStream::pair().unwrap();
    let mux = |end: UnixStream| {
        end.set_nonblocking(true).unwrap();
        Mux::new(end.into())
    };
    (mux(host), mux(guest))
}

fn nobody(control: Control) {
    panic!("heard {control:?}");
}

/// Lets both work until `done`.
fn until(host: &mut Mux, guest: &mut Mux, mut done: impl FnMut(&Mux, &Mux) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done(host, guest) {
        assert!(Instant::now() < deadline, "it does not come to an end");
        host.step(&[], Some(&TICK), &mut nobody).unwrap();
        guest.step(&[], Some(&TICK), &mut nobody).unwrap();
    }
}

/// Bytes that tell their place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn writer(fd: OwnedFd, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    thread::spawn(move || std::fs::File::from(fd).write_all(&bytes).unwrap())
}

fn reader(fd: OwnedFd) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        std::fs::File::from(fd).read_to_end(&mut bytes).unwrap();
        bytes
    })
}

#[test]
fn three_streams_come_through_whole_and_apart() {
    let (mut host, mut guest) = pair();
    let mut threads = vec![];
    for (stream, len) in [
        (Stream::Stdin, 3_000_001),
        (Stream::Stdout, 2_000_003),
        (Stream::Stderr, 0),
    ] {
        let (source_read, source_write) = pipe().unwrap();
        let (sink_read, sink_write) = pipe().unwrap();
        let (from, to) = match stream {
            Stream::Stdin => (&mut host, &mut guest),
            _ => (&mut guest, &mut host),
        };
        from.source(stream, source_read);
        to.sink(stream, sink_write);
        threads.push((writer(source_write, pattern(len)), reader(sink_read), len));
    }
    let over = |mux: &Mux| mux.ends.iter().all(|end| matches!(end, End::None));
    until(&mut host, &mut guest, |host, guest| {
        over(host) && over(guest)
    });
    for (writer, reader, len) in threads {
        writer.join().unwrap();
        assert!(reader.join().unwrap() == pattern(len));
    }
}

#[test]
fn a_stream_that_is_not_read_holds_up_no_other_and_fills_no_memory() {
    let (mut host, mut guest) = pair();
    let (stuck_read, stuck_write) = pipe().unwrap();
    let (out_read, out_write) = pipe().unwrap();
    host.sink(Stream::Stdout, stuck_write);
    host.sink(Stream::Stderr, out_write);
    guest.source(
        Stream::Stdout,
        std::fs::File::open("/dev/zero").unwrap().into(),
    );
    let (err_read, err_write) = pipe().unwrap();
    guest.source(Stream::Stderr, err_read);
    let writer = writer(err_write, pattern(1 << 20));
    let reader = reader(out_read);
    until(&mut host, &mut guest, |host, _| {
        matches!(host.ends[Stream::Stderr as usize], End::None)
    });
    writer.join().unwrap();
    assert!(reader.join().unwrap() == pattern(1 << 20));
    let End::Sink(sink) = &host.ends[Stream::Stdout as usize] else {
        panic!("it is still there");
    };
    assert!(sink.waiting.len() <= WINDOW as usize);
    assert_eq!(sink.waiting.capacity(), WINDOW as usize, "it has not grown");
    drop(stuck_read);
}

#[test]
fn a_reader_that_goes_away_ends_the_source() {
    let (mut host, mut guest) = pair();
    let (out_read, out_write) = pipe().unwrap();
    host.sink(Stream::Stdout, out_write);
    guest.source(
        Stream::Stdout,
        std::fs::File::open("/dev/zero").unwrap().into(),
    );
    drop(out_read);
    until(&mut host, &mut guest, |_, guest| {
        matches!(guest.ends[Stream::Stdout as usize], End::None)
    });
    assert!(host.is_delivered());
}

#[test]
fn controls_are_heard_in_order_and_a_closed_channel_is_an_error() {
    let (mut host, mut guest) = pair();
    guest.say(Control::Hello { version: 1 });
    guest.say(Control::Exited { status: 7 });
    while !guest.is_sent() {
        guest.step(&[], Some(&TICK), &mut nobody).unwrap();
    }
    drop(guest);
    let mut heard = vec![];
    let error = loop {
        if let Err(error) = host.step(&[], Some(&TICK), &mut |control| heard.push(control)) {
            break error;
        }
    };
    assert_eq!(error, MuxError::Closed);
    assert_eq!(
        heard,
        [Control::Hello { version: 1 }, Control::Exited { status: 7 }]
    );
}

#[test]
fn a_peer_that_lies_is_found_out() {
    let data = |len: usize| {
        let mut bytes = Vec::new();
        for _ in 0..len / MAX_PAYLOAD {
            Frame::Data(Stream::Stdout, &[0; MAX_PAYLOAD]).encode(&mut bytes);
        }
        bytes
    };
    let frame = |frame: &Frame<'_>| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        bytes
    };
    let after_eof = {
        let mut bytes = frame(&Frame::Data(Stream::Stdout, b"x"));
        bytes.extend(frame(&Frame::Eof(Stream::Stdout)));
        bytes.extend(frame(&Frame::Data(Stream::Stdout, b"x")));
        bytes
    };
    for (bytes, what) in [
        (
            data(WINDOW as usize + MAX_PAYLOAD),
            "more data than its window",
        ),
        (
            frame(&Frame::Data(Stream::Stderr, b"x")),
            "data where none is taken",
        ),
        (
            frame(&Frame::Credit(Stream::Stdin, 1)),
            "credit for what it did not get",
        ),
        (
            frame(&Frame::Credit(Stream::Stdin, u32::MAX)),
            "credit for what it did not get",
        ),
        (after_eof, "data after the end of its stream"),
        (vec![0xff; 64], "a frame that is too long"),
    ] {
        let (mut peer, channel) = UnixStream::pair().unwrap();
        channel.set_nonblocking(true).unwrap();
        let mut host = Mux::new(channel.into());
        let (_stuck, sink) = pipe().unwrap();
        // A pipe that is full takes nothing.
        rustix::io::ioctl_fionbio(&sink, true).unwrap();
        while write(&sink, &[0; 4096]).is_ok() {}
        host.sink(Stream::Stdout, sink);
        let (source, _held) = pipe().unwrap();
        host.source(Stream::Stdin, source);
        let writer = thread::spawn(move || {
            // The other end closes when it has had enough.
            let _ = peer.write_all(&bytes);
            peer
        });
        let error = loop {
            if let Err(error) = host.step(&[], None, &mut nobody) {
                break error;
            }
        };
        drop(host);
        drop(writer.join().unwrap());
        assert_eq!(error, MuxError::Malformed(Malformed(what)));
    }
}

#[test]
fn other_descriptors_are_watched_along() {
    let (mut host, _guest) = pair();
    let (first, second) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let also = [first.0.as_fd(), second.0.as_fd()];
    let step = |host: &mut Mux| host.step(&also, Some(&TICK), &mut nobody).unwrap();
    assert_eq!(step(&mut host), [false, false]);
    (&second.1).write_all(b"x").unwrap();
    assert_eq!(step(&mut host), [false, true]);
}

/// It writes and never reads, so what the host would tell it stays with the host.
#[test]
fn a_peer_that_never_reads_fills_no_memory() {
    let (mut host, guest) = pair();
    let mut peer = UnixStream::from(guest.channel);
    peer.set_nonblocking(false).unwrap();
    while write(&host.channel, &[0; 64]).is_ok() {}
    let (out_read, out_write) = pipe().unwrap();
    host.sink(Stream::Stdout, out_write);
    let reader = reader(out_read);
    let writer = thread::spawn(move || {
        let mut frame = Vec::new();
        Frame::Data(Stream::Stdout, &[7; MAX_PAYLOAD]).encode(&mut frame);
        let mut sent = 0;
        while peer.write_all(&frame).is_ok() {
            sent += MAX_PAYLOAD;
        }
        sent
    });
    // As if it had gone on for so long that hardly any more fits.
    host.out.resize(BACKLOG - 1, 0);
    let error = loop {
        if let Err(error) = host.step(&[], None, &mut nobody) {
            break error;
        }
    };
    let malformed = Malformed("more data than its window");
    assert_eq!(error, MuxError::Malformed(malformed));
    assert!(host.out.len() < BACKLOG + 64, "{}", host.out.len());
    drop(host);
    let taken = reader.join().unwrap().len();
    assert!(taken <= 2 * WINDOW as usize, "{taken}");
    assert!(writer.join().unwrap() > taken);
}

/// A peer that was slow gets its credit when there is room for it again.
#[test]
fn credit_that_had_to_wait_is_given() {
    let (mut host, mut guest) = pair();
    let (source_read, source_write) = pipe().unwrap();
    let (sink_read, sink_write) = pipe().unwrap();
    rustix::io::ioctl_fionbio(&sink_write, true).unwrap();
    guest.source(Stream::Stdout, source_read);
    host.sink(Stream::Stdout, sink_write);
    let noise = Control::Warning(vec![b'x'; 1000]);
    while host.out.len() < 2 * BACKLOG {
        host.say(noise.clone());
    }
    let len = 4 * WINDOW as usize;
    let (writer, reader) = (writer(source_write, pattern(len)), reader(sink_read));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !matches!(host.ends[Stream::Stdout as usize], End::None) {
        assert!(Instant::now() < deadline, "it does not come to an end");
        host.step(&[], Some(&TICK), &mut nobody).unwrap();
        guest
            .step(&[], Some(&TICK), &mut |heard| assert_eq!(heard, noise))
            .unwrap();
    }
    writer.join().unwrap();
    assert!(reader.join().unwrap() == pattern(len));
}
