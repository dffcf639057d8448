//! Every device again, in the hands of a guest that knows how a ring works and says anything in it: block requests,
//! vsock packets, network frames and commands, lists of pages. The fuzzer gets to the protocols at once.
//!
//! An input is a list of
//!
//! | tag | operands | step |
//! |---|---|---|
//! | 0x80 and more | | the host side does something |
//! | queue | shape: 1, length: 2, bytes, room: 2 | a request: bytes to read, then so much room to write |
//!
//! The shape's lower bits say where the bytes are cut in two buffers, the highest whether the chain is indirect.

use devices::io::IoLoop;
use devices::virtio::fs::testing::{Body, ROOT, message, op};
use devices::virtio::hostile::attack::{Engine, QUEUE_SIZE};
use devices::virtio::hostile::{self, Attack, Subject};
use devices::virtio::testing::{Descriptor, Driver, Tape, WRITE, reg};

use crate::target::Target;

/// A device.
#[derive(Debug)]
struct Requests {
    subject: Subject,
    name: String,
}

/// A target for each device.
#[must_use]
pub fn all() -> Vec<Box<dyn Target>> {
    let target = |subject: Subject| -> Box<dyn Target> {
        Box::new(Requests {
            name: format!("{}-requests", subject.name),
            subject,
        })
    };
    hostile::subjects().into_iter().map(target).collect()
}

/// Descriptors of a request: two to read, one to write.
const PARTS: u16 = 3;
/// Requests that a queue has room for.
const SLOTS: usize = (QUEUE_SIZE / PARTS) as usize;
/// Where the buffers of a queue begin behind its rings, and how much each request has of them.
const BUFFERS: u64 = 0x4000;
/// Most bytes to read; a table may follow.
const MOST: usize = 0x800;
/// The larger part of it is room to write.
const ROOM: u64 = 0x1000;

/// One request as it is written down.
#[derive(Debug)]
struct Request<'a> {
    queue: usize,
    shape: u8,
    bytes: &'a [u8],
    room: u16,
}

#[derive(Debug)]
enum Step<'a> {
    Poke(u8),
    Request(Request<'a>),
}

