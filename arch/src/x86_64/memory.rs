//! Where RAM lies, and how the guest is told of it.
//!
//! [`ram_regions`] is for the VMM, which maps them; [`memory_map`] turns what was mapped into the
//! entries that the zero page (e820) and the PVH start info carry, whose types have the same numbers.

use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::layout;

/// The least memory of a machine: 32 MiB. Smaller kernels exist; a Linux that gets to its init does
/// not run in less.
pub const MIN_MEMORY: u64 = 32 << 20;

/// What Linux keeps track of memory by (`SECTION_SIZE_BITS`), and the bytes of its array of pages for one.
const SECTION: u64 = 128 << 20;
const ARRAY_OF_SECTION: u64 = 2 << 20;

/// `IO_TLB_DEFAULT_SIZE`.
const BOUNCE_BUFFERS: u64 = 64 << 20;

/// The RAM regions of a machine with `bytes` of memory: below the hole, and the rest above it.
///
/// # Examples
/// ```
/// use arch::x86_64::memory::ram_regions;
/// assert_eq!(ram_regions(1 << 30).len(), 1);
/// let four = ram_regions(4 << 30);
/// assert_eq!((four[0].1, four[1].0.0, four[1].1), (3 << 30, 4 << 30, 1 << 30));
/// ```
#[must_use]
pub fn ram_regions(bytes: u64) -> Vec<(GuestAddress, usize)> {
    let low = bytes.min(layout::HOLE_START);
    let high = bytes - low;
    [(0, low), (layout::HOLE_END, high)]
        .into_iter()
        .filter(|&(_, len)| len != 0)
        // usize has 64 bits wherever this crate builds.
        .map(|(base, len)| {
            (
                GuestAddress(base),
                usize::try_from(len).unwrap_or(usize::MAX),
            )
        })
        .collect()
}

/// What the address of a file that the guest has as memory is a multiple of: Linux manages memory in
/// sections of so much (`arch/x86/include/asm/sparsemem.h`, SECTION_SIZE_BITS), and none is shared.
const WINDOW_ALIGNMENT: u64 = 128 << 20;

/// Where files that the guest has as memory begin, in a machine with `bytes` of RAM: above all of it, and
/// above the hole.
#[must_use]
pub fn windows_start(bytes: u64) -> u64 {
    let end = layout::HOLE_END.saturating_add(bytes.saturating_sub(layout::HOLE_START));
    next_window(end, 0)
}

/// Where the next one begins behind one at `start` with `len` bytes.
#[must_use]
pub fn next_window(start: u64, len: u64) -> u64 {
    let end = start.saturating_add(len);
    end.checked_next_multiple_of(WINDOW_ALIGNMENT)
        .unwrap_or(end)
}

/// What a range of the guest physical address space is.
///
/// The numbers are those of e820 (ACPI 6.5 §15) and of PVH (`XEN_HVM_MEMMAP_TYPE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// Usable memory.
    Ram = 1,
    /// Not memory for the guest's use, and no place for devices either.
    Reserved = 2,
}

/// One entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First guest physical address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: MapKind,
}

/// The memory map that the guest is given: its RAM without the PC's window of video memory and ROMs,
/// and as reserved the ACPI tables and the pages that KVM takes.
///
/// The devices in the hole are not listed, as on a PC: ACPI tells of them, and a reserved range would
/// keep an OS from using it for them.
#[must_use]
pub fn memory_map(memory: &GuestMemoryMmap<()>) -> Vec<MapEntry> {
    let ram = |base, end| MapEntry {
        base,
        len: end - base,
        kind: MapKind::Ram,
    };
    let reserved = |base, end| MapEntry {
        base,
        len: end - base,
        kind: MapKind::Reserved,
    };
    let mut map = Vec::with_capacity(memory.num_regions() + 3);
    for region in memory.iter() {
        let base = region.start_addr().0;
        let end = base + region.len();
        if base < layout::LOW_RAM_END {
            map.push(ram(base, end.min(layout::LOW_RAM_END)));
        }
        let base = base.max(layout::HIGH_RAM_START);
        if base < end {
            map.push(ram(base, end));
        }
    }
    map.push(reserved(layout::ACPI_START, layout::ACPI_END));
    map.push(reserved(layout::KVM_IDENTITY_MAP, layout::KVM_PAGES_END));
    map.sort_by_key(|entry| entry.base);
    map
}

/// The end of the RAM that starts at address 0; 0 where there is none. Kernel and initrd go below it.
#[must_use]
pub fn low_ram_end(memory: &GuestMemoryMmap<()>) -> u64 {
    memory
        .iter()
        .find(|region| region.start_addr().0 == 0)
        .map_or(0, GuestMemoryRegion::len)
}

