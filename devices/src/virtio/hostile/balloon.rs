//! virtio-balloon under attack.

use std::time::Duration;

use super::Attack;
use super::attack::HIGH;
use super::case::{Expect, Row, Scope, table};
use super::subject::{Host, QueuePlan, Stage, Subject};
use crate::virtio::balloon::{Balloon, BalloonControl, BalloonOptions};
use crate::virtio::testing::{Descriptor, Driver, END, reg};

use Expect::{Either, Fine};

/// The balloon.
pub(super) fn subject() -> Subject {
    Subject {
        name: "balloon",
        stage,
        serves,
        needs: 0,
        cases: || table(Scope::Device, ROWS),
    }
}

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATS: u16 = 2;
const REPORTING: u16 = 4;

const PAGE: u64 = 4096;
/// Pages that the driver can do without, behind all rings and buffers.
const FREE: u64 = 0x30_0000;

/// VIRTIO_BALLOON_F_STATS_VQ.
const F_STATS_VQ: u64 = 1 << 1;
/// VIRTIO_BALLOON_F_PAGE_POISON.
const F_PAGE_POISON: u64 = 1 << 4;
/// VIRTIO_BALLOON_F_REPORTING.
const F_REPORTING: u64 = 1 << 5;

#[derive(Debug)]
struct Keeper(BalloonControl);

impl Host for Keeper {
    fn poke(&mut self, what: u8) {
        if what.is_multiple_of(2) {
            let _ = self.0.ask_statistics(Duration::ZERO);
        } else {
            let _ = self.0.set_target(u64::from(what) * PAGE);
        }
    }
}

fn stage() -> Stage {
    let balloon = Balloon::new(BalloonOptions::of_memory(END)).expect("cannot make a balloon");
    let plan = |request| QueuePlan {
        request,
        taken: true,
    };
    let report: fn(&mut Driver) -> Vec<Descriptor> = |driver| {
        driver.give(FREE, PAGE);
        vec![Descriptor::writable(FREE, 4096)]
    };
    let numbers: fn(&mut Driver) -> Vec<Descriptor> = |driver| vec![list(driver, &[FREE])];
    Stage {
        host: Box::new(Keeper(balloon.control())),
        device: Box::new(balloon),
        queues: vec![
            plan(numbers),
            plan(numbers),
            plan(|driver| vec![driver.readable(&statistic(4, 1 << 20))]),
            plan(report),
            plan(report),
        ],
    }
}

/// A list of pages, given.
fn list(driver: &mut Driver, pages: &[u64]) -> Descriptor {
    let mut bytes = Vec::new();
    for page in pages {
        driver.give(*page, PAGE);
        let number = u32::try_from(page / PAGE).unwrap_or(u32::MAX);
        bytes.extend(number.to_le_bytes());
    }
    driver.readable(&bytes)
}

