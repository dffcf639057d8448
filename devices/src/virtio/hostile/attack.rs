//! The guest's hands: one device's registers, its queues, and the memory around them.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryBackend;

use super::subject::{Host, QueuePlan, Stage, Subject};
use crate::io::{IoHandle, IoLoop};
use crate::mem::GuestAddress;
use crate::virtio::testing::{
    Descriptor, Driver, END, Machine, Ram, SEAM, Step, Tape, reg, status,
};

/// Entries of each queue under attack, unless the device has fewer.
pub const QUEUE_SIZE: u16 = 16;
/// Where memory goes on, above 4 GiB as on a real machine; from [`END`] to here is nothing.
pub const HIGH: u64 = 1 << 32;
/// The first address behind all memory.
pub const HIGH_END: u64 = HIGH + 0x1_0000;
/// The first queue's rings and buffers are here.
const BASE: u64 = 0x1_0000;
/// What each queue has of memory, rings and buffers.
const WINDOW: u64 = 0x4_0000;

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;

/// How the device's data path runs.
#[derive(Debug, Clone)]
pub enum Engine {
    /// On threads of its own, as it does in a VM, a lane on each; what one died of, if one did.
    Threads(Arc<[IoHandle]>, Arc<OnceLock<String>>),
    /// Within the calls that wait for it.
    Loop(IoLoop),
}

/// A device in the hands of a guest.
#[derive(Debug)]
pub struct Attack {
    /// The registers.
    pub machine: Machine,
    // Before the memory: a loop has what is left of the device's data path, and that has the memory.
    engine: Engine,
    host: Box<dyn Host>,
    /// The drivers of all queues, by index. Their rings are laid out, whether the device knows or not.
    pub drivers: Vec<Driver>,
    /// The memory.
    pub ram: Ram,
    /// The queue that is attacked.
    pub queue: u16,
    /// What its queues are for.
    pub queues: Vec<QueuePlan>,
    /// Which device it is.
    pub subject: Subject,
    tape: Tape,
}

impl Attack {
    /// A device as it is before its driver does anything, to be attacked at `queue`.
    #[must_use]
    pub fn new(subject: &Subject, engine: Engine, queue: u16, tape: Tape) -> Self {
        let stage = (subject.stage)();
        Self::on(stage, subject, engine, queue, tape)
    }

    fn on(stage: Stage, subject: &Subject, engine: Engine, queue: u16, tape: Tape) -> Self {
        let Stage {
            device,
            queues,
            host,
        } = stage;
        // A replay does not know what was given.
        let watched = matches!(engine, Engine::Threads(..));
        let ram = ram(watched, tape.clone());
        let handles = match &engine {
            Engine::Threads(handles, _) => Arc::clone(handles),
            Engine::Loop(own) => [own.handle()].into(),
        };
        let machine = Machine::new(device, ram.memory(), handles, tape.clone());
        let mut attack = Self {
            machine: machine.expect("cannot make a device"),
            ram,
            drivers: Vec::new(),
            queue,
            queues,
            subject: *subject,
            host,
            engine,
            tape,
        };
        attack.tape.pause();
        attack.lay_out();
        attack.tape.resume();
        attack
    }

    /// Lays the rings of all queues out anew.
    fn lay_out(&mut self) {
        let lay = |index: usize| {
            let queue = u16::try_from(index).expect("too many queues");
            let base = BASE + WINDOW * u64::from(queue);
            Driver::watched(&self.ram, base, self.size_of(queue))
        };
        self.drivers = (0..self.queues.len()).map(lay).collect();
    }

    fn size_of(&self, queue: u16) -> u16 {
        self.machine.set(reg::QUEUE_SEL, queue.into());
        let most = self.machine.get(reg::QUEUE_SIZE_MAX);
        u16::try_from(most).map_or(QUEUE_SIZE, |most| most.min(QUEUE_SIZE))
    }

    /// The whole initialization with everything that is offered.
    pub fn start(&mut self) {
        self.tape.push(|| Step::Start);
        // All of it is one step.
        self.tape.pause();
        let offered = self.machine.offered();
        self.start_with(offered);
        self.tape.resume();
    }

    /// The whole initialization of §3.1.1 with `features`, which the device must agree to, and those that
    /// it cannot be attacked without.
    pub fn start_with(&mut self, features: u64) {
        self.agree_on(features | self.subject.needs);
        self.lay_out();
        for (queue, driver) in (0..).zip(&self.drivers) {
            self.machine.set_queue(queue, driver);
        }
        self.machine.set(reg::STATUS, status::DRIVER_OK);
        let status = self.machine.get(reg::STATUS);
        assert_eq!(status, status::DRIVER_OK, "the device does not start");
    }

