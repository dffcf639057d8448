//! Input from pipes, files and devices through a real event loop.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};

use super::*;
use crate::console::{DescriptorInput, InputFilter, InputQueue};

/// Longest that a test waits for something that should happen at once.
const PATIENCE: Duration = Duration::from_secs(60);

fn pipe() -> (OwnedFd, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    (reader.into(), writer)
}

type Loop = EventManager<DescriptorInput>;

fn looping(guest: &Guest, source: impl Into<OwnedFd>, filter: Option<InputFilter>) -> Loop {
    let mut manager = Loop::new().unwrap();
    let queue = InputQueue::new(guest.port.clone(), filter);
    manager.add_subscriber(DescriptorInput::new(queue, source.into()));
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
fn input_before_the_driver_waits_for_it() {
    let guest = Guest::new();
    let (reader, mut writer) = pipe();
    writer.write_all(b"early").unwrap();
    let mut manager = looping(&guest, reader, None);
    settle(&mut manager);
    assert_eq!(guest.drain(), b"");
    assert_eq!(guest.line.take(), 0);
    assert_eq!(settle(&mut manager), 0, "accesses do not wake the input");
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
    input: DescriptorInput,
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
    let input = DescriptorInput::new(queue, reader);
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
