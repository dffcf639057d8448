//! Whole consoles: a guest that accesses the port, a real event loop, and a user at the other end.

use std::fs::{self, File};
use std::io::Read;
use std::iter;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use devices::bus::BusDevice;
use devices::legacy::serial::SerialPort;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use rustix::fs::CWD;
use tempfile::TempDir;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::events::EventSender;
use crate::events::{self, EventKind};

mod polite;
mod socket;

const SOON: Duration = Duration::from_secs(60);

type Loop = EventManager<Box<dyn MutEventSubscriber + Send>>;

/// A VM as far as a console sees one.
struct Machine {
    port: Arc<SerialPort>,
    guard: Option<ConsoleGuard>,
    events: Loop,
}

impl Machine {
    fn new(console: Console) -> Self {
        Self::followed(console, None)
    }

    fn followed(console: Console, events: Option<EventSender>) -> Self {
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let AttachedConsole {
            port,
            input,
            mut guard,
        } = console.prepare(events).unwrap().attach(line).unwrap();
        guard.start().unwrap();
        let mut events = Loop::new().unwrap();
        if let Some(input) = input {
            events.add_subscriber(input);
        }
        port.write(1, &[1]);
        Self {
            port,
            guard: Some(guard),
            events,
        }
    }

    fn print(&self, text: &[u8]) {
        for byte in text {
            self.port.write(0, &[*byte]);
        }
    }

    /// Lets everything pending happen; returns the number of events.
    fn settle(&mut self) -> usize {
        let mut total = 0;
        loop {
            match self.events.run_with_timeout(0).unwrap() {
                0 => return total,
                count => total += count,
            }
            assert!(total < 1000, "the loop spins");
        }
    }

    /// What the guest reads by the time that `len` bytes have come.
    fn hear(&mut self, len: usize) -> Vec<u8> {
        let (start, mut got) = (Instant::now(), Vec::new());
        while got.len() < len {
            assert!(start.elapsed() < SOON, "only {got:?}");
            self.events.run_with_timeout(1).unwrap();
            got.extend(self.drain());
        }
        got
    }

    fn drain(&self) -> Vec<u8> {
        let read = |offset| {
            let mut data = [0xff];
            self.port.read(offset, &mut data);
            data[0]
        };
        iter::from_fn(|| (read(5) & 1 != 0).then(|| read(0))).collect()
    }

    fn end(mut self) {
        self.guard.take().unwrap().close(SOON);
    }
}

