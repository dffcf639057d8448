//! The engine of io_uring: operations are queued, started together with one system call, and end when
//! the host has done them; nobody waits.
//!
//! An operation is one entry of the ring for each span of the store, and for a flush one for each file.
//! When its last entry has ended it is done, or goes on to a second stage:
//!
//! ```text
//! op ─spans─► parts ─push─► ring ─enter─► kernel ─► completion ─► part advanced, or ended
//!                 ▲                                    │ short       │ the last of its op
//!                 └────────────────────────────────────┘             ▼
//!                 └──────────── sync, for a write-through ◄────── second stage, or done
//! ```
//!
//! What io_uring has no use for is done at once by the synchronous engine: zeroes, discards, and writes
//! that tolerate no others beside them, before which the ring is waited empty.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};

use super::sync;
use crate::virtio::block::disk::{DiskLane, DiskOp, Progress, Tag};
use crate::virtio::block::iovec::Buffers;
use crate::virtio::block::store::Store;

/// What this engine asks of the kernel.
const OPCODES: [u8; 3] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
];

/// The most entries for one operation. One that is cut into more is no driver's idea of a request, and is
/// done at once, so that it costs no memory while it waits.
const MAX_PARTS: usize = 128;

/// Whether the kernel has an io_uring that will do.
///
/// # Errors
/// Why not.
pub(super) fn check() -> io::Result<()> {
    ring(2).map(drop)
}

/// A ring that can do what is asked of it.
fn ring(entries: u32) -> io::Result<IoUring> {
    // Linux 6.0: one thread uses the ring, and is not interrupted in what it does for completions.
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries)
        .or_else(|error| match error.kind() {
            ErrorKind::InvalidInput => IoUring::new(entries),
            _ => Err(error),
        })?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let works = OPCODES.iter().all(|code| probe.is_supported(*code));
    // Linux 5.5: completions are not lost, and what an entry points to is read when it is submitted.
    if works && ring.params().is_feature_nodrop() && ring.params().is_feature_submit_stable() {
        Ok(ring)
    } else {
        Err(ErrorKind::Unsupported.into())
    }
}

/// What an entry of the ring does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Sync,
}

/// One entry of the ring, from when it is queued until it has ended.
#[derive(Debug)]
struct Part {
    tag: Tag,
    kind: Kind,
    file: usize,
    /// Where the rest of it is.
    offset: u64,
    /// What is left of it.
    buffers: Buffers,
}

/// An operation that has parts.
#[derive(Debug)]
struct Op {
    /// Parts that have not ended.
    parts: u32,
    /// The first error of any of them.
    result: io::Result<()>,
    then: Then,
}

/// What is to be done when all parts of an operation have ended well.
#[derive(Debug, Clone, Copy)]
enum Then {
    Nothing,
    /// Say that the range was written, and maybe make it durable.
    Written {
        offset: u64,
        len: u64,
        through: bool,
    },
}

/// A lane with a ring of its own.
pub(super) struct UringLane<S: Store> {
    store: Arc<S>,
    ring: IoUring,
    /// By tag.
    ops: Vec<Option<Op>>,
    /// Parts by their number, which is the user data of their entries.
    parts: Vec<Option<Part>>,
    /// Numbers without a part.
    free: Vec<usize>,
    /// Parts that are not in the ring yet.
    queue: VecDeque<usize>,
    /// Parts that the kernel has, or that are in the ring for it to take.
    in_ring: usize,
    /// Operations that ended since somebody asked.
    done: Vec<(Tag, io::Result<()>)>,
    /// io_uring_enter failed for good: the ring is not touched any more.
    broken: bool,
}

impl<S: Store> UringLane<S> {
    /// A lane of `store` with at most `depth` operations under way.
    pub(super) fn new(store: Arc<S>, depth: u16) -> io::Result<Self> {
        let ring = ring(u32::from(depth).next_power_of_two())?;
        let files: Vec<RawFd> = store.files().iter().map(|file| file.fd()).collect();
        ring.submitter().register_files(&files)?;
        Ok(Self {
            store,
            ring,
            ops: (0..depth).map(|_| None).collect(),
            parts: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            in_ring: 0,
            done: Vec::new(),
            broken: false,
        })
    }

