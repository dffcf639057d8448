//! The ring against readers that are slow, stopped, gone, stuck or late.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read};
use std::sync::{Mutex, mpsc};

use super::super::consumer::{Custom, Descriptor, Offer};
use super::ring::KEEP;
use super::*;
use crate::flag::Flag;

/// Far longer than anything here should take, and far shorter than the limits that must not be met.
const SOON: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_secs(3600);

/// What can always be printed with nobody reading. (A pipe of one page adds next to nothing: it counts
/// as full from its first byte.)
const HELD: usize = 4096;

fn policy(patience: Duration) -> Policy {
    Policy {
        capacity: 4096,
        patience,
        expects_reader: true,
    }
}

fn start(consumer: impl Consumer + 'static, patience: Duration) -> Sink {
    started(Box::new(consumer), policy(patience))
}

/// Without its thread.
fn waiting(consumer: Box<dyn Consumer>, policy: Policy) -> Sink {
    Sink::new("console", consumer, policy, "a test".to_owned()).unwrap()
}

fn started(consumer: Box<dyn Consumer>, policy: Policy) -> Sink {
    let mut sink = waiting(consumer, policy);
    sink.start().unwrap();
    sink
}

fn pipe() -> (PipeReader, Descriptor) {
    let (reader, writer): (PipeReader, PipeWriter) = io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    (reader, Descriptor::new(writer.into()))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

/// Prints like a guest: byte by byte.
fn print(sink: &Sink, bytes: &[u8]) {
    let mut writer = sink.writer();
    for byte in bytes {
        writer.write_all(&[*byte]).unwrap();
    }
}

fn gone(sink: &Sink) -> bool {
    sink.ring.lock().writer == Writer::Gone
}

/// Waits for something another thread does.
fn eventually(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "it does not happen");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_slow_reader_gets_every_byte() {
    let (mut reader, consumer) = pipe();
    let mut sink = start(consumer, NEVER);
    let sent = pattern(60_000);
    let expected = sent.clone();
    let reading = thread::spawn(move || {
        let (mut got, mut chunk): (Vec<u8>, _) = (Vec::new(), [0_u8; 1500]);
        loop {
            match reader.read(&mut chunk).unwrap() {
                0 => return got,
                count => got.extend(&chunk[..count]),
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
    print(&sink, &sent);
    sink.close(NEVER);
    assert!(gone(&sink));
    assert!(reading.join().unwrap() == expected);
}

#[test]
fn a_stopped_reader_costs_one_wait_and_the_oldest_output() {
    let patience = Duration::from_secs(1);
    let (mut reader, consumer) = pipe();
    let mut sink = start(consumer, patience);
    let begin = Instant::now();
    print(&sink, &pattern(20_000));
    assert!(begin.elapsed() >= patience);
    assert!(sink.ring.lock().stalled);
    // Nobody waits for one who is known to have stopped: 10 waits would take longer than this.
    let begin = Instant::now();
    for _ in 0..10 {
        print(&sink, &pattern(5000));
        assert!(sink.ring.lock().stalled);
    }
    print(&sink, b"last words");
    assert!(begin.elapsed() < 10 * patience, "{:?}", begin.elapsed());
    assert!(sink.ring.lock().dropped > 40_000);

    let reading = thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        got
    });
    eventually(|| !sink.ring.lock().stalled);
    print(&sink, b", and more");
    sink.close(NEVER);
    let got = reading.join().unwrap();
    assert!(got.len() < 10_000);
    assert!(got.ends_with(b"last words, and more"));
}

#[test]
fn a_reader_that_leaves_costs_nothing() {
    let (reader, consumer) = pipe();
    let mut sink = start(consumer, NEVER);
    drop(reader);
    print(&sink, &pattern(100_000));
    eventually(|| gone(&sink));
    sink.close(NEVER);
}

#[test]
fn a_full_disk_costs_nothing() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut sink = start(Descriptor::new(full.into()), NEVER);
    print(&sink, &pattern(100_000));
    eventually(|| gone(&sink));
    sink.close(NEVER);
}

#[test]
fn close_and_release_wake_whoever_waits() {
    for close in [true, false] {
        let (_reader, consumer) = pipe();
        let mut sink = start(consumer, NEVER);
        let mut writer = sink.writer();
        let (waits, waiting) = mpsc::channel();
        let vcpu = thread::spawn(move || {
            writer.write_all(&pattern(HELD)).unwrap();
            waits.send(()).unwrap();
            writer.write_all(&pattern(50_000)).unwrap();
        });
        waiting.recv().unwrap();
        thread::sleep(Duration::from_millis(5));
        let begin = Instant::now();
        if close {
            sink.close(Duration::ZERO);
            assert!(gone(&sink), "a blocked pipe can be cancelled");
        } else {
            sink.release();
        }
        vcpu.join().unwrap();
        assert!(begin.elapsed() < SOON);
    }
}

#[test]
fn close_flushes_what_the_reader_takes() {
    let (mut reader, consumer) = pipe();
    let mut sink = start(consumer, NEVER);
    let sent = pattern(HELD);
    print(&sink, &sent);
    let reading = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        got
    });
    sink.close(NEVER);
    assert!(reading.join().unwrap() == sent);
}

