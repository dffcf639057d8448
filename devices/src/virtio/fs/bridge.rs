//! Requests in guest memory, in the shape that the file system server takes them.
//!
//! The server's crate is built with an older vm-memory and virtio-queue than mvm, and takes a request as a
//! descriptor chain of those. A [`Bridge`] shows it the same mappings under their host addresses, and a
//! table of descriptors in memory that no guest can touch, which names the buffers of one request at a
//! time: they have been checked, and nothing but the header is copied. To be dropped once the versions are
//! the same.

use std::io;
use std::sync::Arc;

use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use fuse_virtio_queue::desc::split::Descriptor;
use fuse_virtio_queue::{Queue, QueueT};
use fuse_vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::io::Chain;
use crate::mem::{GuestMemory, GuestSlice};

/// The most buffers a request may have. Linux makes one of at most 256 pages and a few structures.
pub(super) const MAX_BUFFERS: u16 = 1024;
/// The most bytes of a request that the server is shown, each way: what it offers to read and write at
/// once, and its largest structures before that.
const MAX_BYTES: usize = (1 << 20) + (8 << 10);

/// Virtio 1.2 §2.7.5.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// `struct fuse_in_header`: the most that any request begins with.
pub(super) const HEADER: usize = HEADER_LEN as usize;
const HEADER_LEN: u32 = 40;

/// Where the parts of a queue of [`MAX_BUFFERS`] entries are in memory of its own, and behind them the header
/// of the request.
mod ring {
    use super::MAX_BUFFERS;

    pub const DESCRIPTORS: usize = 0;
    pub const AVAIL: usize = 16 * MAX_BUFFERS as usize;
    pub const USED: usize = AVAIL + 4096;
    pub const HEADER: usize = USED + 4096 * 3;
    pub const END: usize = HEADER + 4096;
}

/// A request as the server takes it.
pub(super) struct Request<'b> {
    /// What the driver says.
    pub reader: Reader<'b>,
    /// Where the answer goes.
    pub writer: Writer<'b>,
}

/// The way to the server. Owned by a worker.
pub(super) struct Bridge {
    /// The guest's memory and the queue's, each under its host address.
    shown: GuestMemoryMmap,
    queue: Queue,
    /// Host address of the queue's memory.
    base: u64,
    /// Keeps the guest's mappings.
    _memory: GuestMemory,
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// A pointer as an address of the shown memory.
fn address(pointer: *const u8) -> u64 {
    pointer.addr() as u64
}

impl Bridge {
    /// A way for requests that lie in `memory`.
    pub fn new(memory: &GuestMemory) -> io::Result<Self> {
        let own = MmapRegion::<()>::new(ring::END).map_err(other)?;
        let base = address(own.as_ptr());
        let mut regions = vec![(base, own)];
        for region in GuestMemoryBackend::iter(memory) {
            let slice = region.as_volatile_slice().map_err(other)?;
            let pointer = slice.ptr_guard_mut().as_ptr();
            let (prot, flags) = (region.prot(), region.flags());
            // SAFETY: the region is mapped there, so long and so; `_memory` keeps the mapping for as long
            // as there is this view of it. It is accessed by volatile reads and writes only.
            let same = unsafe { MmapRegion::build_raw(pointer, slice.len(), prot, flags) };
            regions.push((address(pointer), same.map_err(other)?));
        }
        regions.sort_by_key(|(at, _)| *at);
        let regions = regions
            .into_iter()
            .filter_map(|(at, region)| GuestRegionMmap::new(region, GuestAddress(at)))
            .map(Arc::new)
            .collect();
        let shown = GuestMemoryMmap::from_arc_regions(regions).map_err(other)?;
        let at = |offset: usize| GuestAddress(base + offset as u64);
        let mut queue = Queue::new(MAX_BUFFERS).map_err(other)?;
        queue
            .try_set_desc_table_address(at(ring::DESCRIPTORS))
            .and_then(|()| queue.try_set_avail_ring_address(at(ring::AVAIL)))
            .and_then(|()| queue.try_set_used_ring_address(at(ring::USED)))
            .map_err(other)?;
        queue.set_ready(true);
        // One chain is available, whose first descriptor is the first: the ring is zeroes but for this.
        shown
            .write_obj(1u16.to_le(), at(ring::AVAIL + 2))
            .map_err(other)?;
        Ok(Self {
            shown,
            queue,
            base,
            _memory: memory.clone(),
        })
    }

    /// Shows the buffers of `chain` to the server, as far as a request can be large, and instead of what it
    /// begins with `header`. `None` is for a chain that has too many of them.
    pub fn request(
        &mut self,
        header: &[u8; HEADER],
        chain: &Chain<'_>,
    ) -> io::Result<Option<Request<'_>>> {
        let at = self.base + ring::HEADER as u64;
        let place = GuestAddress(at);
        self.shown.write_slice(header, place).map_err(other)?;
        let sides = [(&chain.readable, HEADER, 0), (&chain.writable, 0, WRITE)];
        let buffers = sides.iter().flat_map(|&(slices, skipped, flags)| {
            bounded(slices, skipped).map(move |(at, len)| (at, len, flags))
        });
        let mut buffers = std::iter::once((at, HEADER_LEN, 0))
            .chain(buffers)
            .peekable();
        let mut index = 0;
        while let Some((at, len, flags)) = buffers.next() {
            if index == MAX_BUFFERS {
                return Ok(None);
            }
            let more = if buffers.peek().is_some() { NEXT } else { 0 };
            let descriptor = Descriptor::new(at, len, flags | more, index + 1);
            let place = GuestAddress(self.base + 16 * u64::from(index));
            self.shown.write_obj(descriptor, place).map_err(other)?;
            index += 1;
        }
        self.queue.set_next_avail(0);
        let shown = &self.shown;
        let Some(request) = self.queue.pop_descriptor_chain(shown) else {
            return Ok(None);
        };
        let reader = Reader::from_descriptor_chain(shown, request.clone()).map_err(other)?;
        let writer = VirtioFsWriter::new(shown, request).map_err(other)?;
        Ok(Some(Request {
            reader,
            writer: writer.into(),
        }))
    }
}

/// The first [`MAX_BYTES`] of `slices` behind those that are skipped, as addresses and lengths.
fn bounded(slices: &[GuestSlice<'_>], mut skipped: usize) -> impl Iterator<Item = (u64, u32)> {
    let mut room = MAX_BYTES;
    let rest = slices.iter().filter_map(move |slice| {
        let over = skipped.min(slice.len());
        skipped -= over;
        slice.offset(over).ok().filter(|rest| !rest.is_empty())
    });
    rest.map_while(move |slice| {
        let len = slice.len().min(room);
        room -= len;
        let bytes = u32::try_from(len).ok().filter(|len| *len > 0)?;
        Some((address(slice.ptr_guard_mut().as_ptr()), bytes))
    })
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge").finish_non_exhaustive()
    }
}