    /// Queues the parts of `op`; those that need no ring are done on the way.
    fn begin(&mut self, tag: Tag, op: DiskOp<'_>) -> io::Result<Op> {
        let mut begun = Op {
            parts: 0,
            result: Ok(()),
            then: Then::Nothing,
        };
        let mut spans = Vec::new();
        match op {
            DiskOp::Read { offset, buffers } => {
                let mut buffers = Buffers::of(buffers);
                self.store.read(offset, buffers.len(), &mut spans);
                if spans.len() > MAX_PARTS {
                    sync::execute(self.store.as_ref(), op)?;
                    return Ok(begun);
                }
                for span in spans {
                    let part = buffers.split(span.len);
                    match span.file {
                        Some(file) => {
                            self.queue(Kind::Read, tag, (file, span.offset), part, &mut begun)
                        }
                        None => part.fill_zero(),
                    }
                }
            }
            DiskOp::Write {
                offset,
                buffers,
                through,
            } => {
                let mut buffers = Buffers::of(buffers);
                let len = buffers.len();
                self.store.write(offset, len, &mut spans)?;
                if spans.len() > MAX_PARTS || spans.iter().any(|span| span.file.is_none()) {
                    sync::execute(self.store.as_ref(), op)?;
                    return Ok(begun);
                }
                for span in spans {
                    let part = buffers.split(span.len);
                    let file = span.file.unwrap_or_default();
                    self.queue(Kind::Write, tag, (file, span.offset), part, &mut begun);
                }
                begun.then = Then::Written {
                    offset,
                    len,
                    through,
                };
            }
            DiskOp::Flush if self.store.is_flushed_by_sync() => self.queue_syncs(tag, &mut begun),
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => {
                sync::execute(self.store.as_ref(), op)?;
            }
        }
        Ok(begun)
    }

    fn queue(
        &mut self,
        kind: Kind,
        tag: Tag,
        (file, offset): (usize, u64),
        buffers: Buffers,
        op: &mut Op,
    ) {
        let part = Part {
            tag,
            kind,
            file,
            offset,
            buffers,
        };
        let number = self.free.pop().unwrap_or_else(|| {
            self.parts.push(None);
            self.parts.len() - 1
        });
        self.parts[number] = Some(part);
        self.queue.push_back(number);
        op.parts += 1;
    }

    fn queue_syncs(&mut self, tag: Tag, op: &mut Op) {
        for file in 0..self.store.files().len() {
            self.queue(Kind::Sync, tag, (file, 0), Buffers::default(), op);
        }
    }

    /// Moves queued parts into the ring, as many as have room there.
    fn push(&mut self) {
        let mut ring = self.ring.submission();
        while let Some(number) = self.queue.front() {
            let Some(part) = self.parts.get(*number).and_then(Option::as_ref) else {
                self.queue.pop_front();
                continue;
            };
            // SAFETY: the entry points to the iovecs of the part and through them to guest memory. The part
            // stays where it is on the heap until the entry has ended, and the device keeps the memory
            // mapped until then: `Drop` waits for all entries.
            if unsafe { ring.push(&part.entry(*number)) }.is_err() {
                return;
            }
            self.in_ring += 1;
            self.queue.pop_front();
        }
    }

