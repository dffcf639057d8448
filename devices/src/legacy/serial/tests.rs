//! The port and its input against a guest that accesses registers, pipes, files and a real event loop.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{iter, thread};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};

use super::super::testing::FakeLine;
use super::*;

const DATA: u64 = 0;
const IER: u64 = 1;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;

/// LSR: data ready.
const DR: u8 = 1;

/// Longest that a test waits for something that should happen at once.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default, Clone)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A guest's view of the port.
#[derive(Clone)]
struct Guest {
    port: Arc<SerialPort>,
    line: Arc<FakeLine>,
    output: Output,
}

impl Guest {
    fn new() -> Self {
        let (line, output) = (Arc::new(FakeLine::default()), Output::default());
        let port = Arc::new(SerialPort::new(line.clone(), Box::new(output.clone())).unwrap());
        Self { port, line, output }
    }

    fn inb(&self, offset: u64) -> u8 {
        let mut data = [0xff];
        self.port.read(offset, &mut data);
        data[0]
    }

    fn outb(&self, offset: u64, value: u8) {
        self.port.write(offset, &[value]);
    }

    /// What is in the receiver.
    fn drain(&self) -> Vec<u8> {
        iter::from_fn(|| (self.inb(LSR) & DR != 0).then(|| self.inb(DATA))).collect()
    }

    /// What Linux' 8250 driver does from finding the chip to having it in use.
    fn start_linux(&self) {
        let scratch = self.inb(IER);
        self.outb(IER, 0);
        self.inb(IER);
        self.outb(IER, 0x0f);
        self.inb(IER);
        self.outb(IER, scratch);
        self.inb(LCR);
        self.outb(LCR, 0xbf);
        self.outb(LCR, 0);
        self.outb(FCR, 1);
        // The probe and the startup both discard what they find.
        for _ in 0..2 {
            self.outb(FCR, 7);
            self.outb(FCR, 0);
            for offset in [LSR, DATA, 2, MSR] {
                self.inb(offset);
            }
            self.outb(LCR, 3);
            self.outb(IER, 2);
            self.inb(LSR);
            self.inb(2);
            self.outb(IER, 0);
        }
        assert_eq!(self.inb(LSR) & DR, 0, "nothing was there to be lost");
        self.outb(LCR, 0x83);
        self.outb(DATA, 1);
        self.outb(1, 0);
        self.outb(LCR, 3);
        self.outb(IER, 5);
    }
}

fn pipe() -> (OwnedFd, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    (reader.into(), writer)
}

type Loop = EventManager<SerialInput>;

fn looping(guest: &Guest, source: impl Into<OwnedFd>, filter: Option<InputFilter>) -> Loop {
    let mut manager = Loop::new().unwrap();
    let queue = InputQueue::new(guest.port.clone(), filter);
    manager.add_subscriber(SerialInput::new(queue, source.into()));
    manager
}

/// Lets everything pending happen, and says how many events that took.
fn settle(manager: &mut Loop) -> usize {
    let mut events = 0;
    loop {
        match manager.run_with_timeout(0).unwrap() {
            0 => return events,
            count => events += count,
        }
        assert!(events < 1000, "the loop spins");
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[test]
fn output_goes_out_and_interrupts() {
    let guest = Guest::new();
    for byte in b"hello\n" {
        guest.outb(DATA, *byte);
    }
    assert_eq!(*guest.output.0.lock().unwrap(), b"hello\n");
    assert_eq!(guest.line.take(), 0);
    guest.outb(IER, 2);
    assert_eq!(guest.line.take(), 1, "the transmitter is empty");
    // The divisor is not data.
    guest.outb(LCR, 0x80);
    guest.outb(DATA, b'x');
    guest.outb(LCR, 3);
    // Nor does looped-back data leave the chip.
    guest.outb(MCR, 0x10);
    guest.outb(DATA, b'y');
    assert_eq!(*guest.output.0.lock().unwrap(), b"hello\n");
    assert_eq!(guest.drain(), b"y");
}

#[test]
fn odd_accesses_do_nothing() {
    let guest = Guest::new();
    for len in [0, 2, 4, 8] {
        for offset in 0..LEN {
            let mut data = vec![0xff; len];
            guest.port.read(offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0xff));
            guest.port.write(offset, &data);
        }
    }
    for offset in [LEN, 0x100, u64::MAX] {
        assert_eq!(guest.inb(offset), 0xff);
        guest.outb(offset, b'x');
    }
    assert!(guest.output.0.lock().unwrap().is_empty());
    assert_eq!(guest.inb(LCR), 3, "no register has changed");
}

#[test]
fn input_before_the_driver_waits_for_it() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    writer.write_all(b"early").unwrap();
    let mut manager = looping(&guest, reader, None);
    settle(&mut manager);
    assert_eq!(guest.drain(), b"");
    assert_eq!(guest.line.take(), 0);
    guest.start_linux();
    settle(&mut manager);
    assert!(guest.line.take() > 0);
    assert_eq!(guest.drain(), b"early");
}

