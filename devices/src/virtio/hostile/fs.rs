//! virtio-fs under attack.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use vmm_sys_util::tempdir::TempDir;

use super::Attack;
use super::case::{Expect, Row, Scope, table};
use super::subject::{Host, QueuePlan, Stage, Subject};
use crate::virtio::fs::testing::{Body, IN_HEADER, ROOT, message, op};
use crate::virtio::fs::{Share, ShareOptions};
use crate::virtio::testing::Descriptor;

use Expect::{Either, Fine, Reset};

/// The queue of ordinary requests.
const REQUESTS: usize = 1;

/// A shared directory.
pub(super) fn subject() -> Subject {
    Subject {
        name: "fs",
        stage,
        serves,
        needs: 0,
        cases: || table(Scope::Device, ROWS),
    }
}

/// A directory of its own, in which somebody else works too.
#[derive(Debug)]
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        let directory = TempDir::new().expect("no directory to share");
        let path = directory.as_path();
        fs::create_dir(path.join("dir")).expect("no directory in it");
        fs::write(path.join("file"), "of the host").expect("no file to share");
        // Messages come from a user of the guest's.
        let all = fs::Permissions::from_mode(0o777);
        fs::set_permissions(path, all).expect("no directory for everybody");
        Self(directory)
    }
}

impl Host for Directory {
    fn poke(&mut self, what: u8) {
        // Whatever the guest has made of it, none of this need work.
        let path = self.0.as_path();
        let (file, dir) = (path.join("file"), path.join("dir"));
        let _ = match what & 3 {
            0 => fs::write(file, "changed"),
            1 => fs::remove_file(file),
            2 => fs::rename(&dir, path.join("moved"))
                .and_then(|()| std::os::unix::fs::symlink("/", dir)),
            _ => fs::create_dir(dir),
        };
    }
}

fn stage() -> Stage {
    let directory = Directory::new();
    let options = ShareOptions {
        read_only: false,
        max_files: 64,
    };
    let device =
        Share::open(directory.0.as_path(), "src", options).expect("cannot share a directory");
    let plan = QueuePlan {
        request: |driver| {
            let getattr = message(op::GETATTR, ROOT, &Body::longs([0, 0]));
            vec![driver.readable(&getattr), driver.writable(120)]
        },
        taken: true,
    };
    Stage {
        device: Box::new(device),
        queues: vec![plan; 2],
        host: Box::new(directory),
    }
}

/// Sends a message and gives the length of the answer.
fn ask(attack: &mut Attack, queue: usize, opcode: u32, node: u64, body: &Body, room: u32) -> u32 {
    let driver = &mut attack.drivers[queue];
    driver.recycle();
    let request = driver.readable(&message(opcode, node, body));
    let room = driver.writable(room);
    driver.submit(&[request, room]);
    let queue = u16::try_from(queue).expect("two queues");
    attack.machine.kick(queue);
    attack.wait_used(queue, 1)[0].1
}

/// Mounts the directory, and asks for its attributes on both queues.
fn serves(attack: &mut Attack) {
    let init = ask(attack, REQUESTS, op::INIT, ROOT, &Body::init(0), 80);
    assert_eq!(init, 80);
    for queue in [0, REQUESTS] {
        let attributes = ask(attack, queue, op::GETATTR, ROOT, &Body::longs([0, 0]), 120);
        assert_eq!(attributes, 120);
    }
}

/// Starts the device and submits a chain to its queue of requests as it is.
fn submit(attack: &mut Attack, chain: &[Descriptor]) {
    attack.start();
    attack.drivers[REQUESTS].submit(chain);
    attack.machine.kick(1);
}

/// Mounts the directory and sends a message whose answer does not matter.
fn send(attack: &mut Attack, opcode: u32, node: u64, body: &Body) {
    attack.start();
    ask(attack, REQUESTS, op::INIT, ROOT, &Body::init(u64::MAX), 80);
    ask(attack, REQUESTS, opcode, node, body, 4096);
}

