//! A guest's kernel of a few lines.

use std::path::PathBuf;

use tempfile::TempDir;
use virtio_queue::Queue;

use super::super::testing::{Body, OUT_HEADER, ROOT, message, op};
use super::super::{Share, ShareOptions};
use crate::io::QueueIo;
use crate::mem::GuestMemory;
use crate::virtio::testing::{Driver, memory, worker};
use crate::virtio::{Features, QueueIndex, QueueWorker};

/// A mounted share.
pub struct Client {
    /// Who asks.
    pub user: u32,
    pub driver: Driver,
    memory: GuestMemory,
    queues: [Queue; 2],
    worker: Box<dyn QueueWorker>,
    /// What is shared is a directory in here.
    directory: TempDir,
}

/// A file that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    pub node: u64,
    pub handle: u64,
}

/// `N` bytes from `offset` on.
pub fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().unwrap()
}

fn long(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(at(bytes, offset))
}

impl Client {
    pub fn new(options: ShareOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shared = directory.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        // Messages here come from user 1000.
        let _ = std::os::unix::fs::chown(&shared, Some(1000), Some(1000));
        let mut device = Share::open(&shared, "src", options).unwrap();
        let memory = memory();
        let urgent = Driver::new(&memory, 0x1000, 16);
        let driver = Driver::new(&memory, 0x4000, 1024);
        let mut client = Self {
            user: 1000,
            queues: [urgent.queue(), driver.queue()],
            driver,
            memory,
            worker: worker(&mut device, Features::VERSION_1),
            directory,
        };
        client.call(op::INIT, ROOT, &Body::init(0)).unwrap();
        client
    }

    /// Where something in the shared directory is on the host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("shared").join(name)
    }

    /// Has the device do what was submitted last; the answer, which begins at `address`.
    pub fn answer(&mut self, address: u64) -> Vec<u8> {
        let mut io = QueueIo::new(&self.memory, &mut self.queues, Features::VERSION_1);
        self.worker.on_kick(QueueIndex(1), &mut io).unwrap();
        let used = self.driver.take_used();
        let [(_, len)] = used[..] else {
            panic!("{used:?}")
        };
        let answer = self.driver.read(address, len);
        self.driver.recycle();
        answer
    }

    /// Asks for something; the answer's body, or the error.
    pub fn call(&mut self, opcode: u32, node: u64, body: &Body) -> Result<Vec<u8>, i32> {
        let mut message = message(opcode, node, body);
        message[24..28].copy_from_slice(&self.user.to_le_bytes());
        message[28..32].copy_from_slice(&self.user.to_le_bytes());
        let request = self.driver.readable(&message);
        let room = self.driver.writable(4096 + 16);
        self.driver.submit(&[request, room]);
        let mut answer = self.answer(room.address);
        if answer.is_empty() {
            return Ok(answer);
        }
        assert_eq!(u32::from_le_bytes(at(&answer, 0)) as usize, answer.len());
        match i32::from_le_bytes(at(&answer, 4)) {
            0 => Ok(answer.split_off(OUT_HEADER)),
            error => Err(-error),
        }
    }

    /// The number of `name` in `parent`.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let entry = self.call(op::LOOKUP, parent, &Body::name(name))?;
        Ok(long(&entry, 0))
    }

    pub fn forget(&mut self, node: u64, times: u64) {
        let body = Body::longs([times]);
        assert_eq!(self.call(op::FORGET, node, &body), Ok(Vec::new()));
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let body = Body::words([flags.cast_unsigned(), 0]);
        Ok(long(&self.call(op::OPEN, node, &body)?, 0))
    }

    /// Opens a file of the shared directory that may not be there yet.
    pub fn create(&mut self, name: &str, flags: i32, mode: u32) -> Result<Made, i32> {
        let body = Body::words([flags.cast_unsigned(), mode, 0, 0]).and_name(name);
        let answer = self.call(op::CREATE, ROOT, &body)?;
        Ok(Made {
            node: long(&answer, 0),
            handle: long(&answer, 128),
        })
    }

    /// What READDIRPLUS says of the shared directory: names and numbers.
    pub fn entries(&mut self) -> Vec<(String, u64)> {
        let opened = self.call(op::OPENDIR, ROOT, &Body::longs([0])).unwrap();
        let read = Body::read(long(&opened, 0), 0, 4096);
        let listing = self.call(op::READDIRPLUS, ROOT, &read).unwrap();
        let mut rest = &listing[..];
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let len = u32::from_le_bytes(at(rest, 128 + 16)) as usize;
            let name = String::from_utf8(rest[152..152 + len].to_vec()).unwrap();
            entries.push((name, long(rest, 0)));
            rest = &rest[(152 + len).next_multiple_of(8)..];
        }
        let close = Body::longs([long(&opened, 0), 0, 0]);
        self.call(29, ROOT, &close).unwrap();
        entries.sort();
        entries
    }

    pub fn names(&mut self) -> Vec<String> {
        self.entries().into_iter().map(|(name, _)| name).collect()
    }
}
