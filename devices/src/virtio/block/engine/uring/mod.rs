//! The engine of io_uring: operations are queued, started together with one system call, and end when
//! the host has done them; nobody waits.
//!
//! An operation is one part, an entry of the ring, for each span of the store, and for a flush one for
//! each file. When its last part has ended it is done, or goes on to a second stage:
//!
//! ```text
//! op ─spans─► parts ─queue─► ring ─enter─► kernel ─► completion ─► part carried on, or ended
//!                              ▲                          │ short         │ the last of its op
//!                              ├──────────────────────────┘               ▼
//!                              └──────── sync, for a write-through ◄── second stage, or done
//! ```
//!
//! What io_uring has no use for is done at once by plain system calls: zeroes, discards, buffers that are
//! not aligned, and writes that tolerate no others beside them, before which the ring is waited empty.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use self::ring::{Kind, Part, Ring};
use super::sync;
use crate::virtio::block::buffers::Buffers;
use crate::virtio::block::disk::{DiskLane, DiskOp, Progress, Tag};
use crate::virtio::block::file::DiskFile;
use crate::virtio::block::store::{Place, Span, Store};

mod ring;

/// The most parts of one operation. One that is cut into more is no driver's idea of a request, and is
/// done at once, so that it costs no memory while it waits.
const MAX_PARTS: usize = 128;

/// So many parts that go around the page cache do not wait for more: the disk behind it is at work on them while the next
/// are made ready. What is in the page cache is done by the call itself, so one call for all of it is best.
const HEAD_START: usize = 4;

/// Whether the kernel has an io_uring that will do.
///
/// # Errors
/// Why not.
pub(super) fn check() -> io::Result<()> {
    ring::set_up(2).map(drop)
}

