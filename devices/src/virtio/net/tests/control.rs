//! The control queue, and the link.

use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_MQ,
};

use super::*;
use crate::io::MAX_QUEUES;

const OK: u8 = 0;
const ERR: u8 = 1;

/// The token of [`Shared::look`](super::super::shared::Shared).
const LOOK: u32 = 0;
/// The token of the uplink's event.
const LINK: u32 = 1;

const ALL: &[u32] = &[
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
];

impl Bench {
    /// Gives a command and returns the answer; the command is split at each of `cuts`.
    fn command(&mut self, command: &[u8], cuts: &[usize]) -> u8 {
        let mut parts = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([command.len()]) {
            parts.push(self.ctrl.readable(&command[start..end]));
            start = end;
        }
        let answer = self.ctrl.writable(1);
        parts.push(answer);
        let head = self.ctrl.submit(&parts);
        self.control_event(|worker, io| worker.on_kick(QueueIndex(2), io))
            .unwrap();
        assert_eq!(self.ctrl.take_used(), [(head, 1)]);
        self.ctrl.read(answer.address, 1)[0]
    }

    fn control_event(
        &mut self,
        event: impl FnOnce(&mut dyn QueueWorker, &mut QueueIo<'_>) -> Result<(), DeviceFault>,
    ) -> Result<(), DeviceFault> {
        let mut io = QueueIo::new(&self.memory, &mut self.queues, self.features);
        event(self.control.as_mut(), &mut io)
    }

    fn mac(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        self.net.read_config(0, &mut mac);
        mac
    }
}

#[test]
fn the_driver_may_choose_its_address_until_it_goes() {
    let mut bench = Bench::new(ALL);
    let own = bench.mac();
    assert_eq!(bench.command(&[1, 1, 2, 4, 6, 8, 10, 12], &[2]), OK);
    assert_eq!(bench.mac(), [2, 4, 6, 8, 10, 12]);
    // A group's address, nobody's, one too short, one too long.
    for bad in [
        &[1, 1, 3, 4, 6, 8, 10, 12][..],
        &[1, 1, 0, 0, 0, 0, 0, 0],
        &[1, 1, 2, 4, 6, 8, 10],
        &[1, 1, 2, 4, 6, 8, 10, 12, 14],
    ] {
        assert_eq!(bench.command(bad, &[]), ERR, "{bad:?}");
    }
    assert_eq!(bench.mac(), [2, 4, 6, 8, 10, 12]);
    bench.start();
    assert_eq!(bench.mac(), own);
}

#[test]
fn offloads_are_switched_within_what_was_agreed_on() {
    let mut bench = Bench::new(ALL);
    let offloads = |bits: &[u32]| {
        bits.iter()
            .fold(Features::empty(), |all, bit| all | feature(*bit))
    };
    let both = offloads(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4]);
    assert_eq!(bench.outlet.state().offloads, [both], "at the start");
    let command = |bits: Features| [&[5, 0][..], &bits.bits().to_le_bytes()].concat();
    assert_eq!(bench.command(&command(Features::empty()), &[1, 2, 5]), OK);
    assert_eq!(bench.command(&command(both), &[]), OK);
    let csum = offloads(&[VIRTIO_NET_F_GUEST_CSUM]);
    assert_eq!(bench.command(&command(csum), &[2]), OK);
    let expected = [both, Features::empty(), both, csum];
    assert_eq!(bench.outlet.state().offloads, expected);
    // Segmentation without checksums is nothing the other end can do.
    let tso = offloads(&[VIRTIO_NET_F_GUEST_TSO4]);
    assert_eq!(bench.command(&command(tso), &[]), OK);
    assert_eq!(
        bench.outlet.state().offloads.last(),
        Some(&Features::empty())
    );
    // One that was not agreed on, and something else altogether.
    for bad in [1 << 8, u64::MAX, 1 << 22] {
        let bad = command(Features::from_bits_retain(bad));
        assert_eq!(bench.command(&bad, &[]), ERR, "{bad:?}");
    }
    bench.outlet.state().broken = true;
    assert_eq!(bench.command(&command(both), &[]), ERR);
}

#[test]
fn what_was_not_agreed_on_is_refused_and_nothing_else_happens() {
    let mut bench = Bench::new(&[VIRTIO_NET_F_CTRL_VQ]);
    let before = bench.outlet.state().pairs.clone();
    for command in [
        &[1, 1, 2, 4, 6, 8, 10, 12][..],
        &[4, 0, 1, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 1],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[2, 0, 1, 0],
        &[3, 0],
        &[255, 255],
    ] {
        assert_eq!(bench.command(command, &[]), ERR, "{command:?}");
    }
    assert_eq!(bench.outlet.state().pairs, before);
}