const ROWS: &[Row] = &[
    ("fs: nothing to read", Fine, |a| {
        submit(a, &[Descriptor::writable(0x8000, 64)]);
    }),
    ("fs: less than a header", Fine, |a| {
        submit(a, &[Descriptor::readable(0x8000, 39)]);
    }),
    ("fs: an answer before the message", Reset, |a| {
        let (to, from) = (
            Descriptor::writable(0x8000, 64),
            Descriptor::readable(0x9000, 64),
        );
        a.queue = 1;
        submit(a, &[to, from]);
    }),
    ("fs: an answer over the message", Either, |a| {
        a.start();
        let request = message(op::READDIRPLUS, ROOT, &Body::read(1, 0, 4096));
        let at = a.drivers[REQUESTS].alloc_with(&request);
        let len = u32::try_from(request.len()).expect("a short message");
        a.drivers[REQUESTS].submit(&[Descriptor::readable(at, len), Descriptor::writable(at, len)]);
        a.machine.kick(1);
    }),
    ("fs: messages before the first", Fine, |a| {
        a.start();
        for opcode in 0..64 {
            ask(a, REQUESTS, opcode, ROOT, &Body::longs([1; 16]), 4096);
        }
    }),
    ("fs: every message about nothing", Fine, |a| {
        a.start();
        ask(a, REQUESTS, op::INIT, ROOT, &Body::init(u64::MAX), 80);
        for opcode in 0..64 {
            for body in [Body::default(), Body(vec![0; 200]), Body(vec![0xff; 200])] {
                ask(a, REQUESTS, opcode, u64::MAX, &body, 4096);
                ask(a, REQUESTS, opcode, ROOT, &body, 4096);
                ask(a, REQUESTS, opcode, ROOT, &body, 16);
                ask(a, REQUESTS, opcode, ROOT, &body, 1);
            }
        }
    }),
    ("fs: a message that says it is all of memory", Fine, |a| {
        a.start();
        let mut lookup = message(op::LOOKUP, ROOT, &Body::name("file"));
        lookup[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let chain = [
            a.drivers[REQUESTS].readable(&lookup),
            a.drivers[REQUESTS].writable(200),
        ];
        a.drivers[REQUESTS].submit(&chain);
        a.machine.kick(1);
        assert_eq!(a.wait_used(1, 1)[0].1, 16);
    }),
    ("fs: a message of gigabytes", Fine, |a| {
        a.start();
        let ioctl = message(op::IOCTL, ROOT, &Body::words([u32::MAX; 8]));
        let first = a.drivers[REQUESTS].readable(&ioctl);
        let more = Descriptor::readable(0x20_0000, 0x10_0000);
        let room = a.drivers[REQUESTS].writable(64);
        a.drivers[REQUESTS].submit_indirect(&[&[first], &[more; 14][..], &[room]].concat());
        a.machine.kick(1);
        a.wait_used(1, 1);
    }),
    ("fs: forgets what it was never told", Fine, |a| {
        send(a, op::FORGET, u64::MAX, &Body::longs([u64::MAX]));
        send(a, op::FORGET, ROOT, &Body::longs([u64::MAX]));
        let batch = Body::words([u32::MAX, 0]).and(Body::longs([ROOT, u64::MAX]));
        send(a, op::BATCH_FORGET, ROOT, &batch);
    }),
    ("fs: reads more than there is room for", Fine, |a| {
        send(a, op::READ, ROOT, &Body::read(1, u64::MAX, u32::MAX));
        send(a, op::READDIR, ROOT, &Body::read(1, u64::MAX, u32::MAX));
        send(a, op::READDIRPLUS, ROOT, &Body::read(1, u64::MAX, u32::MAX));
    }),
    ("fs: is mounted, unmounted and mounted", Fine, |a| {
        for opcode in [op::INIT, op::DESTROY, op::DESTROY, op::INIT, op::INIT] {
            send(a, opcode, ROOT, &Body::init(u64::MAX));
        }
    }),
    ("fs: knows of more files than it may", Fine, |a| {
        a.start();
        ask(a, REQUESTS, op::INIT, ROOT, &Body::init(0), 80);
        for number in 0..80 {
            let create = Body::words([2, 0o600, 0, 0]).and_name(&number.to_string());
            let answer = ask(a, REQUESTS, op::CREATE, ROOT, &create, 160);
            // An error once there are two descriptors for each of 32 files.
            assert_eq!(answer, if number < 32 { 160 } else { 16 });
        }
    }),
    ("fs: names of all kinds", Fine, |a| {
        a.start();
        ask(a, REQUESTS, op::INIT, ROOT, &Body::init(0), 80);
        let long = "x".repeat(4096 - IN_HEADER);
        for name in [
            "",
            ".",
            "..",
            "/",
            "../..",
            "dir/../..",
            "\u{1}\u{7f}",
            &long,
        ] {
            for opcode in [op::LOOKUP, op::UNLINK, op::RMDIR] {
                ask(a, REQUESTS, opcode, ROOT, &Body::name(name), 160);
            }
            let mkdir = Body::words([0o700, 0]).and_name(name);
            ask(a, REQUESTS, op::MKDIR, ROOT, &mkdir, 160);
        }
    }),
];
