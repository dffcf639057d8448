//! What a guest tells of its memory, Virtio 1.2 §5.5.6.4. All of it is hearsay.

use std::time::Instant;

use super::pages::gather;
use crate::mem::GuestSlice;

/// A figure of a guest's memory. The numbers are those of the tags; from [`Self::OomKills`] on they are
/// of later versions than Virtio 1.2 (Linux, include/uapi/linux/virtio_balloon.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Figure {
    /// Bytes swapped in.
    SwapIn = 0,
    /// Bytes swapped out.
    SwapOut = 1,
    /// Page faults that needed I/O.
    MajorFaults = 2,
    /// Page faults that did not.
    MinorFaults = 3,
    /// Bytes that nobody uses.
    FreeMemory = 4,
    /// Bytes the guest's kernel can use.
    TotalMemory = 5,
    /// Bytes that can be had without swapping.
    AvailableMemory = 6,
    /// Bytes of the page cache.
    DiskCaches = 7,
    /// Huge pages given to programs.
    HugetlbAllocations = 8,
    /// Huge pages asked for in vain.
    HugetlbFailures = 9,
    /// Programs killed for want of memory.
    OomKills = 10,
    /// Allocations that had to wait for reclaim.
    AllocationStalls = 11,
    /// Pages looked at by reclaim in the background.
    AsyncScans = 12,
    /// Pages looked at by reclaim while somebody waited.
    DirectScans = 13,
    /// Pages reclaimed in the background.
    AsyncReclaims = 14,
    /// Pages reclaimed while somebody waited.
    DirectReclaims = 15,
}

impl Figure {
    /// All of them, each at its tag, with the names that Firecracker's API gives them.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::SwapIn, "swap_in"),
        (Self::SwapOut, "swap_out"),
        (Self::MajorFaults, "major_faults"),
        (Self::MinorFaults, "minor_faults"),
        (Self::FreeMemory, "free_memory"),
        (Self::TotalMemory, "total_memory"),
        (Self::AvailableMemory, "available_memory"),
        (Self::DiskCaches, "disk_caches"),
        (Self::HugetlbAllocations, "hugetlb_allocations"),
        (Self::HugetlbFailures, "hugetlb_failures"),
        (Self::OomKills, "oom_kill"),
        (Self::AllocationStalls, "alloc_stall"),
        (Self::AsyncScans, "async_scan"),
        (Self::DirectScans, "direct_scan"),
        (Self::AsyncReclaims, "async_reclaim"),
        (Self::DirectReclaims, "direct_reclaim"),
    ];
}

/// One answer of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// When it came.
    pub at: Instant,
    values: [Option<u64>; Figure::ALL.len()],
}

/// `struct virtio_balloon_stat`, packed: a tag of 16 bits, a value of 64.
const ENTRY: usize = 10;

/// What is read of an answer: more entries than there are tags, so that unknown ones may be among them.
const MAX_BYTES: usize = 64 * ENTRY;

impl Statistics {
    /// Reads an answer that has come at `at`. Tags that nobody knows are passed over; of two values for
    /// one tag the later counts.
    pub(super) fn read(buffers: &[GuestSlice<'_>], at: Instant) -> Self {
        let mut values = [None; Figure::ALL.len()];
        let mut bytes = [0; MAX_BYTES];
        let len = gather(buffers, &mut bytes);
        for entry in bytes[..len].as_chunks::<ENTRY>().0 {
            let [low, high, value @ ..] = *entry;
            let tag = usize::from(u16::from_le_bytes([low, high]));
            if let Some(slot) = values.get_mut(tag) {
                *slot = Some(u64::from_le_bytes(value));
            }
        }
        Self { at, values }
    }

    /// A figure, if the guest gave it.
    #[must_use]
    pub fn get(&self, figure: Figure) -> Option<u64> {
        self.values.get(usize::from(figure as u16)).copied()?
    }

    /// What the guest gave, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Figure::ALL
            .iter()
            .zip(self.values)
            .filter_map(|((_, name), value)| Some((*name, value?)))
    }
}
