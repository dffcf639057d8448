//! The ring: entries queued, entered and completed, short transfers carried on, until each has ended.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};

use crate::virtio::block::buffers::Buffers;
use crate::virtio::block::disk::Tag;

/// What this engine asks of the kernel.
const OPCODES: [u8; 5] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
];

/// What an entry of the ring does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Sync,
}

/// One entry of the ring, from when it is queued until it has ended.
#[derive(Debug)]
pub(super) struct Part {
    /// The operation it belongs to.
    pub(super) tag: Tag,
    pub(super) kind: Kind,
    /// Which of the registered files.
    pub(super) file: usize,
    /// Where the rest of it is.
    pub(super) offset: u64,
    /// What is left of it.
    pub(super) buffers: Buffers<'static>,
}

/// A ring and what it has. Waits for all of it before it goes.
pub(super) struct Ring {
    ring: IoUring,
    /// Parts by their number, which is the user data of their entries.
    parts: Vec<Option<Part>>,
    /// Numbers without a part.
    free: Vec<usize>,
    /// Parts that are not in the ring yet.
    queue: VecDeque<usize>,
    /// Parts that the kernel has, or that are in the ring for it to take.
    in_ring: usize,
    /// Parts that ended and were not taken yet.
    ended: Vec<(Tag, io::Result<()>)>,
    /// io_uring_enter failed for good: the ring is not touched any more.
    broken: bool,
}