/// The size of all RAM, in bytes.
#[must_use]
pub fn total(memory: &GuestMemoryMmap<()>) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// Where Linux, with its initrd at `initrd`, puts what it fills as it starts and that grows with memory:
///
/// - its array of pages, 64 bytes for each page of RAM, in whole pages of 2 MiB, one such page below the end of RAM, or
///   of an initrd that ends it (`sparse_init_nid()` in mm/sparse.c, from memblock's end);
/// - where there is RAM above 4 GiB, 64 MiB for devices that cannot reach that, at the end of what is below
///   (`swiotlb_init_remap()` in kernel/dma/swiotlb.c).
///
/// A guess: a kernel may be built or told otherwise, and then this is memory like other memory.
#[must_use]
pub fn filled_at_start(memory: &GuestMemoryMmap<()>, initrd: &Range<u64>) -> [Range<u64>; 2] {
    let below = |end: u64, len: u64, start: u64| {
        let end = match initrd.contains(&end.saturating_sub(1)) {
            true => initrd.start.next_multiple_of(ARRAY_OF_SECTION).min(end),
            false => end,
        };
        end.saturating_sub(len).max(start)..end
    };
    let Some(last) = memory.iter().max_by_key(|region| region.start_addr().0) else {
        return [0..0, 0..0];
    };
    let start = last.start_addr().0;
    let array = ARRAY_OF_SECTION + total(memory).div_ceil(SECTION) * ARRAY_OF_SECTION;
    let array = below(start + last.len(), array, start);
    let bounced = match start {
        0 => 0..0,
        _ => below(low_ram_end(memory), BOUNCE_BUFFERS, 0),
    };
    [array, bounced]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(bytes: u64) -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&ram_regions(bytes)).unwrap()
    }

    #[test]
    fn regions_keep_the_size_and_spare_the_hole() {
        for bytes in [MIN_MEMORY, 3 << 30, (3 << 30) + 4096, 4 << 30, 1 << 40] {
            let regions = ram_regions(bytes);
            let sum: u64 = regions.iter().map(|&(_, len)| len as u64).sum();
            assert_eq!(sum, bytes);
            for (base, len) in regions {
                let end = base.0 + len as u64;
                assert!(end <= layout::HOLE_START || base.0 >= layout::HOLE_END);
            }
        }
        assert!(ram_regions(0).is_empty());
    }

    #[test]
    fn windows_are_above_all_ram_and_apart() {
        for (bytes, start) in [
            (MIN_MEMORY, 4 << 30),
            (3 << 30, 4 << 30),
            ((3 << 30) + 4096, (4 << 30) + (128 << 20)),
            (8 << 30, 9 << 30),
        ] {
            assert_eq!(windows_start(bytes), start);
        }
        assert_eq!(next_window(4 << 30, 2 << 20), (4 << 30) + (128 << 20));
        assert_eq!(next_window(4 << 30, 128 << 20), (4 << 30) + (128 << 20));
    }

    #[test]
    fn map_is_sorted_disjoint_and_hides_the_bios_area() {
        for bytes in [MIN_MEMORY, 5 << 30] {
            let map = memory_map(&mapped(bytes));
            for pair in map.windows(2) {
                assert!(pair[0].base + pair[0].len <= pair[1].base, "{map:x?}");
            }
            let ram: u64 = map
                .iter()
                .filter(|e| e.kind == MapKind::Ram)
                .map(|e| e.len)
                .sum();
            assert_eq!(ram, bytes - (layout::HIGH_RAM_START - layout::LOW_RAM_END));
        }
    }

    #[test]
    fn map_of_4_gib_goes_on_after_the_hole() {
        let memory = mapped(4 << 30);
        let map = memory_map(&memory);
        let high = map.last().unwrap();
        assert_eq!(
            (high.base, high.len, high.kind),
            (4 << 30, 1 << 30, MapKind::Ram)
        );
        assert_eq!(low_ram_end(&memory), 3 << 30);
        assert_eq!(total(&memory), 4 << 30);
    }

    #[test]
    fn what_linux_fills_is_at_the_top() {
        const MIB: u64 = 1 << 20;
        let filled = |mib, initrd: Range<u64>| filled_at_start(&mapped(mib * MIB), &initrd);
        let none = |mib| mib * MIB..mib * MIB;
        assert_eq!(filled(128, none(128)), [124 * MIB..128 * MIB, 0..0]);
        assert_eq!(filled(32, none(32)), [28 * MIB..32 * MIB, 0..0]);
        // Below an initrd that is in the way, of which a page of 2 MiB may have a part.
        let initrd = 99 * MIB + 5..128 * MIB;
        assert_eq!(filled(128, initrd), [96 * MIB..100 * MIB, 0..0]);
        assert_eq!(filled(32, 1..32 * MIB), [0..2 * MIB, 0..0]);
        let initrd = 2000 * MIB..2048 * MIB;
        assert_eq!(filled(3072, initrd.clone())[0], 3022 * MIB..3072 * MIB);
        // Above the hole, where no initrd is.
        let (three, four, five) = (3072 * MIB, 4096 * MIB, 5120 * MIB);
        let bounced = three - 64 * MIB..three;
        let array = five - 66 * MIB..five;
        assert_eq!(filled(4096, initrd), [array, bounced.clone()]);
        // What is above may be too little for it.
        assert_eq!(filled(3073, none(2048)), [four..four + MIB, bounced]);
    }
}
