//! The page tables of the 64-bit boot: virtual equals physical, in pages of 2 MiB.
//!
//! The boot protocol asks for an identity map of kernel, zero page and command line; Linux builds its
//! own tables in its first instructions. So only as many page directories are written as the kernel
//! reaches, one for each GiB: each page that the VMM touches costs a fault on the way to the first
//! instruction. Pages of 1 GiB would save more but not every CPU has them.
//! Formats: Intel SDM vol. 3 §4.5.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

const PAGE: u64 = 0x1000;
const GIB: u64 = 1 << 30;
/// Entries of one table.
const ENTRIES: u64 = 512;
/// Length of one table in bytes.
const TABLE_LEN: usize = 0x1000;
/// Reach of one page directory entry with [`LARGE`].
const LARGE_PAGE: u64 = 2 << 20;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// In a page directory entry: maps 2 MiB itself.
const LARGE: u64 = 1 << 7;

/// The most page directories: kernels are loaded below the hole, which ends at 4 GiB.
const MAX_DIRECTORIES: u64 = 4;

/// Writes tables that map everything below `end` (at least 1 GiB, at most 4 GiB). They start at
/// [`layout::PAGE_TABLES`], which goes to CR3.
pub(super) fn write_identity_map(
    memory: &GuestMemoryMmap<()>,
    end: u64,
) -> Result<(), GuestMemoryError> {
    let directories = end.div_ceil(GIB).clamp(1, MAX_DIRECTORIES);
    let pml4 = layout::PAGE_TABLES;
    let pdpt = pml4 + PAGE;
    let first_directory = pdpt + PAGE;
    memory.write_obj(pdpt | PRESENT | WRITABLE, GuestAddress(pml4))?;
    for gib in 0..directories {
        let directory = first_directory + gib * PAGE;
        memory.write_obj(directory | PRESENT | WRITABLE, GuestAddress(pdpt + gib * 8))?;
        let mut bytes = [0; TABLE_LEN];
        for (entry, slot) in (0..ENTRIES).zip(bytes.chunks_exact_mut(8)) {
            let page = gib * GIB + entry * LARGE_PAGE;
            slot.copy_from_slice(&(page | PRESENT | WRITABLE | LARGE).to_le_bytes());
        }
        memory.write_slice(&bytes, GuestAddress(directory))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// Walks the tables as the MMU does.
    fn walk(memory: &GuestMemoryMmap<()>, address: u64) -> Option<u64> {
        let mut table = layout::PAGE_TABLES;
        for shift in [39, 30] {
            let index = address >> shift & 0x1ff;
            let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).unwrap();
            if entry & PRESENT == 0 {
                return None;
            }
            assert_eq!(entry & LARGE, 0);
            table = entry & ADDRESS;
        }
        let index = address >> 21 & 0x1ff;
        let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).unwrap();
        assert_eq!(
            entry & (PRESENT | WRITABLE | LARGE),
            PRESENT | WRITABLE | LARGE
        );
        Some((entry & ADDRESS) + address % LARGE_PAGE)
    }

    fn mapped_up_to(end: u64) -> GuestMemoryMmap<()> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_identity_map(&memory, end).unwrap();
        memory
    }

    #[test]
    fn every_address_maps_to_itself() {
        let memory = mapped_up_to(3 * GIB);
        for address in [
            0,
            0x7000,
            0x20_0123,
            GIB - 1,
            GIB,
            2 * GIB + 0x1234_5678,
            3 * GIB - 1,
        ] {
            assert_eq!(walk(&memory, address), Some(address));
        }
        assert_eq!(walk(&memory, 3 * GIB), None);
    }

    #[test]
    fn a_small_kernel_needs_one_directory() {
        let memory = mapped_up_to(64 << 20);
        assert_eq!(walk(&memory, GIB - 1), Some(GIB - 1));
        assert_eq!(walk(&memory, GIB), None);
        assert_eq!(walk(&memory, 1 << 39), None);
    }

    #[test]
    fn tables_never_reach_the_command_line() {
        let end = layout::PAGE_TABLES + (2 + MAX_DIRECTORIES) * PAGE;
        assert!(end <= layout::CMDLINE);
        mapped_up_to(u64::MAX);
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x9000)]).unwrap();
        assert!(write_identity_map(&memory, GIB).is_err());
    }
}
