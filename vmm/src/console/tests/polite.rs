//! Output from one who cannot wait, to readers that are slow, stopped or gone.

use std::io::PipeReader;
use std::os::fd::BorrowedFd;

use devices::console::{CHUNK, Output as _};

use super::super::attach::{PoliteWriters, Writers};
use super::super::sink::Sink;
use super::*;

const CAPACITY: usize = 8192;

/// A console of a small ring and a pipe of one page.
fn sink(patience: Duration) -> (Sink, PipeReader) {
    let (reader, writer) = io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let policy = Policy {
        capacity: CAPACITY,
        patience,
        expects_reader: true,
    };
    let consumer = Box::new(Descriptor::new(writer.into()));
    let mut sink = Sink::new("console", consumer, policy, "a test".to_owned()).unwrap();
    sink.start().unwrap();
    (sink, reader)
}

fn polite(sinks: &[&Sink]) -> PoliteWriters {
    let writers = sinks.iter().map(|sink| sink.writer()).collect();
    PoliteWriters::new(Writers(writers)).unwrap()
}

/// Waits for the bell, or panics in time.
fn wait(output: &PoliteWriters) {
    // SAFETY: `output` keeps its descriptor open.
    let bell = unsafe { BorrowedFd::borrow_raw(output.room()) };
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(
        bell,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let rang = rustix::event::poll(&mut polled, Some(&limit));
    assert_eq!(rang, Ok(1), "the bell does not ring");
    output.seen();
}

/// Says it all, as a device does: waits for the bell where there is no room.
fn say(output: &PoliteWriters, bytes: &[u8]) -> usize {
    let (mut waits, mut rest) = (0, bytes);
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(CHUNK)];
        let taken = output.offer(chunk);
        rest = &rest[taken..];
        if taken < chunk.len() {
            wait(output);
            waits += 1;
        }
    }
    waits
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

/// Reads to the end, a little at a time.
fn read_slowly(mut reader: PipeReader) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut all, mut chunk) = (Vec::new(), [0; 1000]);
        while let count @ 1.. = reader.read(&mut chunk).unwrap() {
            all.extend(&chunk[..count]);
            thread::sleep(Duration::from_millis(1));
        }
        all
    })
}

#[test]
fn slow_readers_get_every_byte() {
    let ((mut one, first), (mut other, second)) = (sink(SOON), sink(SOON));
    let output = polite(&[&one, &other]);
    let readers = [first, second].map(read_slowly);
    let all = pattern(100_000);
    assert!(say(&output, &all) > 0, "it never had to wait");
    one.close(SOON);
    other.close(SOON);
    for reader in readers {
        assert!(
            reader.join().unwrap() == all,
            "bytes are missing or damaged"
        );
    }
}

#[test]
fn a_stopped_reader_costs_its_patience_and_the_oldest_output() {
    let (mut sink, reader) = sink(Duration::from_millis(50));
    let output = polite(&[&sink]);
    let all = pattern(100_000);
    // Nobody reads: the bell rings by itself, and after that there is room for anything.
    assert!(say(&output, &all) > 0);
    assert_eq!(say(&output, &all), 0);
    let reading = read_slowly(reader);
    sink.close(SOON);
    let got = reading.join().unwrap();
    assert!(
        got.len() <= CAPACITY + 4096,
        "{} bytes were kept",
        got.len()
    );
    assert!(
        got.ends_with(&all[all.len() - 4096..]),
        "not the last words"
    );
}

#[test]
fn a_reader_that_leaves_or_an_end_that_comes_is_no_reason_to_wait() {
    let (sink_one, reader) = sink(SOON);
    let output = polite(&[&sink_one]);
    let all = pattern(100_000);
    drop(reader);
    // It may have been waited for before it was seen to be gone.
    say(&output, &all);
    assert_eq!(say(&output, &all), 0);

    let (mut sink_two, _reader) = sink(Duration::from_secs(600));
    let output = polite(&[&sink_two]);
    while output.offer(&all[..CHUNK]) == CHUNK {}
    assert_eq!(output.offer(b"x"), 0);
    sink_two.release();
    wait(&output);
    assert_eq!(say(&output, &all), 0);
    sink_two.close(Duration::ZERO);
    assert_eq!(say(&output, &all), 0);
    assert_eq!(polite(&[]).offer(b"into nowhere"), 12);
}