#[test]
fn commands_without_a_beginning_or_an_end_are_faults() {
    for (words, readable, writable) in [
        ("without class", 0, 1),
        ("without class", 1, 1),
        ("without room", 4, 0),
    ] {
        let mut bench = Bench::new(ALL);
        let mut parts = Vec::new();
        if readable > 0 {
            parts.push(bench.ctrl.readable(&vec![0; readable]));
        }
        if writable > 0 {
            parts.push(bench.ctrl.writable(writable));
        }
        bench.ctrl.submit(&parts);
        let outcome = bench.control_event(|worker, io| worker.on_kick(QueueIndex(2), io));
        let fault = outcome.unwrap_err().to_string();
        assert!(fault.contains(words), "{fault}");
    }
}

/// A driver that counts how often its device says that something changed.
#[derive(Debug, Default)]
struct Told(AtomicUsize);

impl VirtioInterrupt for Told {
    fn queue(&self, _queue: QueueIndex) -> io::Result<()> {
        Ok(())
    }
    fn config(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn needs_reset(&self) {}
}

#[test]
fn the_driver_is_told_when_the_link_changes_and_only_then() {
    let mut bench = Bench::new(ALL);
    let told = Arc::new(Told::default());
    bench.net.connect(told.clone());
    let status = |bench: &Bench| {
        let mut status = [0; 2];
        bench.net.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    let count = || told.0.load(Ordering::Relaxed);
    let control = bench.net.control();
    let look = |bench: &mut Bench, token| {
        bench
            .control_event(|worker, io| worker.on_source(token, io))
            .unwrap();
    };
    look(&mut bench, LOOK);
    assert_eq!((status(&bench), count()), (1, 0));
    bench.outlet.state().down = true;
    look(&mut bench, LINK);
    look(&mut bench, LINK);
    assert_eq!((status(&bench), count()), (0, 1));
    bench.outlet.state().down = false;
    look(&mut bench, LINK);
    assert_eq!((status(&bench), count()), (1, 2));
    control.set_plugged(false);
    control.set_plugged(false);
    assert_eq!((status(&bench), count()), (0, 3));
    control.set_plugged(true);
    assert_eq!((status(&bench), count()), (1, 4));
    assert!(control.is_up());
}

/// The lanes of a card of `pairs` pairs whose driver accepted `bits`: the queues of each.
fn lanes(pairs: usize, bits: &[u32]) -> (Vec<Vec<u16>>, Outlet, Box<dyn QueueWorker>) {
    let (mut net, outlet, _ends) = card(pairs);
    let acked = bits
        .iter()
        .fold(Features::VERSION_1, |all, bit| all | feature(*bit));
    let mut lanes = net.activate(acked).unwrap();
    let queues = lanes.iter().map(|lane| {
        let all = (0..MAX_QUEUES).map(QueueIndex);
        all.filter(|queue| lane.queues.contains(*queue))
            .map(|queue| queue.0)
            .collect()
    });
    let queues = queues.collect();
    (queues, outlet, lanes.pop().unwrap().worker)
}

#[test]
fn each_pair_has_a_lane_and_the_control_queue_is_where_the_driver_looks() {
    const MQ: &[u32] = &[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ];
    let (queues, outlet, _) = lanes(3, MQ);
    assert_eq!(queues, [vec![0, 1], vec![2, 3], vec![4, 5], vec![6]]);
    assert_eq!(
        outlet.state().pairs,
        [1],
        "one, until the driver says otherwise"
    );
    // Without MQ the device has one pair for this driver.
    let (queues, outlet, _) = lanes(3, &[VIRTIO_NET_F_CTRL_VQ]);
    assert_eq!(queues, [vec![0, 1], vec![2]]);
    assert_eq!(outlet.state().pairs, [1]);
    let (queues, _, _) = lanes(31, MQ);
    assert_eq!(queues[31], [62]);
}

#[test]
fn pairs_are_in_use_as_the_driver_says() {
    let memory = memory();
    let (_, outlet, mut control) = lanes(3, &[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ]);
    let mut driver = Driver::new(&memory, 0x1000, 16);
    let mut queues = (0..6).map(|_| Queue::default()).collect::<Vec<_>>();
    queues.push(driver.queue());
    let features = Features::VERSION_1;
    let mut io = QueueIo::new(&memory, &mut queues, features);
    let mut answers = Vec::new();
    for pairs in [2, 3, 1, 0, 4, 0x8000_u16] {
        driver.recycle();
        let command = driver.readable(&[&[4, 0][..], &pairs.to_le_bytes()].concat());
        let answer = driver.writable(1);
        driver.submit(&[command, answer]);
        control.on_kick(QueueIndex(6), &mut io).unwrap();
        answers.extend(driver.read(answer.address, 1));
    }
    assert_eq!(answers, [OK, OK, OK, ERR, ERR, ERR]);
    assert_eq!(outlet.state().pairs, [1, 2, 3, 1]);
}
