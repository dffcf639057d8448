//! Guest memory that notices: inaccessible pages around each region, and a mirror of what the guest wrote.
//!
//! A device that reaches past a region dies of SIGSEGV on the spot. One that writes inside memory, but
//! where the driver gave it nothing to write, is found by [`Ram::trespasses`]. Rings and device-writable
//! buffers are given by whoever makes them (see [`Driver`](super::Driver)).

use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestMemoryBackend, GuestRegionMmap, MmapRegion};

use super::tape::{Step, Tape};
use crate::mem::{GuestAddress, GuestMemory};

const PAGE: usize = 4096;

/// Guest memory, watched. Clones share it.
#[derive(Clone)]
pub struct Ram(Arc<Inner>);

struct Inner {
    memory: GuestMemory,
    // The owners are the drivers of all queues, and whoever checks.
    books: Mutex<Books>,
    /// Records what the guest writes.
    tape: Tape,
    // Last, so that they outlive `memory`.
    mappings: Vec<Guarded>,
}

#[derive(Default)]
struct Books {
    /// What each region must hold, apart from what was given.
    mirror: Vec<(u64, Vec<u8>)>,
    /// What devices may write.
    given: Vec<Range<u64>>,
}

/// A mapping between two inaccessible pages.
struct Guarded {
    start: *mut libc::c_void,
    len: usize,
    region: Arc<MmapRegion<()>>,
}

// SAFETY: the pointer is only used by `drop`, which has the mapping to itself; `MmapRegion` is `Send` and `Sync`.
unsafe impl Send for Guarded {}
// SAFETY: as above.
unsafe impl Sync for Guarded {}

impl Guarded {
    fn new(size: usize) -> io::Result<Self> {
        let len = size + 2 * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let inside = start.wrapping_byte_add(PAGE);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range lies within the mapping just made, which nothing refers to yet.
        if unsafe { libc::mprotect(inside, size, prot) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is mapped as said, and stays so until `drop` finds no other owner of the region.
        let region = unsafe { MmapRegion::build_raw(inside.cast(), size, prot, flags) };
        Ok(Self {
            start,
            len,
            region: Arc::new(region.map_err(io::Error::other)?),
        })
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Whoever else has the region, such as a thread that hangs, keeps the mapping.
        if Arc::strong_count(&self.region) == 1 {
            // SAFETY: the mapping is this struct's own, and nobody has the region that points into it.
            unsafe { libc::munmap(self.start, self.len) };
        }
    }
}

impl Ram {
    /// Memory of zeroes in these regions: first addresses and lengths, in whole pages.
    #[must_use]
    pub fn new(regions: &[(u64, usize)], tape: Tape) -> Self {
        let mirror = regions.iter().map(|&(base, len)| (base, vec![0; len]));
        Self::made(regions, mirror.collect(), tape)
    }

    /// The same without a mirror, which is cheaper: nothing in it is a trespass.
    #[must_use]
    pub fn unwatched(regions: &[(u64, usize)], tape: Tape) -> Self {
        Self::made(regions, Vec::new(), tape)
    }

    fn made(regions: &[(u64, usize)], mirror: Vec<(u64, Vec<u8>)>, tape: Tape) -> Self {
        let guarded = |&(_, size): &(u64, usize)| Guarded::new(size).expect("cannot map memory");
        let mappings: Vec<_> = regions.iter().map(guarded).collect();
        let parts = regions.iter().zip(&mappings).map(|(&(base, _), mapping)| {
            let mapping = Arc::clone(&mapping.region);
            GuestRegionMmap::with_arc(mapping, GuestAddress(base)).expect("a region wraps around")
        });
        let memory = GuestMemory::from_regions(parts.collect()).expect("regions overlap");
        Self(Arc::new(Inner {
            memory,
            books: Mutex::new(Books {
                mirror,
                given: Vec::new(),
            }),
            tape,
            mappings,
        }))
    }

    /// The memory as devices get it.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.0.memory
    }

    /// The guest writes.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.0.tape.push(|| Step::Memory {
            address,
            bytes: bytes.to_vec(),
        });
        self.books().mirror(address, bytes);
        let at = GuestAddress(address);
        self.0.memory.write_slice(bytes, at).expect("not memory");
    }

    /// Devices may write `len` bytes from `start` from now on.
    pub fn give(&self, start: u64, len: u64) {
        let end = start.saturating_add(len);
        let mut books = self.books();
        let known = |given: &Range<u64>| given.start <= start && end <= given.end;
        if !books.given.iter().any(known) {
            books.given.push(start..end);
        }
    }

    /// The first address that a device wrote to though it was not given, and how many there are.
    #[must_use]
    pub fn trespasses(&self) -> Option<(u64, usize)> {
        let books = self.books();
        let mut found: Option<(u64, usize)> = None;
        let mut actual = vec![0; PAGE];
        for (base, mirror) in &books.mirror {
            for (expected, address) in mirror.chunks(PAGE).zip((*base..).step_by(PAGE)) {
                let actual = &mut actual[..expected.len()];
                let read = self.0.memory.read_slice(actual, GuestAddress(address));
                read.expect("not memory");
                if actual == expected {
                    continue;
                }
                for given in &books.given {
                    spare(actual, expected, address, given);
                }
                let bytes = actual.iter().zip(expected).zip(address..);
                for (_, address) in bytes.filter(|((is, was), _)| is != was) {
                    found.get_or_insert((address, 0)).1 += 1;
                }
            }
        }
        found
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        let books = self.0.books.lock();
        books.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes `actual` what is `expected`, both from `address`, where it was given.
fn spare(actual: &mut [u8], expected: &[u8], address: u64, given: &Range<u64>) {
    let at = |place: u64| {
        let offset = place.saturating_sub(address);
        usize::try_from(offset).map_or(actual.len(), |offset| offset.min(actual.len()))
    };
    let (from, to) = (at(given.start), at(given.end));
    if from < to {
        actual[from..to].copy_from_slice(&expected[from..to]);
    }
}

impl Books {
    /// Writes the mirror; a range may go over from one region to the next.
    fn mirror(&mut self, address: u64, bytes: &[u8]) {
        let end = address.saturating_add(bytes.len() as u64);
        for (base, region) in &mut self.mirror {
            let (from, to) = (
                address.max(*base),
                end.min(base.saturating_add(region.len() as u64)),
            );
            if from < to {
                let at = |origin: u64, address: u64| {
                    usize::try_from(address - origin).expect("larger than memory")
                };
                let bytes = &bytes[at(address, from)..at(address, to)];
                region[at(*base, from)..at(*base, to)].copy_from_slice(bytes);
            }
        }
    }
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ram")
            .field("regions", &self.0.memory.num_regions())
            .field("mappings", &self.0.mappings.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_given_is_a_trespass() {
        let ram = Ram::new(&[(0, PAGE), (0x1000, PAGE)], Tape::default());
        let poke = |at, byte: u8| ram.memory().write_obj(byte, GuestAddress(at)).unwrap();
        ram.write(0xffe, &[1, 2, 3, 4]);
        assert_eq!(ram.trespasses(), None, "the guest may");
        ram.give(0x10, 2);
        poke(0x10, 7);
        poke(0x11, 7);
        assert_eq!(ram.trespasses(), None);
        poke(0x12, 7);
        poke(0x1001, 9);
        assert_eq!(ram.trespasses(), Some((0x12, 2)));
    }
}