/// A ring that can do what is asked of it.
///
/// # Errors
/// The kernel has no io_uring, or not one that will do.
pub(super) fn set_up(entries: u32) -> io::Result<IoUring> {
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

impl Ring {
    /// A ring of `entries`, for these files.
    pub(super) fn new(entries: u32, files: &[RawFd]) -> io::Result<Self> {
        let ring = set_up(entries)?;
        ring.submitter().register_files(files)?;
        Ok(Self {
            ring,
            parts: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            in_ring: 0,
            ended: Vec::new(),
            broken: false,
        })
    }

    /// Becomes readable when there are completions.
    pub(super) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether any part has not ended.
    fn is_busy(&self) -> bool {
        self.in_ring > 0 || !self.queue.is_empty()
    }

    /// Keeps a part for the next [`start`](Self::start).
    pub(super) fn queue(&mut self, part: Part) {
        if self.broken {
            return self.ended.push((part.tag, Err(broken())));
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.parts.push(None);
            self.parts.len() - 1
        });
        self.parts[number] = Some(part);
        self.queue.push_back(number);
    }

    /// How many parts wait for the next [`start`](Self::start).
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Starts all that is queued.
    pub(super) fn start(&mut self) {
        // The ring may be smaller than the queue: what is left over goes when there is room.
        while !self.queue.is_empty() && !self.broken {
            self.enter(false);
            self.reap();
        }
    }

    /// The parts that have ended since the last call; with `wait`, and any under way, at least one.
    pub(super) fn ended(&mut self, wait: bool) -> Vec<(Tag, io::Result<()>)> {
        if !self.broken && self.ring.submission().taskrun() {
            self.enter(false);
        }
        self.reap();
        // What was moved only in part.
        self.start();
        while wait && self.ended.is_empty() && self.is_busy() {
            self.enter(true);
            self.reap();
        }
        std::mem::take(&mut self.ended)
    }

    /// Moves queued parts into the ring, as many as have room there.
    fn push(&mut self) {
        let mut ring = self.ring.submission();
        while let Some(number) = self.queue.front() {
            if let Some(part) = self.parts.get(*number).and_then(Option::as_ref) {
                // SAFETY: the entry points to the part's iovecs, which are `iovec`s, as many as it says, and stay
                // where they are until it has ended, and through them to memory that is held.
                if unsafe { ring.push(&part.entry(*number)) }.is_err() {
                    return;
                }
                self.in_ring += 1;
            }
            self.queue.pop_front();
        }
    }

    /// Gives the kernel what is queued, and with `wait` waits for a completion.
    fn enter(&mut self, wait: bool) {
        self.push();
        let want = usize::from(wait && self.in_ring > 0);
        if want == 0 && self.ring.submission().is_empty() && !self.ring.submission().taskrun() {
            return;
        }
        let Err(error) = self.ring.submit_and_wait(want) else {
            return;
        };
        match error.raw_os_error() {
            // A signal, or completions have to be taken first, or the kernel is short of memory: the entries
            // stay in the ring, and the next call takes them.
            Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
                if self.ring.completion().is_empty() {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            _ => self.give_up(&error),
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
            self.end(number, Err(broken()));
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
        let result = entry.result();
        let Ok(moved) = usize::try_from(result) else {
            let error = io::Error::from_raw_os_error(result.saturating_neg());
            return match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => self.queue.push_back(number),
                _ => self.end(number, Err(error)),
            };
        };
        part.buffers.advance(moved);
        part.offset = part.offset.saturating_add(moved as u64);
        let result = match (part.kind, moved) {
            _ if part.buffers.is_empty() => Ok(()),
            // A file that ends here was cut off while in use: see `buffers::read_exact_at`.
            (Kind::Read, 0) => Err(ErrorKind::UnexpectedEof.into()),
            (_, 0) => Err(ErrorKind::WriteZero.into()),
            _ => return self.queue.push_back(number),
        };
        self.end(number, result);
    }

    fn end(&mut self, number: usize, result: io::Result<()>) {
        if let Some(part) = self.parts.get_mut(number).and_then(Option::take) {
            self.free.push(number);
            self.ended.push((part.tag, result));
        }
    }
}

/// What becomes of all parts of a ring that cannot be used any more.
fn broken() -> io::Error {
    io::Error::other("io_uring failed")
}

impl Part {
    fn entry(&self, number: usize) -> squeue::Entry {
        let vector = self.buffers.vector();
        // At most as many as one call takes, and at most as many files as a disk has.
        let count = u32::try_from(vector.len()).unwrap_or(0);
        let file = types::Fixed(u32::try_from(self.file).unwrap_or(u32::MAX));
        // One buffer is the usual case, and spares the kernel to keep a list. A run of guest memory may be longer
        // than an entry can say: then it is a list of one.
        let single = match vector {
            [buffer] => u32::try_from(buffer.len()).ok().map(|len| (buffer, len)),
            _ => None,
        };
        let entry = match (self.kind, single) {
            (Kind::Read, Some((buffer, len))) => opcode::Read::new(file, buffer.as_ptr(), len)
                .offset(self.offset)
                .build(),
            (Kind::Write, Some((buffer, len))) => opcode::Write::new(file, buffer.as_ptr(), len)
                .offset(self.offset)
                .build(),
            (Kind::Read, None) => opcode::Readv::new(file, vector.as_ptr().cast(), count)
                .offset(self.offset)
                .build(),
            (Kind::Write, None) => opcode::Writev::new(file, vector.as_ptr().cast(), count)
                .offset(self.offset)
                .build(),
            (Kind::Sync, _) => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        };
        entry.user_data(number as u64)
    }
}

/// Nothing may be left that touches guest memory.
impl Drop for Ring {
    fn drop(&mut self) {
        while self.is_busy() {
            self.enter(true);
            self.reap();
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_ring", &self.in_ring)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It may break between two parts of one operation.
    #[test]
    fn what_comes_to_a_broken_ring_ends_in_an_error() {
        let file = tempfile::tempfile().unwrap();
        let mut ring = match Ring::new(2, &[file.as_raw_fd()]) {
            Ok(ring) => ring,
            Err(error) => {
                return eprintln!("skipped: io_uring, which this host does not have: {error}");
            }
        };
        let part = |tag| Part {
            tag: Tag(tag),
            kind: Kind::Sync,
            file: 0,
            offset: 0,
            buffers: Buffers::default(),
        };
        ring.queue(part(0));
        ring.give_up(&ErrorKind::InvalidInput.into());
        ring.queue(part(1));
        ring.start();
        let ended = ring.ended(true);
        let tags: Vec<_> = ended.iter().map(|(tag, _)| tag.0).collect();
        assert_eq!(tags, [0, 1]);
        assert!(ended.iter().all(|(_, result)| result.is_err()));
        assert!(ring.ended(true).is_empty());
    }
}
