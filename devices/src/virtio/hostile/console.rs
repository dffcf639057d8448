//! virtio-console under attack.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Attack;
use super::case::{Expect, Row, Scope, table};
use super::subject::{Host, QueuePlan, Stage, Subject};
use crate::console::{Output, Receiver};
use crate::virtio::console::{Console, ConsoleControl};
use crate::virtio::testing::{Descriptor, reg};
use crate::virtio::{ActivateError, Features, Lane, VirtioDevice, VirtioInterrupt, VirtioKind};

use Expect::{Either, Fine};

const RX: u16 = 0;
const TX: u16 = 1;

/// The console.
pub(super) fn subject() -> Subject {
    Subject {
        name: "console",
        stage,
        serves,
        needs: 0,
        cases: || table(Scope::Device, ROWS),
    }
}

/// A reader that takes everything, or nothing for a while.
#[derive(Debug)]
struct Reader {
    stopped: AtomicBool,
    room: EventFd,
}

impl Reader {
    fn new() -> io::Result<Self> {
        Ok(Self {
            stopped: AtomicBool::new(false),
            room: EventFd::new(EFD_NONBLOCK)?,
        })
    }
}

impl Output for Reader {
    fn offer(&self, bytes: &[u8]) -> usize {
        match self.stopped.load(Ordering::Acquire) {
            true => bytes.len() / 2,
            false => bytes.len(),
        }
    }

    fn room(&self) -> RawFd {
        self.room.as_raw_fd()
    }

    fn seen(&self) {
        let _ = self.room.read();
    }
}

/// A console whose driver looks at its size at once, so that it gets input.
#[derive(Debug)]
struct Looked(Console);

impl VirtioDevice for Looked {
    fn kind(&self) -> VirtioKind {
        self.0.kind()
    }
    fn queue_sizes(&self) -> &[u16] {
        self.0.queue_sizes()
    }
    fn features(&self) -> Features {
        self.0.features()
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.0.write_config(offset, data);
    }
    fn connect(&mut self, interrupt: Arc<dyn VirtioInterrupt>) {
        self.0.connect(interrupt);
    }
    fn activate(&mut self, acked: Features) -> Result<Vec<Lane>, ActivateError> {
        let lanes = self.0.activate(acked);
        self.0.read_config(0, &mut [0; 4]);
        lanes
    }
}

/// Somebody at a terminal.
#[derive(Debug)]
struct User {
    reader: Arc<Reader>,
    receiver: Arc<dyn Receiver>,
    control: ConsoleControl,
}

impl Host for User {
    fn poke(&mut self, what: u8) {
        match what % 4 {
            0 => {
                self.receiver.receive(b"typed");
            }
            1 => self.control.resize(what.into(), 25),
            2 => self.reader.stopped.store(true, Ordering::Release),
            _ => {
                self.reader.stopped.store(false, Ordering::Release);
                let _ = self.reader.room.write(1);
            }
        }
    }
}

fn stage() -> Stage {
    let reader = Arc::new(Reader::new().expect("no event descriptor"));
    let console = Console::new(reader.clone()).expect("cannot make a console");
    Stage {
        host: Box::new(User {
            reader,
            receiver: console.receiver(),
            control: console.control(),
        }),
        device: Box::new(Looked(console)),
        queues: vec![
            QueuePlan {
                request: |driver| vec![driver.writable(16)],
                taken: true,
            },
            QueuePlan {
                request: |driver| vec![driver.readable(b"some output")],
                taken: true,
            },
        ],
    }
}

/// Has its output taken, and gets what is typed.
fn serves(attack: &mut Attack) {
    attack.poke(3);
    let driver = &mut attack.drivers[usize::from(TX)];
    driver.recycle();
    let output = driver.readable(&[b'o'; 5000]);
    let head = driver.submit(&[output]);
    attack.machine.kick(TX);
    assert_eq!(attack.wait_used(TX, 1), [(head, 0)]);

    let driver = &mut attack.drivers[usize::from(RX)];
    driver.recycle();
    let buffer = driver.writable(16);
    let head = driver.submit(&[buffer]);
    attack.poke(0);
    attack.machine.kick(RX);
    let used = attack.wait_used(RX, 1);
    // What was typed before may come with it.
    assert!(used[0].0 == head && used[0].1 >= 5, "{used:?}");
}

