//! The card against a fake driver, with the other end of its cable in hand. Called as the I/O thread calls
//! it, one event after the other, so that nothing depends on time.

mod control;
mod face;
mod receive;
mod throttled;
mod transmit;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_queue::Queue;

use super::backend::HEADER;
use super::features::feature;
use super::testing::{FarEnd, Outlet, card, frame};
use super::*;
use crate::io::{QueueIo, QueueSet};
use crate::mem::GuestMemory;
use crate::virtio::testing::{Descriptor, Driver, memory};
use crate::virtio::{DeviceFault, QueueWorker};

/// Token of the backend's descriptor.
const BACKEND: u32 = 0;
/// Token of the cable being plugged in.
const PLUGGED: u32 = 1;

const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);

/// A running card of one pair.
struct Bench {
    net: Net,
    outlet: Outlet,
    far: FarEnd,
    memory: GuestMemory,
    /// The drivers of the receive, the transmit and the control queue.
    rx: Driver,
    tx: Driver,
    ctrl: Driver,
    queues: Vec<Queue>,
    features: Features,
    pair: Box<dyn QueueWorker>,
    control: Box<dyn QueueWorker>,
    /// What the last event did.
    completed: QueueSet,
    empty: QueueSet,
    cut_short: QueueSet,
}

impl Bench {
    /// With the features of a plain driver, and `bits`.
    fn new(bits: &[u32]) -> Self {
        Self::with_sizes(bits, 256)
    }

    /// With rings of `size` entries.
    fn with_sizes(bits: &[u32], size: u16) -> Self {
        let (net, outlet, mut ends) = card(1);
        let memory = memory();
        let rx = Driver::new(&memory, 0x1000, size);
        let tx = Driver::new(&memory, 0x20_0000, size);
        let ctrl = Driver::new(&memory, 0x38_0000, size);
        let features = bits
            .iter()
            .fold(Features::VERSION_1, |all, bit| all | feature(*bit));
        let mut bench = Self {
            queues: [&rx, &tx, &ctrl].map(Driver::queue).into(),
            far: ends.remove(0),
            net,
            outlet,
            memory,
            rx,
            tx,
            ctrl,
            features,
            pair: Box::new(Nothing),
            control: Box::new(Nothing),
            completed: QueueSet::default(),
            empty: QueueSet::default(),
            cut_short: QueueSet::default(),
        };
        bench.start();
        bench
    }

    /// The driver sets the card up (again).
    fn start(&mut self) {
        (self.pair, self.control) = (Box::new(Nothing), Box::new(Nothing));
        let mut lanes = self.net.activate(self.features).unwrap();
        self.control = lanes.pop().unwrap().worker;
        self.pair = lanes.pop().unwrap().worker;
        assert!(lanes.is_empty());
    }

    /// One event of the pair's worker.
    fn event(
        &mut self,
        event: impl FnOnce(&mut dyn QueueWorker, &mut QueueIo<'_>) -> Result<(), DeviceFault>,
    ) -> Result<(), DeviceFault> {
        let mut io = QueueIo::new(&self.memory, &mut self.queues, self.features);
        let outcome = event(self.pair.as_mut(), &mut io);
        (self.completed, self.empty, self.cut_short) = (io.completed(), io.empty(), io.cut_short());
        io.finish()?;
        outcome
    }

    fn kick(&mut self, queue: QueueIndex) -> Result<(), DeviceFault> {
        self.event(|worker, io| worker.on_kick(queue, io))
    }

    /// The backend's descriptor wakes the worker.
    fn wake(&mut self) -> Result<(), DeviceFault> {
        self.event(|worker, io| worker.on_source(BACKEND, io))
    }

    /// As many receive buffers of `len` bytes; returns their addresses.
    fn give_buffers(&mut self, count: u16, len: u32) -> Vec<u64> {
        let make = |_| {
            let buffer = self.rx.writable(len);
            self.rx.submit(&[buffer]);
            buffer.address
        };
        (0..count).map(make).collect()
    }

    /// Makes a frame of `bytes`, header included, available to be sent.
    fn submit(&mut self, bytes: &[u8]) -> u16 {
        let buffer = self.tx.readable(bytes);
        self.tx.submit(&[buffer])
    }

    fn counters(&self) -> PairCounters {
        self.net.control().counters()[0]
    }
}

/// A chain that no driver makes: words of the fault, and how it is made.
type Odd = (&'static str, fn(&mut Bench));

/// No worker.
struct Nothing;

impl QueueWorker for Nothing {
    fn on_kick(&mut self, _queue: QueueIndex, _io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        unreachable!("no worker yet")
    }
}

/// Frames and bytes that passed, and frames that were dropped.
fn traffic(traffic: Traffic) -> (u64, u64, u64) {
    (traffic.frames, traffic.bytes, traffic.dropped)
}