#[test]
fn a_polling_guest_gets_input_too() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    writer.write_all(b"polled").unwrap();
    let mut manager = looping(&guest, reader, None);
    settle(&mut manager);
    for _ in 0..16 {
        assert_eq!(guest.inb(LSR) & DR, 0);
    }
    settle(&mut manager);
    assert_eq!(guest.drain(), b"polled");
}

#[test]
fn loopback_cuts_the_line_and_ends() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    let mut manager = looping(&guest, reader, None);
    guest.outb(IER, 1);
    guest.outb(MCR, 0x10);
    writer.write_all(b"after").unwrap();
    settle(&mut manager);
    assert_eq!(guest.drain(), b"");
    guest.outb(MCR, 0x08);
    settle(&mut manager);
    assert_eq!(guest.drain(), b"after");
}

#[test]
fn a_full_fifo_pauses_the_source_without_spinning() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    let sent = pattern(1000);
    writer.write_all(&sent).unwrap();
    // A hang-up is reported by epoll whatever one asks for: the loop must not see it while it waits.
    drop(writer);
    let mut manager = looping(&guest, reader, None);
    guest.outb(IER, 1);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        assert!(settle(&mut manager) <= 4);
        assert_eq!(settle(&mut manager), 0);
        let batch = guest.drain();
        assert!((1..=regs::FIFO).contains(&batch.len()));
        got.extend(batch);
    }
    assert_eq!(got, sent);
    settle(&mut manager);
    assert_eq!(guest.drain(), b"");
}

#[test]
fn all_of_a_long_pipe_arrives_in_order() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    let sent = pattern(100_000);
    let expected = sent.clone();
    let writing = thread::spawn(move || writer.write_all(&sent).unwrap());
    let (done, is_done) = mpsc::channel::<()>();
    let looped = guest.clone();
    let looping = thread::spawn(move || {
        let mut manager = looping(&looped, reader, None);
        while is_done.try_recv() == Err(mpsc::TryRecvError::Empty) {
            manager.run_with_timeout(5).unwrap();
        }
    });
    guest.outb(IER, 1);
    let start = Instant::now();
    let mut got = Vec::new();
    while got.len() < expected.len() {
        // Interrupts are masked now and then, as Linux' console does while it prints.
        if got.len() % 7 == 0 {
            guest.outb(IER, 0);
            guest.outb(IER, 1);
        }
        got.extend(guest.drain());
        assert!(start.elapsed() < PATIENCE, "stuck after {}", got.len());
    }
    done.send(()).unwrap();
    looping.join().unwrap();
    writing.join().unwrap();
    assert!(got == expected, "bytes were lost or reordered");
}

#[test]
fn the_end_of_input_is_quiet() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    let mut manager = looping(&guest, reader, None);
    guest.outb(IER, 1);
    writer.write_all(b"last").unwrap();
    drop(writer);
    settle(&mut manager);
    assert_eq!(guest.drain(), b"last");
    settle(&mut manager);
    assert_eq!(settle(&mut manager), 0, "nothing is watched any more");
    guest.outb(DATA, b'!');
    assert_eq!(*guest.output.0.lock().unwrap(), b"!");
}