#[test]
fn close_gives_up_at_its_limit() {
    let (_reader, consumer) = pipe();
    let mut sink = start(consumer, NEVER);
    print(&sink, &pattern(HELD));
    let (limit, begin) = (Duration::from_millis(30), Instant::now());
    sink.close(limit);
    assert!((limit..SOON).contains(&begin.elapsed()));
    assert!(gone(&sink));
    print(&sink, &pattern(100_000));
}

#[test]
fn a_writer_that_is_stuck_is_left_behind() {
    struct Stuck(mpsc::Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Err(io::ErrorKind::Other.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (free, stuck) = mpsc::channel();
    let mut sink = start(Custom(Box::new(Stuck(stuck))), NEVER);
    print(&sink, b"x");
    eventually(|| sink.ring.lock().in_flight > 0);
    let begin = Instant::now();
    sink.close(Duration::ZERO);
    assert!(begin.elapsed() < SOON);
    assert!(!gone(&sink));
    drop(free);
    eventually(|| gone(&sink));
}

#[test]
fn a_writer_that_panics_or_takes_nothing_is_let_go() {
    struct Bad(bool);
    impl Write for Bad {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            assert!(!self.0, "on purpose");
            Ok(0)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for panics in [true, false] {
        let mut sink = start(Custom(Box::new(Bad(panics))), NEVER);
        print(&sink, &pattern(20_000));
        eventually(|| gone(&sink));
        sink.close(NEVER);
    }
}

/// Nobody, until the bell rings.
struct Late {
    bell: Arc<Flag>,
    got: Arc<Mutex<Vec<u8>>>,
    came: bool,
}

impl Consumer for Late {
    fn offer(&mut self, bytes: &[u8]) -> io::Result<Offer> {
        if !self.came {
            return Ok(Offer::Absent);
        }
        self.got.lock().unwrap().extend(bytes);
        Ok(Offer::Took(bytes.len()))
    }
    fn wait(&mut self, cancel: &Flag) {
        use std::os::fd::AsFd;
        let bell = (self.bell.as_fd(), rustix::event::PollFlags::IN);
        super::super::consumer::wait_any(&[bell], cancel);
        self.came = true;
    }
}

#[test]
fn who_comes_late_gets_the_latest() {
    let (bell, got) = (Arc::new(Flag::new().unwrap()), Arc::default());
    let late = Late {
        bell: Arc::clone(&bell),
        got: Arc::clone(&got),
        came: false,
    };
    let mut sink = start(late, NEVER);
    let begin = Instant::now();
    print(&sink, &pattern(50_000));
    print(&sink, b"at last");
    assert!(begin.elapsed() < SOON, "the guest does not wait for nobody");
    bell.raise();
    sink.close(NEVER);
    let got = got.lock().unwrap();
    assert_eq!(got.len(), 4096);
    assert!(got.ends_with(b"at last"));
}

#[test]
fn nobody_delays_the_end_where_nobody_is_expected() {
    for patience in [NEVER, Duration::from_millis(10)] {
        let policy = Policy {
            expects_reader: false,
            ..policy(patience)
        };
        // Absent with endless patience, or present and stopped with little.
        let (_reader, stopped) = pipe();
        let consumer: Box<dyn Consumer> = if patience == NEVER {
            Box::new(Late {
                bell: Arc::new(Flag::new().unwrap()),
                got: Arc::default(),
                came: false,
            })
        } else {
            Box::new(stopped)
        };
        let mut sink = started(consumer, policy);
        print(&sink, &pattern(8000));
        let begin = Instant::now();
        sink.close(NEVER);
        assert!(begin.elapsed() < SOON);
        assert!(gone(&sink));
    }
}

#[test]
fn what_comes_before_the_thread_is_kept_for_it() {
    let (mut reader, consumer) = pipe();
    let mut sink = waiting(Box::new(consumer), policy(NEVER));
    print(&sink, b"early");
    sink.start().unwrap();
    let mut got = [0; 5];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early");
}

#[test]
fn a_thread_that_never_began_keeps_nobody() {
    let (mut reader, consumer) = pipe();
    let mut sink = waiting(Box::new(consumer), policy(NEVER));
    print(&sink, b"lost");
    sink.close(NEVER);
    drop(sink);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn bytes_go_out_in_batches_and_the_ring_shrinks_again() {
    struct Counts(mpsc::Sender<usize>);
    impl Write for Counts {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.len()).unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sender, counts) = mpsc::channel();
    let big = Policy {
        capacity: 1 << 20,
        ..policy(NEVER)
    };
    let consumer = Box::new(Custom(Box::new(Counts(sender))));
    let mut sink = started(consumer, big);
    assert_eq!(sink.ring.lock().bytes.capacity(), 0);
    print(&sink, &pattern(200_000));
    eventually(|| {
        let state = sink.ring.lock();
        state.writer == Writer::Sleeps && state.bytes.is_empty()
    });
    assert!(sink.ring.lock().bytes.capacity() <= KEEP);
    sink.close(NEVER);
    let counts: Vec<_> = counts.try_iter().collect();
    assert_eq!(counts.iter().sum::<usize>(), 200_000);
    assert!(counts.len() < 20_000, "{} writes", counts.len());
}
