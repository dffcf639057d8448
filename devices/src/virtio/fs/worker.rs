//! The data path of a share: a request, the server's answer. Owned by one I/O thread, which is the
//! device's own, as calls to a file system may take their time.

use std::fmt;
use std::io;
use std::sync::Arc;

use fuse_backend_rs::api::server::Server;

use super::bridge::{Bridge, HEADER};
use super::guard::Guard;
use crate::io::{Chain, QueueIo};
use crate::iovec::{IoVec, gather, scatter, total};
use crate::virtio::{DeviceFault, QueueIndex, QueueWorker};

/// What a call of the host's counts of an event's share: after a few the driver is told of their answers.
const CALL: u64 = 2 << 20;

/// Where in `struct fuse_in_header` the kind of the request is.
const OPCODE: usize = 4;
/// Where its number is.
const UNIQUE: usize = 8;

/// The kinds of requests that there is an answer to, by their numbers in `enum fuse_opcode`: all but locks,
/// extended attributes, ioctl, poll, and those for a DAX window. The others do not get to the server, which
/// takes any number for one of its own.
const SERVED: u64 = {
    let kinds = [
        1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 25, 26, 27, 28, 29, 30, 34,
        35, 38, 42, 43, 44, 45, 46,
    ];
    let mut set = 0;
    let mut at = 0;
    while at < kinds.len() {
        set |= 1 << kinds[at];
        at += 1;
    }
    set
};

/// The worker.
pub(super) struct Worker {
    server: Arc<Server<Guard>>,
    /// Made with the first request, when the thread and the guest's memory are known.
    bridge: Option<Bridge>,
}

impl Worker {
    pub fn new(server: Arc<Server<Guard>>) -> Self {
        Self {
            server,
            bridge: None,
        }
    }

    /// Has the server answer `chain`; how many bytes the answer has.
    fn serve(&mut self, chain: &Chain<'_>, io: &QueueIo<'_>) -> io::Result<usize> {
        let bridge = match &mut self.bridge {
            Some(bridge) => bridge,
            None => {
                own_umask()?;
                self.bridge.insert(Bridge::new(io.memory())?)
            }
        };
        let Some(header) = header(chain) else {
            return Ok(0);
        };
        let opcode = word(&header, OPCODE);
        if 1u64.checked_shl(opcode).unwrap_or(0) & SERVED == 0 {
            return Ok(refuse(&header, chain, libc::ENOSYS));
        }
        let Some(request) = bridge.request(&header, chain)? else {
            return Ok(refuse(&header, chain, libc::EINVAL));
        };
        let answer = self
            .server
            .handle_message(request.reader, request.writer, None, None);
        Ok(answer.unwrap_or_else(|error| {
            log::debug!("share: a request that is none: {error}");
            refuse(&header, chain, libc::EIO)
        }))
    }
}

/// Gives this thread a file mode creation mask of its own, and that none: files get the modes that the
/// guest gives them, and those of the rest of the process what they had.
fn own_umask() -> io::Result<()> {
    // SAFETY: gives up what is shared of root, working directory and mask, none of which this thread
    // relies on being shared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}

/// What a request begins with, read once: the guest may change it at any time.
fn header(chain: &Chain<'_>) -> Option<[u8; HEADER]> {
    // No buffer is empty.
    let buffers = chain.readable.iter().take(HEADER).map(IoVec::new);
    let mut header = [0; HEADER];
    let len = gather(&buffers.collect::<Vec<_>>(), 0, &mut header);
    (len == HEADER).then_some(header)
}

fn word(header: &[u8; HEADER], offset: usize) -> u32 {
    let bytes = header[offset..].first_chunk();
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Answers a request that the server cannot make out with an error; how many bytes that is. Requests that
/// want no answer have no room for one.
fn refuse(header: &[u8; HEADER], chain: &Chain<'_>, errno: i32) -> usize {
    let writable: Vec<IoVec<'_>> = chain.writable.iter().map(IoVec::new).collect();
    // `struct fuse_out_header`: length, error, number.
    let mut answer = [0; 16];
    if total(&writable) < answer.len() {
        return 0;
    }
    answer[..4].copy_from_slice(&16u32.to_le_bytes());
    answer[4..8].copy_from_slice(&(-errno).to_le_bytes());
    answer[8..].copy_from_slice(&header[UNIQUE..UNIQUE + 8]);
    scatter(&writable, 0, &answer)
}

impl QueueWorker for Worker {
    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while let Some(chain) = io.pop(queue)? {
            let host = |source| DeviceFault::Host {
                what: "share",
                source,
            };
            let len = self.serve(&chain, io).map_err(host)?;
            io.charge(CALL);
            // An answer is no longer than what the server was shown.
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            io.complete(queue, chain.head, len)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}
