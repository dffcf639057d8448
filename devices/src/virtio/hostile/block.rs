//! virtio-blk under attack.

use std::io::Write;

use vmm_sys_util::tempfile::TempFile;

use super::Attack;
use super::case::{Case, Expect, Row, Scope, table};
use super::subject::{QueuePlan, Quiet, Stage, Subject};
use crate::virtio::block::{Block, Engine, Manner, Options, open};
use crate::virtio::testing::{Descriptor, Driver, END};

use Expect::{Either, Fine, Reset};

/// The block device, its data moved by one system call after the other.
pub(super) fn subject() -> Subject {
    Subject {
        name: "block",
        stage: || stage(Engine::Sync, 1),
        serves,
        needs: 0,
        cases,
    }
}

/// The block device, its data moved by io_uring; none if the host has no such thing.
pub(super) fn uring() -> Option<Subject> {
    Engine::IoUring.check().ok()?;
    Some(Subject {
        name: "block-uring",
        stage: || stage(Engine::IoUring, 1),
        ..subject()
    })
}

/// The block device with two queues.
pub(super) fn queues() -> Subject {
    Subject {
        name: "block-queues",
        stage: || stage(Engine::Auto, 2),
        // Without it only the first queue is served.
        needs: F_MQ,
        ..subject()
    }
}

/// VIRTIO_BLK_F_MQ.
const F_MQ: u64 = 1 << 12;

const SECTORS: u8 = 16;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A disk on a file whose every byte is the number of its sector.
fn stage(engine: Engine, queues: u16) -> Stage {
    let image = TempFile::new().expect("cannot make an image");
    for sector in 0..SECTORS {
        let written = image.as_file().write_all(&[sector; 512]);
        written.expect("cannot write an image");
    }
    // The open file stays when its name goes.
    let options = Options {
        engine,
        ..Options::default()
    };
    let disk = open(&[image.as_path()], &options).expect("cannot open an image");
    let manner = Manner {
        queues,
        ..Manner::default()
    };
    let plan = |_| QueuePlan {
        request: |driver| read_of(driver, 3),
        taken: true,
    };
    Stage {
        device: Box::new(Block::with_manner(disk, "disk", manner)),
        queues: (0..queues).map(plan).collect(),
        host: Box::new(Quiet),
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn read_of(driver: &mut Driver, sector: u64) -> Vec<Descriptor> {
    vec![
        driver.readable(&header(IN, sector)),
        driver.writable(512),
        driver.writable(1),
    ]
}

fn write_of(driver: &mut Driver, sector: u8) -> Vec<Descriptor> {
    vec![
        driver.readable(&header(OUT, sector.into())),
        driver.readable(&[sector; 512]),
        driver.writable(1),
    ]
}

/// Reads two sectors, which no case of the table has changed. A fuzzer finds the requests that rightly
/// change them; then they are put back first.
fn serves(attack: &mut Attack) {
    for sector in [3, SECTORS - 1] {
        if attack.is_fuzzed() {
            attack.drivers[0].recycle();
            let parts = write_of(&mut attack.drivers[0], sector);
            attack.drivers[0].submit(&parts);
            attack.machine.kick(0);
            assert_eq!(attack.wait_used(0, 1).len(), 1);
            assert_eq!(attack.drivers[0].read(parts[2].address, 1), [OK]);
        }
        attack.drivers[0].recycle();
        let parts = read_of(&mut attack.drivers[0], sector.into());
        attack.drivers[0].submit(&parts);
        attack.machine.kick(0);
        let used = attack.wait_used(0, 1);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].1, 513);
        let driver = &attack.drivers[0];
        assert_eq!(driver.read(parts[1].address, 512), [sector; 512]);
        assert_eq!(driver.read(parts[2].address, 1), [OK]);
    }
}

/// A well-formed request, whatever it asks for.
struct Question {
    kind: u32,
    sector: u64,
    data: Vec<u8>,
    room: u32,
}

impl Question {
    fn read(sector: u64, room: u32) -> Self {
        Self {
            kind: IN,
            sector,
            data: Vec::new(),
            room,
        }
    }

    fn write(sector: u64, len: usize) -> Self {
        Self {
            kind: OUT,
            sector,
            data: vec![1; len],
            room: 0,
        }
    }

    fn other(kind: u32, data: Vec<u8>, room: u32) -> Self {
        Self {
            kind,
            sector: u64::MAX,
            data,
            room,
        }
    }
}

/// Asks and asserts the status that comes back.
fn ask(attack: &mut Attack, question: &Question, expected: u8) {
    attack.start();
    let driver = &mut attack.drivers[0];
    let mut parts = vec![driver.readable(&header(question.kind, question.sector))];
    if !question.data.is_empty() {
        parts.push(driver.readable(&question.data));
    }
    if question.room > 0 {
        parts.push(driver.writable(question.room));
    }
    let status = driver.writable(1);
    parts.push(status);
    driver.submit(&parts);
    attack.machine.kick(0);
    attack.wait_used(0, 1);
    assert_eq!(attack.drivers[0].read(status.address, 1), [expected]);
}

/// A discard or write-zeroes segment.
fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

/// Starts the device and submits a chain as it is.
fn submit(attack: &mut Attack, make: impl FnOnce(&mut Driver) -> Vec<Descriptor>) {
    attack.start();
    let parts = make(&mut attack.drivers[0]);
    attack.drivers[0].submit(&parts);
}