/// Submits a chain for input, and types.
fn listen(attack: &mut Attack, chain: &[Descriptor]) {
    attack.start();
    attack.drivers[usize::from(RX)].submit(chain);
    attack.poke(0);
    attack.machine.kick(RX);
}

/// Submits a chain of output to a reader that has stopped, and lets it go on.
fn say(attack: &mut Attack, chain: &[Descriptor]) {
    attack.start();
    attack.poke(2);
    attack.drivers[usize::from(TX)].submit(chain);
    attack.machine.kick(TX);
    attack.turn();
    attack.poke(3);
    attack.queue = TX;
}

const ROWS: &[Row] = &[
    (
        "console: a buffer for input that is to be read",
        Fine,
        |a| {
            listen(a, &[Descriptor::readable(0x8000, 64)]);
        },
    ),
    ("console: a buffer for input of one byte", Fine, |a| {
        listen(a, &[Descriptor::writable(0x8000, 1)]);
        assert_eq!(a.wait_used(RX, 1), [(0, 1)]);
    }),
    ("console: input on the rings of the output", Either, |a| {
        a.start();
        let table = a.drivers[usize::from(TX)].descriptor_table();
        a.drivers[usize::from(RX)].submit(&[Descriptor::writable(table, 4096)]);
        a.poke(0);
        a.machine.kick(RX);
        a.turn();
        let output = a.drivers[usize::from(TX)].readable(b"x");
        a.drivers[usize::from(TX)].submit(&[output]);
        a.queue = TX;
    }),
    ("console: output that is to be written", Fine, |a| {
        say(a, &[Descriptor::writable(0x8000, 64)]);
        assert_eq!(a.wait_used(TX, 1), [(0, 0)]);
    }),
    ("console: output of megabytes", Fine, |a| {
        say(a, &[Descriptor::readable(0, 0x40_0000); 4]);
        a.wait_used(TX, 1);
    }),
    ("console: output that shrinks while it waits", Fine, |a| {
        a.start();
        a.poke(2);
        let driver = &mut a.drivers[usize::from(TX)];
        let output = driver.readable(&[b'o'; 4000]);
        let head = driver.submit(&[output]);
        a.machine.kick(TX);
        a.turn();
        let short = Descriptor { len: 10, ..output };
        a.drivers[usize::from(TX)].set_descriptor(head, short);
        a.poke(3);
        assert_eq!(a.wait_used(TX, 1), [(head, 0)]);
    }),
    (
        "console: output after the reader has stopped, and a reset",
        Fine,
        |a| {
            a.start();
            a.poke(2);
            for _ in 0..a.drivers[usize::from(TX)].size() {
                let output = a.drivers[usize::from(TX)].readable(b"xy");
                a.drivers[usize::from(TX)].submit(&[output]);
            }
            a.machine.kick(TX);
            a.machine.set(reg::STATUS, 0);
            a.poke(3);
            a.start();
        },
    ),
    (
        "console: characters in an emergency, without end",
        Fine,
        |a| {
            for word in 0..1000 {
                a.machine.set(reg::CONFIG + 8, word);
                a.machine.write(reg::CONFIG + 8, &[1, 2]);
            }
            a.start();
        },
    ),
    ("console: a size of its own", Fine, |a| {
        a.start();
        let size = a.machine.get(reg::CONFIG);
        a.machine.set(reg::CONFIG, u32::MAX);
        a.machine.set(reg::CONFIG + 4, u32::MAX);
        assert_eq!(a.machine.get(reg::CONFIG), size);
        a.poke(1);
    }),
    ("console: neither queue", Fine, |a| {
        let offered = a.machine.offered();
        assert!(a.machine.negotiate(offered));
        a.machine
            .set(reg::STATUS, crate::virtio::testing::status::DRIVER_OK);
        a.poke(0);
        a.poke(3);
        a.turn();
    }),
];