fn statistic(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

/// Fills two pages, gives each back to the host in another way, and lets the air out.
fn serves(attack: &mut Attack) {
    for (queue, page) in [(INFLATE, FREE), (REPORTING, FREE + PAGE)] {
        let driver = &mut attack.drivers[usize::from(queue)];
        driver.recycle();
        driver.give(page, PAGE);
        driver.write(page, &[1; 4096]);
        let buffer = match queue {
            INFLATE => list(driver, &[page]),
            _ => Descriptor::writable(page, 4096),
        };
        let head = driver.submit(&[buffer]);
        attack.machine.kick(queue);
        let used = attack.wait_used(queue, 1);
        assert_eq!(used, [(head, 0)], "queue {queue}");
        let poisoned = config(attack, 12) != 0;
        if queue == INFLATE || !poisoned {
            let driver = &attack.drivers[usize::from(queue)];
            assert_eq!(driver.read(page, 4096), [0; 4096], "queue {queue}");
        }
    }
    let driver = &mut attack.drivers[usize::from(DEFLATE)];
    driver.recycle();
    let pages = list(driver, &[FREE, FREE + PAGE]);
    let head = driver.submit(&[pages]);
    attack.machine.kick(DEFLATE);
    assert_eq!(attack.wait_used(DEFLATE, 1), [(head, 0)]);
}

fn config(attack: &Attack, offset: u64) -> u32 {
    attack.machine.get(reg::CONFIG + offset)
}

/// Sends page numbers to be given up.
fn inflate(attack: &mut Attack, numbers: &[u32]) {
    attack.start();
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let driver = &mut attack.drivers[0];
    let buffer = driver.readable(&bytes);
    driver.submit(&[buffer]);
}

/// Tells statistics.
fn tell(attack: &mut Attack, bytes: &[u8]) {
    attack.start();
    let driver = &mut attack.drivers[usize::from(STATS)];
    let buffer = driver.readable(bytes);
    driver.submit(&[buffer]);
    attack.queue = STATS;
    attack.provoke();
}

const ROWS: &[Row] = &[
    ("balloon: pages behind memory", Fine, |a| {
        let end = u32::try_from(END / PAGE).unwrap_or(0);
        inflate(a, &[end, end + 1, u32::MAX, u32::MAX - 1]);
    }),
    ("balloon: pages in the hole", Fine, |a| {
        inflate(a, &[0xd_0000, 0xf_ec00, 0xf_ee00]);
    }),
    ("balloon: a run from memory into the hole", Fine, |a| {
        let end = u32::try_from(END / PAGE).unwrap_or(0);
        a.ram.give(END - PAGE, PAGE);
        inflate(a, &[end - 1, end, end + 1]);
    }),
    ("balloon: a run from the hole into high memory", Fine, |a| {
        let high = u32::try_from(HIGH / PAGE).unwrap_or(0);
        a.ram.give(HIGH, PAGE);
        inflate(a, &[high - 1, high]);
    }),
    (
        "balloon: every page of all memory, its rings too",
        Either,
        |a| {
            a.ram.give(0, END);
            let pages = u32::try_from(END / PAGE).unwrap_or(0);
            let numbers: Vec<u32> = (0..2 * pages).collect();
            inflate(a, &numbers);
        },
    ),
    ("balloon: the same page a thousand times", Fine, |a| {
        let page = u32::try_from(FREE / PAGE).unwrap_or(0);
        a.ram.give(FREE, PAGE);
        inflate(a, &[page; 1000]);
    }),
    ("balloon: half a page number", Fine, |a| {
        a.start();
        let half = a.drivers[0].readable(&[0xff, 0xff, 0xff]);
        a.drivers[0].submit(&[half]);
    }),
    ("balloon: page numbers to write to", Fine, |a| {
        a.start();
        let room = a.drivers[0].writable(64);
        a.drivers[0].submit(&[room]);
    }),
    ("balloon: the pages of its own rings", Fine, |a| {
        // What is discarded reads as zeroes: an empty ring, which is the driver's own trouble.
        a.start();
        let table = a.drivers[1].descriptor_table();
        let buffer = list(&mut a.drivers[0], &[table]);
        a.drivers[0].submit(&[buffer]);
        a.provoke();
        a.queue = 1;
    }),
    (
        "balloon: numbers of a list that is given up itself",
        Fine,
        |a| {
            a.start();
            let at = FREE + PAGE;
            let number = u32::try_from(at / PAGE).unwrap_or(0);
            a.ram.give(at, PAGE);
            a.drivers[0].write(at, &number.to_le_bytes());
            a.drivers[0].submit(&[Descriptor::readable(at, 4096)]);
        },
    ),
    (
        "balloon: reported memory that does not begin at a page",
        Fine,
        |a| {
            a.start();
            a.drivers[4].submit(&[
                Descriptor::writable(FREE + 1, 4096),
                Descriptor::writable(FREE + 0x2fff, 2),
                Descriptor::writable(FREE + 0x5800, 1),
            ]);
            a.queue = REPORTING;
        },
    ),
    ("balloon: reported memory to read", Fine, |a| {
        a.start();
        a.drivers[4].submit(&[Descriptor::readable(FREE, 8192)]);
        a.queue = REPORTING;
    }),
    ("balloon: reported memory that is poisoned", Fine, |a| {
        a.machine.set(reg::CONFIG + 12, 0xaaaa_aaaa);
        a.start();
        a.machine.set(reg::CONFIG + 12, 0x5555_5555);
        a.drivers[4].write(FREE, &[0x55; 4096]);
        a.drivers[4].submit(&[Descriptor::writable(FREE, 4096)]);
        a.machine.kick(REPORTING);
        a.wait_used(REPORTING, 1);
        assert_eq!(a.drivers[4].read(FREE, 4096), [0x55; 4096]);
        a.machine.set(reg::CONFIG + 12, 0);
    }),
    ("balloon: reports without their feature", Fine, |a| {
        let offered = a.machine.offered();
        a.start_with(offered & !F_REPORTING);
        a.drivers[4].submit(&[Descriptor::writable(FREE, 4096)]);
        a.queue = REPORTING;
    }),
    ("balloon: poison without its feature", Fine, |a| {
        let offered = a.machine.offered();
        a.machine.set(reg::CONFIG + 12, u32::MAX);
        a.start_with(offered & !F_PAGE_POISON);
        a.machine.set(reg::CONFIG + 12, 0);
    }),
    ("balloon: statistics without their feature", Fine, |a| {
        let offered = a.machine.offered();
        a.start_with(offered & !F_STATS_VQ);
        let buffer = a.drivers[2].readable(&statistic(0, 1));
        a.drivers[2].submit(&[buffer]);
        a.queue = STATS;
    }),
    ("balloon: statistics of unknown tags", Fine, |a| {
        let tags = [16, 17, 0x8000, u16::MAX];
        let bytes = tags.map(|tag| statistic(tag, u64::MAX)).concat();
        tell(a, &bytes);
    }),
    ("balloon: statistics without end", Fine, |a| {
        tell(a, &statistic(5, u64::MAX).repeat(1000));
    }),
    ("balloon: statistics that end in the middle", Fine, |a| {
        tell(a, &statistic(5, 7)[..7]);
    }),
    ("balloon: answers that nobody asked for", Fine, |a| {
        a.start();
        for _ in 0..a.drivers[2].size() {
            let buffer = a.drivers[2].readable(&statistic(1, 1));
            a.drivers[2].submit(&[buffer]);
            a.machine.kick(STATS);
        }
        a.queue = STATS;
    }),
    ("balloon: questions that nobody answers", Fine, |a| {
        a.start();
        for _ in 0..20 {
            a.poke(0);
            a.turn();
        }
    }),
    ("balloon: more pages in it than there are", Fine, |a| {
        a.start();
        a.machine.set(reg::CONFIG + 4, u32::MAX);
        assert_eq!(config(a, 4), u32::MAX);
        a.machine.set(reg::CONFIG, u32::MAX);
        a.poke(1);
        assert_eq!(config(a, 0), 1, "its size is the device's to say");
    }),
];