fn cases() -> Vec<Case> {
    let mut cases = table(Scope::Device, ROWS);
    for (name, question, status) in questions() {
        let act = move |a: &mut Attack| ask(a, &question, status);
        cases.push(Case::new(
            format!("block: {name}"),
            Scope::Device,
            Fine,
            act,
        ));
    }
    cases
}

/// Requests that cannot be served, or are odd, and their answers. None changes the disk.
fn questions() -> Vec<(&'static str, Question, u8)> {
    let (read, write, other) = (Question::read, Question::write, Question::other);
    let end = u64::from(SECTORS);
    vec![
        ("a read behind the end", read(end, 512), IOERR),
        ("a read over the end", read(end - 1, 1024), IOERR),
        (
            "a read at the last sector number",
            read(u64::MAX, 512),
            IOERR,
        ),
        ("a read whose offset wraps", read(1 << 55, 512), IOERR),
        ("a read of half a sector", read(0, 256), IOERR),
        ("a read of 511 bytes", read(0, 511), IOERR),
        ("a read of nothing", read(0, 0), OK),
        ("a read of nothing behind the end", read(end + 1, 0), IOERR),
        ("a write behind the end", write(end, 512), IOERR),
        ("a write over the end", write(end - 1, 1024), IOERR),
        ("a write whose offset wraps", write(u64::MAX, 512), IOERR),
        ("a write of 513 bytes", write(0, 513), IOERR),
        ("an unknown type", other(u32::MAX, vec![], 512), UNSUPP),
        ("a SCSI command", other(2, vec![0; 64], 64), UNSUPP),
        ("an id of one byte", other(GET_ID, vec![], 1), OK),
        ("an id of a page", other(GET_ID, vec![], 4096), OK),
        (
            "a flush with data both ways",
            other(FLUSH, vec![0; 512], 512),
            OK,
        ),
        (
            "a discard over the end",
            other(DISCARD, segment(end - 1, 2, 0), 0),
            IOERR,
        ),
        (
            "a discard far away",
            other(DISCARD, segment(u64::MAX, 1, 0), 0),
            IOERR,
        ),
        (
            "a discard of 2 TiB",
            other(DISCARD, segment(0, u32::MAX, 0), 0),
            IOERR,
        ),
        (
            "a discard with flags",
            other(DISCARD, segment(0, 1, 1), 0),
            UNSUPP,
        ),
        (
            "half a segment of zeroes",
            other(WRITE_ZEROES, vec![0; 8], 0),
            IOERR,
        ),
        (
            "zeroes with unknown flags",
            other(WRITE_ZEROES, segment(0, 1, 2), 0),
            UNSUPP,
        ),
        (
            "more segments than offered",
            other(WRITE_ZEROES, segment(0, 1, 0).repeat(33), 0),
            IOERR,
        ),
    ]
}

const ROWS: &[Row] = &[
    ("block: a header of 15 bytes", Reset, |a| {
        submit(a, |d| vec![d.readable(&[0; 15]), d.writable(513)]);
    }),
    ("block: a header to write to", Reset, |a| {
        submit(a, |d| vec![d.writable(16), d.writable(512), d.writable(1)]);
    }),
    ("block: a header in 16 buffers", Fine, |a| {
        submit(a, |d| {
            let mut parts: Vec<_> = header(IN, 1)[..15]
                .iter()
                .map(|byte| d.readable(&[*byte]))
                .collect();
            // The last byte of a header is the sector's highest.
            parts[14].len += 1;
            parts.push(d.writable(513));
            parts
        });
    }),
    ("block: no status byte", Reset, |a| {
        submit(a, |d| vec![d.readable(&header(FLUSH, 0))]);
    }),
    ("block: a write without a status byte", Reset, |a| {
        submit(a, |d| {
            vec![d.readable(&header(OUT, 0)), d.readable(&[0; 512])]
        });
    }),
    ("block: a read into readable data", Reset, |a| {
        submit(a, |d| {
            let parts = [d.readable(&header(IN, 0)), d.readable(&[0; 512])];
            vec![parts[0], parts[1], d.writable(1)]
        });
    }),
    ("block: a write from writable data", Reset, |a| {
        submit(a, |d| vec![d.readable(&header(OUT, 0)), d.writable(513)]);
    }),
    ("block: a read of the header's own memory", Either, |a| {
        submit(a, |d| {
            let parts = [d.readable(&header(IN, 0)), d.writable(1)];
            let over = Descriptor::writable(parts[0].address, 512);
            vec![parts[0], over, parts[1]]
        });
    }),
    ("block: data and status on the rings", Either, |a| {
        submit(a, |d| {
            let rings = Descriptor::writable(d.descriptor_table(), 512);
            let status = Descriptor::writable(d.used_ring() + 2, 1);
            vec![d.readable(&header(IN, 0)), rings, status]
        });
    }),
    ("block: status at the last byte of memory", Fine, |a| {
        submit(a, |d| {
            let status = Descriptor::writable(END - 1, 1);
            vec![d.readable(&header(IN, 0)), d.writable(512), status]
        });
    }),
    ("block: a read of all memory at once", Either, |a| {
        submit(a, |d| {
            let all = Descriptor::writable(0, u32::try_from(END).unwrap_or(0));
            vec![d.readable(&header(IN, 0)), all, d.writable(1)]
        });
    }),
    ("block: 4 GiB of sectors", Reset, |a| {
        submit(a, |d| {
            let most = Descriptor::writable(0, 0xffff_fe00);
            vec![d.readable(&header(IN, 0)), most, d.writable(1)]
        });
    }),
];