#[test]
fn files_that_epoll_refuses_work() {
    let guest = Guest::new();
    let sent = pattern(10_000);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&sent).unwrap();
    file.rewind().unwrap();
    let mut manager = looping(&guest, file, None);
    guest.outb(IER, 1);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        settle(&mut manager);
        let batch = guest.drain();
        assert!(!batch.is_empty(), "stuck after {}", got.len());
        got.extend(batch);
    }
    assert_eq!(got, sent);
}

#[test]
fn dev_null_and_dev_zero_work() {
    for (path, expected) in [("/dev/null", 0), ("/dev/zero", regs::FIFO)] {
        let guest = Guest::new();
        let mut manager = looping(&guest, File::open(path).unwrap(), None);
        guest.outb(IER, 1);
        settle(&mut manager);
        assert_eq!(guest.drain().len(), expected, "{path}");
    }
}

#[test]
fn a_source_that_cannot_be_read_ends() {
    let guest = Guest::new();
    let mut manager = looping(&guest, File::open("/").unwrap(), None);
    guest.outb(IER, 1);
    settle(&mut manager);
    assert_eq!(guest.drain(), b"");
}

#[test]
fn the_filter_decides_what_arrives() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    let upper: InputFilter = Box::new(|raw, out| {
        out.extend(
            raw.iter()
                .filter(|b| **b != b'-')
                .map(u8::to_ascii_uppercase),
        );
    });
    let mut manager = looping(&guest, reader, Some(upper));
    guest.outb(IER, 1);
    writer.write_all(b"a-b-c").unwrap();
    settle(&mut manager);
    assert_eq!(guest.drain(), b"ABC");
}

#[test]
fn the_filter_sees_everything_even_if_the_guest_takes_nothing() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    let (seen, sees) = mpsc::channel();
    let spy: InputFilter = Box::new(move |raw, out| {
        if raw.contains(&1) {
            seen.send(()).unwrap();
        }
        out.extend(raw);
    });
    let mut manager = looping(&guest, reader, Some(spy));
    for _ in 0..100 {
        writer.write_all(&[b'x'; 4096]).unwrap();
        settle(&mut manager);
    }
    writer.write_all(&[1]).unwrap();
    settle(&mut manager);
    sees.try_recv().unwrap();
    // What was typed ahead is bounded, and comes first.
    guest.outb(IER, 1);
    let mut got = Vec::new();
    loop {
        settle(&mut manager);
        match guest.drain() {
            batch if batch.is_empty() => break,
            batch => got.extend(batch),
        }
    }
    assert_eq!(got.len(), 64 << 10);
}

/// Takes the data away between the event and its handling, as another reader of a terminal may.
struct Thief {
    input: SerialInput,
    rival: File,
}

impl MutEventSubscriber for Thief {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.input.init(ops);
    }
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() != self.input.queue.port().room().as_raw_fd() {
            let _ = self.rival.read(&mut [0; 6]).unwrap();
        }
        self.input.process(events, ops);
    }
}

#[test]
fn spurious_events_do_not_block() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    let rival = File::from(reader.try_clone().unwrap());
    let queue = InputQueue::new(guest.port.clone(), None);
    let input = SerialInput::new(queue, reader);
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Thief { input, rival });
    guest.outb(IER, 1);
    guest.port.room().write(1).unwrap();
    manager.run_with_timeout(0).unwrap();
    writer.write_all(b"stolen").unwrap();
    manager.run_with_timeout(0).unwrap();
    assert_eq!(guest.drain(), b"");
    writer.write_all(b"stolenours").unwrap();
    manager.run_with_timeout(0).unwrap();
    assert_eq!(guest.drain(), b"ours");
}

#[test]
fn input_stops_at_the_driver_that_goes_away() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    let mut manager = looping(&guest, reader, None);
    guest.start_linux();
    settle(&mut manager);
    guest.outb(IER, 0);
    writer.write_all(b"between").unwrap();
    settle(&mut manager);
    guest.start_linux();
    settle(&mut manager);
    assert_eq!(guest.drain(), b"between");
}