/// Reads exactly `len` bytes, or panics in time.
fn read(from: &mut (impl Read + AsFd), len: usize) -> Vec<u8> {
    let mut got = vec![0; len];
    let mut filled = 0;
    while filled < len {
        let mut polled = [rustix::event::PollFd::new(
            from,
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec {
            tv_sec: SOON.as_secs() as i64,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut polled, Some(&limit)), Ok(1));
        let count = from.read(&mut got[filled..]).unwrap();
        assert_ne!(count, 0, "ended after {:?}", &got[..filled]);
        filled += count;
    }
    got
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn file(path: impl Into<PathBuf>) -> Result<Console, ConsoleError> {
    Console::open(&ConsoleEnd::File(path.into()).into())
}

/// The refusal, which must be one line and give a cause.
fn refusal(result: Result<Console, ConsoleError>) -> String {
    let text = result.expect_err("refused").to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn none_drops_output_and_has_no_input() {
    let mut machine = Machine::new(Console::open(&ConsoleEnd::None.into()).unwrap());
    machine.print(b"hello");
    assert_eq!(machine.settle(), 0);
    machine.end();
}

#[test]
fn stdio_opens() {
    let console = Console::open(&ConsoleConfig::default()).unwrap();
    assert!(console.path().is_none());
    assert!(matches!(console.input, Input::Descriptor(_)));
}

#[test]
fn an_embedders_own_ends() {
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);
    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let memory = Memory::default();
    let (reader, mut writer) = io::pipe().unwrap();
    let console = Console::from_parts(Some(reader.into()), Box::new(memory.clone()))
        .with_filter(Box::new(|raw, out| out.extend(raw.iter().rev())));
    let mut machine = Machine::new(console);
    writer.write_all(b"abc").unwrap();
    assert_eq!(machine.hear(3), b"cba");
    machine.print(b"hello");
    machine.guard.as_ref().unwrap().release_vcpus();
    machine.print(b", world");
    // Dropping the guard flushes too.
    drop(machine.guard.take());
    assert_eq!(*memory.0.lock().unwrap(), b"hello, world");
}

#[test]
fn a_file_is_emptied_and_filled() {
    let dir = dir();
    let path = dir.path().join("log");
    fs::write(&path, "of an earlier run, and longer than this one").unwrap();
    let mut machine = Machine::new(file(&path).unwrap());
    machine.print(b"all there is");
    assert_eq!(machine.settle(), 0, "there is no input");
    machine.end();
    assert_eq!(fs::read(&path).unwrap(), b"all there is");
}

#[test]
fn files_are_refused_with_a_remedy() {
    let dir = dir();
    let text = refusal(file(dir.path()));
    assert!(text.ends_with("is a folder; name a file in it"), "{text}");
    let text = refusal(file(dir.path().join("not/there")));
    assert!(text.contains("there is no folder"), "{text}");
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let text = refusal(file(&fifo));
    assert!(text.ends_with("start its reader first"), "{text}");
    let below = dir.path().join("file");
    fs::write(&below, "").unwrap();
    let text = refusal(file(below.join("x")));
    assert!(
        text.contains("cannot be written: Not a directory"),
        "{text}"
    );
}

#[test]
fn a_pty_works_both_ways() {
    let console = Console::open(&ConsoleEnd::Pty.into()).unwrap();
    let path = console.path().unwrap().to_owned();
    let mut machine = Machine::new(console);
    // Said while nobody was there.
    machine.print(b"login: ");
    let mut user = File::options().read(true).write(true).open(&path).unwrap();
    assert_eq!(read(&mut user, 7), b"login: ");
    // Raw: no echo, no line editing, no translation.
    user.write_all(b"r\x03\x04\r\n\x11\xff").unwrap();
    assert_eq!(machine.hear(7), b"r\x03\x04\r\n\x11\xff");
    machine.print(b"\n\x13ok");
    assert_eq!(read(&mut user, 4), b"\n\x13ok");
    // Leaving and coming back is nothing special.
    drop(user);
    assert_eq!(machine.settle(), 0, "no hang-up is seen");
    let mut user = File::options().read(true).write(true).open(&path).unwrap();
    machine.print(b"again");
    assert_eq!(read(&mut user, 5), b"again");
    user.write_all(b"yes").unwrap();
    assert_eq!(machine.hear(3), b"yes");
    machine.end();
}

#[test]
fn a_pty_that_nobody_reads_does_not_stop_the_guest() {
    let console = Console::open(&ConsoleEnd::Pty.into()).unwrap();
    let path = console.path().unwrap().to_owned();
    let mut machine = Machine::new(console);
    let start = Instant::now();
    for _ in 0..3000 {
        machine.print(&[b'.'; 100]);
    }
    machine.print(b"the end");
    assert!(start.elapsed() < SOON);
    assert_eq!(machine.settle(), 0);
    // Whoever comes late sees how it ended.
    let reading = thread::spawn(move || {
        let (mut user, mut got) = (File::open(path).unwrap(), Vec::new());
        while !got.ends_with(b"the end") {
            got.extend(read(&mut user, 1));
        }
        got.len()
    });
    assert!(reading.join().unwrap() < 200_000);
    machine.end();
}

#[test]
fn whoever_follows_the_events_gets_every_line_also_where_the_console_has_no_reader() {
    let dir = dir();
    let console = Console::open(&ConsoleEnd::Unix(dir.path().join("socket")).into()).unwrap();
    let (sender, events) = events::channel().unwrap();
    let machine = Machine::followed(console, Some(sender));
    let follower = thread::spawn(move || {
        events
            .filter_map(|event| match event.kind {
                EventKind::Line(text) => Some(text),
                _ => None,
            })
            .collect::<Vec<_>>()
    });
    // Far more than the rings and the queue hold.
    let count = 50_000;
    for number in 0..count {
        machine.print(format!("{number}\r\n").as_bytes());
    }
    machine.print(b"the end");
    machine.end();
    let lines = follower.join().unwrap();
    assert_eq!(lines.len(), count + 1);
    assert!((0..count).all(|number| lines[number] == number.to_string()));
    assert_eq!(lines[count], "the end");
}