/// An operation that has parts.
#[derive(Debug)]
struct Op {
    /// Parts that have not ended.
    parts: u32,
    /// The first error of any of them.
    result: io::Result<()>,
    then: Then,
    /// The files of which its parts are syncs.
    syncs: usize,
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
#[derive(Debug)]
pub(super) struct UringLane {
    store: Arc<dyn Store>,
    ring: Ring,
    /// By tag.
    ops: Vec<Option<Op>>,
    /// Operations that ended since somebody asked.
    done: Vec<(Tag, io::Result<()>)>,
}

impl UringLane {
    /// A lane of `store` with at most `depth` operations under way.
    pub(super) fn new(store: Arc<dyn Store>, depth: u16) -> io::Result<Self> {
        let files = (0..store.file_count())
            .map(|index| Some(store.file(index)?.fd()))
            .collect::<Option<Vec<RawFd>>>()
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            ring: Ring::new(u32::from(depth).next_power_of_two(), &files)?,
            store,
            ops: (0..depth).map(|_| None).collect(),
            done: Vec::new(),
        })
    }

    /// Queues the parts of `op`; those that need no ring are done on the way.
    fn begin(&mut self, tag: Tag, op: DiskOp<'_>) -> io::Result<Op> {
        let mut begun = Op {
            parts: 0,
            result: Ok(()),
            then: Then::Nothing,
            syncs: 0,
        };
        let mut spans = Vec::new();
        let (kind, buffers) = match op {
            DiskOp::Read { offset, buffers } => {
                let buffers = Buffers::of(buffers);
                self.store.read(offset, buffers.len(), &mut spans);
                (Kind::Read, buffers)
            }
            DiskOp::Write {
                offset,
                buffers,
                through,
            } => {
                let buffers = Buffers::of(buffers);
                let len = buffers.len();
                self.store.write(offset, len, &mut spans)?;
                begun.then = Then::Written {
                    offset,
                    len,
                    through,
                };
                (Kind::Write, buffers)
            }
            DiskOp::Flush if let Some(files) = self.store.flushed_by_sync() => {
                self.queue_syncs(files, tag, &mut begun)?;
                return Ok(begun);
            }
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => {
                sync::execute(self.store.as_ref(), op)?;
                return Ok(begun);
            }
        };
        if spans.len() > MAX_PARTS {
            sync::execute(self.store.as_ref(), op)?;
            begun.then = Then::Nothing;
            return Ok(begun);
        }
        self.queue_spans(kind, tag, spans, buffers, &mut begun);
        Ok(begun)
    }

    fn queue_spans(
        &mut self,
        kind: Kind,
        tag: Tag,
        spans: Vec<Span>,
        mut buffers: Buffers<'_>,
        op: &mut Op,
    ) {
        for span in spans {
            let part = buffers.split(span.len);
            let file = match span.place {
                Place::File(index) => index,
                Place::Zeroes | Place::Inside => usize::MAX,
            };
            let takes = |file: &DiskFile| file.takes(span.offset, &part);
            let result = if self.store.file(file).is_some_and(takes) {
                self.ring.queue(Part {
                    tag,
                    kind,
                    file,
                    offset: span.offset,
                    // SAFETY: whoever submits an operation keeps its memory mapped until that has ended, and
                    // takes them all back before it lets go (see `DiskLane`); the ring waits for every
                    // part before it goes.
                    buffers: unsafe { part.held() },
                });
                op.parts += 1;
                self.hurry(file);
                Ok(())
            } else {
                sync::transfer(self.store.as_ref(), kind == Kind::Write, span, part)
            };
            if op.result.is_ok() {
                op.result = result;
            }
        }
    }

    /// Gives a disk behind the page cache its head start.
    fn hurry(&mut self, file: usize) {
        let direct = self.store.file(file).is_some_and(DiskFile::is_direct);
        if direct && self.ring.queued() >= HEAD_START {
            self.ring.start();
        }
    }

    fn queue_syncs(&mut self, files: usize, tag: Tag, op: &mut Op) -> io::Result<()> {
        self.files(files).try_for_each(DiskFile::may_sync)?;
        op.syncs = files;
        for file in 0..files {
            self.ring.queue(Part {
                tag,
                kind: Kind::Sync,
                file,
                offset: 0,
                buffers: Buffers::default(),
            });
            op.parts += 1;
        }
        Ok(())
    }

    /// The first files of the store.
    fn files(&self, count: usize) -> impl Iterator<Item = &DiskFile> {
        (0..count).filter_map(|index| self.store.file(index))
    }

    /// Parts have ended, and operations with them.
    fn end_parts(&mut self, ended: Vec<(Tag, io::Result<()>)>) {
        for (tag, result) in ended {
            let Some(slot) = self.ops.get_mut(tag.0 as usize) else {
                continue;
            };
            let Some(op) = slot else { continue };
            op.parts -= 1;
            if op.result.is_ok() {
                op.result = result;
            }
            if op.parts == 0
                && let Some(op) = slot.take()
            {
                self.end_stage(tag, op);
            }
        }
    }

    /// All parts of an operation have ended.
    fn end_stage(&mut self, tag: Tag, mut op: Op) {
        if let Err(error) = &op.result {
            self.files(op.syncs)
                .for_each(|file| file.sync_failed(error));
        }
        let then = std::mem::replace(&mut op.then, Then::Nothing);
        if let (
            Ok(()),
            Then::Written {
                offset,
                len,
                through,
            },
        ) = (&op.result, then)
        {
            self.store.written(offset, len);
            let by_sync = self.store.flushed_by_sync().filter(|files| *files > 0);
            match by_sync {
                Some(files) if through && !self.ring.is_broken() => {
                    match self.queue_syncs(files, tag, &mut op) {
                        Ok(()) => return self.keep(tag, op),
                        Err(error) => op.result = Err(error),
                    }
                }
                _ if through => op.result = self.store.flush(),
                _ => {}
            }
        }
        self.done.push((tag, op.result));
    }

    fn keep(&mut self, tag: Tag, op: Op) {
        if let Some(slot) = self.ops.get_mut(tag.0 as usize) {
            *slot = Some(op);
        }
    }

    /// Waits until nothing is under way.
    fn quiesce(&mut self) {
        loop {
            let ended = self.ring.ended(true);
            if ended.is_empty() {
                return;
            }
            self.end_parts(ended);
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

impl DiskLane for UringLane {
    fn submit(&mut self, tag: Tag, op: DiskOp<'_>) -> Progress {
        if self.ring.is_broken() {
            return Progress::Done(Err(io::Error::other("io_uring failed earlier")));
        }
        if self.is_exclusive(&op) {
            self.quiesce();
            return Progress::Done(sync::execute(self.store.as_ref(), op));
        }
        match self.begin(tag, op) {
            Err(error) => return Progress::Done(Err(error)),
            Ok(op) if op.parts == 0 => self.end_stage(tag, op),
            Ok(op) => self.keep(tag, op),
        }
        Progress::Pending
    }

    fn start(&mut self) {
        self.ring.start();
    }

    fn completion_event(&self) -> Option<RawFd> {
        Some(self.ring.fd())
    }

    fn completed(&mut self, wait: bool) -> Vec<(Tag, io::Result<()>)> {
        // Second stages may end at once too.
        loop {
            let ended = self.ring.ended(wait && self.done.is_empty());
            if ended.is_empty() {
                return std::mem::take(&mut self.done);
            }
            self.end_parts(ended);
        }
    }
}

/// What has been written is said to be, so that the store knows of it.
impl Drop for UringLane {
    fn drop(&mut self) {
        self.quiesce();
    }
}