fn step<'a>(rest: &mut &'a [u8], queues: usize) -> Option<Step<'a>> {
    let [tag] = take(rest)?;
    if tag & 0x80 != 0 {
        return Some(Step::Poke(tag & 3));
    }
    let [shape, low, high] = take(rest)?;
    let len = usize::from(u16::from_le_bytes([low, high])) % MOST;
    let (bytes, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(Step::Request(Request {
        queue: usize::from(tag) % queues,
        shape,
        bytes,
        room: u16::from_le_bytes(take(rest)?),
    }))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

/// A queue's requests that the device has.
type Busy = [bool; SLOTS];

/// Puts a request into its queue, if there is room for one more.
fn submit(driver: &mut Driver, busy: &mut Busy, request: &Request<'_>) {
    for (head, _) in driver.take_used() {
        busy[usize::from(head / PARTS)] = false;
    }
    let Some(slot) = busy.iter().position(|busy| !busy) else {
        return;
    };
    let buffers = driver.descriptor_table() + BUFFERS * (1 + slot as u64);
    driver.write(buffers, request.bytes);
    let cut = usize::from(request.shape & 0x7f).min(request.bytes.len());
    let mut chain = Vec::new();
    for (from, to) in [(0, cut), (cut, request.bytes.len())] {
        if let Ok(len @ 1..) = u32::try_from(to - from) {
            chain.push(Descriptor::readable(buffers + from as u64, len));
        }
    }
    if request.room > 0 {
        let room = u32::from(request.room).min(0x3000);
        chain.push(Descriptor::writable(buffers + ROOM, room));
    }
    if chain.is_empty() {
        return;
    }
    busy[slot] = true;
    let head = u16::try_from(slot).unwrap_or(0) * PARTS;
    if request.shape & 0x80 != 0 {
        let table = buffers + MOST as u64;
        driver.chain(table, 0, &chain);
        let len = 16 * u32::try_from(chain.len()).unwrap_or(0);
        driver.set_descriptor(head, Descriptor::indirect(table, len));
    } else {
        driver.chain(driver.descriptor_table(), head, &chain);
    }
    driver.publish(head);
}

impl Requests {
    fn attack(&self) -> Attack {
        let engine = Engine::Loop(IoLoop::new().expect("cannot make a loop"));
        let mut attack = Attack::new(&self.subject, engine, 0, Tape::default());
        attack.start();
        attack
    }
}

impl Target for Requests {
    fn name(&self) -> &str {
        &self.name
    }

    fn about(&self) -> String {
        format!("the requests of {}, in good rings", self.subject.name)
    }

    fn run(&self, data: &[u8]) {
        let mut attack = self.attack();
        let mut busy = vec![Busy::default(); attack.drivers.len()];
        let mut rest = data;
        while let Some(step) = step(&mut rest, busy.len()) {
            match step {
                Step::Poke(what) => attack.poke(what),
                Step::Request(request) => {
                    let queue = request.queue;
                    submit(&mut attack.drivers[queue], &mut busy[queue], &request);
                    attack.machine.kick(u16::try_from(queue).unwrap_or(0));
                }
            }
            attack.turn();
            if attack.machine.faulted() {
                break;
            }
        }
        attack.machine.set(reg::STATUS, 0);
        attack.assert_recovers();
    }

    /// A usual request of each queue, all of them twice with the host in between, and what is known of the device.
    fn seeds(&self) -> Vec<Vec<u8>> {
        let mut attack = self.attack();
        let queues = attack.queues.clone();
        let mut seeds = Vec::new();
        for (queue, plan) in (0..).zip(queues) {
            let driver = &mut attack.drivers[usize::from(queue)];
            let chain = (plan.request)(driver);
            let (room, bytes): (Vec<Descriptor>, Vec<Descriptor>) =
                chain.iter().partition(|part| part.flags & WRITE != 0);
            let bytes: Vec<u8> = bytes
                .iter()
                .flat_map(|part| driver.read(part.address, part.len))
                .collect();
            let room: u32 = room.iter().map(|part| part.len).sum();
            seeds.push(written(
                queue,
                &bytes,
                u16::try_from(room).unwrap_or(u16::MAX),
            ));
        }
        let all = seeds.concat();
        seeds.push([&all[..], &[0x80, 0x81], &all, &[0x82, 0x83]].concat());
        seeds.extend(known(self.subject.name));
        seeds
    }

    fn explain(&self, data: &[u8]) -> String {
        let queues = (self.subject.stage)().queues.len();
        let mut rest = data;
        let mut lines = String::new();
        while let Some(step) = step(&mut rest, queues) {
            lines.push_str(&format!("{step:x?}\n"));
        }
        lines
    }
}

/// A request as it is written down.
fn written(queue: u8, bytes: &[u8], room: u16) -> Vec<u8> {
    let bytes = &bytes[..bytes.len().min(MOST - 1)];
    let len = u16::try_from(bytes.len()).unwrap_or(0);
    let (len, room) = (len.to_le_bytes(), room.to_le_bytes());
    [&[queue, 16], &len[..], bytes, &room].concat()
}

/// Requests of each kind that a device knows.
fn known(device: &str) -> Vec<Vec<u8>> {
    match device {
        "block" | "block-uring" | "block-queues" => [0u8, 1, 4, 8, 11, 13]
            .map(|kind| {
                let mut request = vec![0; 16 + 512];
                (request[0], request[8], request[24]) = (kind, 2, 1);
                let (bytes, room) = match kind {
                    0 | 8 => (16, 513),
                    1 => (16 + 512, 1),
                    4 => (16, 1),
                    _ => (32, 1),
                };
                written(0, &request[..bytes], room)
            })
            .to_vec(),
        "vsock" => {
            let packet = |op: u8, flags: u8, data: u8| {
                let mut packet = vec![0; 44];
                (packet[0], packet[8]) = (3, 2);
                (packet[16], packet[20], packet[24]) = (50, 80, data);
                (packet[28], packet[30], packet[32], packet[38]) = (1, op, flags, 4);
                packet.resize(44 + usize::from(data), 0x5a);
                written(1, &packet, 0)
            };
            let room = written(0, &[], 4096).repeat(4);
            let open = [room, packet(1, 0, 0)].concat();
            [
                (5, 0, 100),
                (4, 1, 0),
                (4, 2, 0),
                (4, 3, 0),
                (3, 0, 0),
                (6, 0, 0),
                (7, 0, 0),
            ]
            .map(|(op, flags, data)| {
                [&open[..], &[0x81], &packet(op, flags, data), &[0x80, 0x82]].concat()
            })
            .to_vec()
        }
        "net" => {
            // Commands: an address, pairs, offloads. Frames: TCP over IPv4 and IPv6 to be segmented, a checksum.
            let commands = [
                &[1, 1, 2, 0, 0, 0, 0, 9][..],
                &[4, 0, 1, 0],
                &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            ];
            let headers = [
                [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0],
                [1, 4, 74, 0, 0xa0, 5, 54, 0, 16, 0, 0, 0],
                [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0],
            ];
            let command = |bytes: &&[u8]| written(2, bytes, 1);
            let frame = |header: &[u8; 12]| written(1, &[&header[..], &[0x5a; 200]].concat(), 0);
            let room = written(0, &[], 2048).repeat(4);
            let commands = commands.iter().map(command);
            let frames = headers.iter().map(frame);
            let received = [&room[..], &[0x80, 0x81, 0x82, 0x83]].concat();
            commands.chain(frames).chain([received]).collect()
        }
        "fs" => shared_directory(),
        _ => Vec::new(),
    }
}

/// Messages of a guest that has mounted a shared directory: about itself, a file that is there, one that is made.
fn shared_directory() -> Vec<Vec<u8>> {
    let say = |opcode, node, body: &Body| written(1, &message(opcode, node, body), 4096);
    let init = say(op::INIT, ROOT, &Body::init(u64::MAX));
    let create = Body::words([2, 0o600, 0, 0]).and_name("new");
    // The first handle that is given is 1, for the file or the directory.
    let first = [
        say(op::CREATE, ROOT, &create),
        say(op::LOOKUP, ROOT, &Body::name("file")),
        say(op::OPENDIR, ROOT, &Body::longs([0])),
    ];
    let open = [&init[..], &first[0]].concat();
    let listed = [&init[..], &first[2]].concat();
    let then = [
        (op::WRITE, Body::write(1, 3, b"bytes")),
        (op::READ, Body::read(1, 0, 4096)),
        (op::READDIR, Body::read(1, 0, 4096)),
        (op::READDIRPLUS, Body::read(1, 0, 4096)),
        (op::RELEASE, Body::longs([1, 0, 0])),
        (op::SETATTR, Body::mode(0o600)),
        (op::STATFS, Body::default()),
        (op::SYMLINK, Body::name("link").and_name("/")),
        (op::MKNOD, Body::words([0o10600, 0, 0, 0]).and_name("fifo")),
        (op::MKDIR, Body::words([0o700, 0]).and_name("made")),
        (
            op::RENAME2,
            Body::longs([ROOT, 2]).and_name("file").and_name("dir"),
        ),
        (op::UNLINK, Body::name("file")),
        (op::RMDIR, Body::name("dir")),
        (op::FORGET, Body::longs([1])),
        (
            op::BATCH_FORGET,
            Body::words([2, 0]).and(Body::longs([2, 1, 3, 1])),
        ),
        (
            op::IOCTL,
            Body::longs([1]).and(Body::words([0, 0, 0, 0, 8, 8])),
        ),
        (op::DESTROY, Body::default()),
    ];
    let then = then.map(|(opcode, body)| say(opcode, ROOT, &body));
    let mut seeds: Vec<_> = then
        .iter()
        .map(|it| [&listed[..], it, &[0x82]].concat())
        .collect();
    seeds.extend([open, [&init[..], &first[1], &[0x81, 0x83]].concat()]);
    seeds
}