    /// The initialization up to FEATURES_OK.
    pub fn agree_on(&mut self, features: u64) {
        let agreed = self.machine.negotiate(features);
        assert!(agreed, "the device offers features that it does not take");
    }

    /// The driver of the queue that is attacked.
    pub fn driver(&mut self) -> &mut Driver {
        &mut self.drivers[usize::from(self.queue)]
    }

    /// A request that the device would serve, for the queue that is attacked.
    pub fn request(&mut self) -> Vec<Descriptor> {
        let make = self.queues[usize::from(self.queue)].request;
        make(self.driver())
    }

    /// Puts such a request into the queue.
    pub fn submit_request(&mut self) {
        let request = self.request();
        self.driver().submit(&request);
    }

    /// Rings the doorbell of the queue that is attacked.
    pub fn kick(&self) {
        self.machine.kick(self.queue);
    }

    /// Rings every doorbell there is.
    pub fn kick_all(&self) {
        for (queue, _) in (0..).zip(&self.queues) {
            self.machine.kick(queue);
        }
    }

    /// Lets the host side do something.
    pub fn poke(&mut self, what: u8) {
        self.tape.push(|| Step::Poke(what));
        self.host.poke(what);
    }

    /// Kicks the queue and lets the host side do everything it can, so that the device looks at what the
    /// guest has made.
    pub fn provoke(&mut self) {
        self.kick();
        self.turn();
        for what in 0..4 {
            self.poke(what);
            self.turn();
        }
    }

    /// Gives the data path a chance to run.
    pub fn turn(&self) {
        self.tape.push(|| Step::Turn);
        match &self.engine {
            Engine::Threads(_, died) => match died.get() {
                Some(error) => panic!("{error}"),
                None => thread::sleep(Duration::from_micros(20)),
            },
            Engine::Loop(own) => {
                // Bounded: a worker may have a source that stays ready.
                for _ in 0..64 {
                    if own.turn().expect("the loop failed") == 0 {
                        break;
                    }
                }
            }
        }
    }

    /// Waits until `done`, which must come: long, but not for ever.
    pub fn wait_for(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < deadline, "no {what} within a minute");
            self.turn();
        }
    }

    /// Waits until the device gives `count` chains of `queue` back; which, and how long.
    pub fn wait_used(&mut self, queue: u16, count: usize) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        self.wait_for("used buffers", |attack| {
            used.extend(attack.drivers[usize::from(queue)].take_used());
            used.len() >= count
        });
        used
    }

    /// Does one step of a tape. A step that no guest can do, such as a write where there is no memory, is
    /// left out.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Memory { address, bytes } => {
                let (at, len) = (GuestAddress(*address), bytes.len());
                if GuestMemoryBackend::check_range(self.ram.memory(), at, len) {
                    self.ram.write(*address, bytes);
                }
            }
            Step::Write { offset, data } => self.machine.write((*offset).into(), data),
            Step::Read { offset, len } => {
                let mut data = [0; 8];
                let len = usize::from(*len).min(data.len());
                self.machine.read((*offset).into(), &mut data[..len]);
            }
            Step::Kick(queue) => self.machine.kick((*queue).into()),
            Step::Poke(what) => self.poke(*what),
            Step::Turn => self.turn(),
            Step::Start => self.start(),
        }
    }

    /// Whether what was done to the device is anybody's guess, and may have been a rightful request.
    pub(super) fn is_fuzzed(&self) -> bool {
        matches!(self.engine, Engine::Loop(..))
    }

    /// Asserts that the device, whatever was done to it, serves again after a reset.
    pub fn assert_recovers(&mut self) {
        self.machine.set(reg::STATUS, 0);
        self.start();
        (self.subject.serves)(self);
        assert!(!self.machine.faulted(), "it serves and needs a reset");
    }
}

/// What every attack has for memory: two regions that meet at [`SEAM`], and one behind a hole.
fn ram(watched: bool, tape: Tape) -> Ram {
    let size = |from: u64, to: u64| usize::try_from(to - from).expect("larger than memory");
    let regions = [
        (0, size(0, SEAM)),
        (SEAM, size(SEAM, END)),
        (HIGH, size(HIGH, HIGH_END)),
    ];
    if watched {
        Ram::new(&regions, tape)
    } else {
        Ram::unwatched(&regions, tape)
    }
}