    /// Gives the kernel what is in the ring, and with `wait` waits for a completion. Takes no more of it
    /// than the kernel does.
    fn enter(&mut self, wait: bool) {
        self.push();
        let want = usize::from(wait && self.in_ring > 0);
        if want == 0 && self.ring.submission().is_empty() && !self.ring.submission().taskrun() {
            return;
        }
        match self.ring.submit_and_wait(want) {
            Ok(_) => {}
            // A signal, or completions have to be taken first, or the kernel is short of memory: the entries
            // stay in the ring, and the next call takes them. With nothing under way that would be never.
            Err(error) => {
                let passes = matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                );
                if !passes {
                    return self.give_up(&error);
                }
                if self.ring.completion().is_empty() {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// The ring cannot be used any more. Waits for what the kernel has; the rest ends in an error.
    fn give_up(&mut self, error: &io::Error) {
        log::error!("io_uring failed, and the disk with it: {error}");
        self.broken = true;
        let never_taken = self.ring.submission().len();
        while self.in_ring > never_taken {
            self.reap();
            thread::sleep(Duration::from_millis(1));
        }
        self.queue.clear();
        self.in_ring = 0;
        for number in 0..self.parts.len() {
            self.end_part(number, Err(broken()));
        }
    }

    /// Takes all completions there are.
    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            self.in_ring -= 1;
            self.complete(&entry);
        }
    }

    /// An entry ended: its part goes on, or has ended too.
    fn complete(&mut self, entry: &cqueue::Entry) {
        let number = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
        let Some(part) = self.parts.get_mut(number).and_then(Option::as_mut) else {
            return log::error!("io_uring completed what it was not asked");
        };
        let moved = match (usize::try_from(entry.result()), entry.result()) {
            (Ok(moved), _) => moved,
            (Err(_), negated) if matches!(-negated, libc::EINTR | libc::EAGAIN) => {
                return self.queue.push_back(number);
            }
            (Err(_), negated) => {
                let error = io::Error::from_raw_os_error(negated.saturating_neg());
                return self.end_part(number, Err(error));
            }
        };
        part.buffers.advance(moved);
        part.offset = part.offset.saturating_add(moved as u64);
        let result = match (part.kind, moved) {
            _ if part.buffers.is_empty() => Ok(()),
            // A file that ends here was cut off while in use: see `iovec::read_exact_at`.
            (Kind::Read, 0) => Err(ErrorKind::UnexpectedEof.into()),
            (_, 0) => Err(ErrorKind::WriteZero.into()),
            _ => return self.queue.push_back(number),
        };
        self.end_part(number, result);
    }

    fn end_part(&mut self, number: usize, result: io::Result<()>) {
        let Some(part) = self.parts.get_mut(number).and_then(Option::take) else {
            return;
        };
        self.free.push(number);
        let Some(slot) = self.ops.get_mut(part.tag.0 as usize) else {
            return;
        };
        let Some(op) = slot else { return };
        op.parts -= 1;
        if op.result.is_ok() {
            op.result = result;
        }
        if op.parts == 0
            && let Some(op) = slot.take()
        {
            self.end_stage(part.tag, op);
        }
    }

    /// All parts of an operation have ended.
    fn end_stage(&mut self, tag: Tag, mut op: Op) {
        if let (
            Ok(()),
            Then::Written {
                offset,
                len,
                through,
            },
        ) = (&op.result, op.then)
        {
            self.store.written(offset, len);
            op.then = Then::Nothing;
            match through {
                true if self.store.is_flushed_by_sync() && !self.broken => {
                    self.queue_syncs(tag, &mut op);
                    return self.ops[tag.0 as usize] = Some(op);
                }
                true => op.result = self.store.flush(),
                false => {}
            }
        }
        self.done.push((tag, op.result));
    }

    fn is_busy(&self) -> bool {
        self.in_ring > 0 || !self.queue.is_empty()
    }

    /// Waits until nothing is under way.
    fn quiesce(&mut self) {
        while self.is_busy() {
            self.enter(true);
            self.reap();
        }
    }

    /// Whether `op` tolerates nothing beside it.
    fn is_exclusive(&self, op: &DiskOp<'_>) -> bool {
        match op {
            DiskOp::Write {
                offset, buffers, ..
            } => {
                let len = buffers.iter().map(|buffer| buffer.len() as u64).sum();
                self.store.is_exclusive(*offset, len)
            }
            DiskOp::Discard { offset, len } | DiskOp::WriteZeroes { offset, len, .. } => {
                self.store.is_exclusive(*offset, *len)
            }
            DiskOp::Read { .. } | DiskOp::Flush => false,
        }
    }
}

impl Part {
    fn entry(&self, number: usize) -> squeue::Entry {
        let vector = self.buffers.vector();
        // At most `iovec::MAX_BUFFERS`, and at most as many files as a disk has.
        let count = u32::try_from(vector.len()).unwrap_or(0);
        let file = types::Fixed(u32::try_from(self.file).unwrap_or(u32::MAX));
        let entry = match self.kind {
            Kind::Read => opcode::Readv::new(file, vector.as_ptr(), count)
                .offset(self.offset)
                .build(),
            Kind::Write => opcode::Writev::new(file, vector.as_ptr(), count)
                .offset(self.offset)
                .build(),
            Kind::Sync => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        };
        entry.user_data(number as u64)
    }
}

impl<S: Store> DiskLane for UringLane<S> {
    fn submit(&mut self, tag: Tag, op: DiskOp<'_>) -> Progress {
        if self.broken {
            return Progress::Done(Err(broken()));
        }
        if self.is_exclusive(&op) {
            self.quiesce();
            return Progress::Done(sync::execute(self.store.as_ref(), op));
        }
        match self.begin(tag, op) {
            Err(error) => Progress::Done(Err(error)),
            Ok(op) if op.parts == 0 => Progress::Done(op.result),
            Ok(op) => {
                self.ops[tag.0 as usize] = Some(op);
                Progress::Pending
            }
        }
    }

    fn start(&mut self) {
        // The ring may be smaller than the queue: what is left over goes when there is room.
        while !self.queue.is_empty() && !self.broken {
            self.enter(false);
            self.reap();
        }
    }

    fn completion_event(&self) -> Option<RawFd> {
        Some(self.ring.as_raw_fd())
    }

    fn completed(&mut self, wait: bool) -> Vec<(Tag, io::Result<()>)> {
        if !self.broken && self.ring.submission().taskrun() {
            self.enter(false);
        }
        self.reap();
        // What was moved only in part, and second stages.
        self.start();
        while wait && self.done.is_empty() && self.is_busy() {
            self.enter(true);
            self.reap();
        }
        std::mem::take(&mut self.done)
    }
}

fn broken() -> io::Error {
    io::Error::other("io_uring failed earlier")
}

/// Nothing may be left that writes to guest memory.
impl<S: Store> Drop for UringLane<S> {
    fn drop(&mut self) {
        self.quiesce();
    }
}

impl<S: Store> fmt::Debug for UringLane<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringLane")
            .field("store", &self.store)
            .field("in_ring", &self.in_ring)
            .finish_non_exhaustive()
    }
}
