//! The initrd: as high in memory as the kernel can take it, in whole pages.
//!
//! boot.rst, "ramdisk_image" and "initrd_addr_max". High, because the kernel unpacks itself and makes
//! its first allocations right above where it was loaded.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{KernelError, Plan, file_size};
use crate::x86_64::memory;

const PAGE: u64 = 0x1000;

/// The size of the initrd file.
pub(super) fn size(file: &mut File) -> Result<u64, KernelError> {
    file_size(file).map_err(|error| match error {
        KernelError::Directory => KernelError::InitrdDirectory,
        KernelError::NotSeekable => KernelError::InitrdNotSeekable,
        KernelError::Empty => KernelError::InitrdEmpty,
        KernelError::Read(source) => KernelError::InitrdRead(source),
        other => other,
    })
}

/// Where an initrd of `len` bytes (0: none) starts. Checks that the kernel and it fit the memory.
pub(super) fn place(
    plan: &Plan,
    len: u64,
    memory: &GuestMemoryMmap<()>,
) -> Result<u64, KernelError> {
    let low_end = memory::low_ram_end(memory);
    // The kernel's end is below the hole: no overflow.
    let floor = plan.kernel.end.next_multiple_of(PAGE);
    let limit = plan.initrd_limit.min(crate::x86_64::layout::HOLE_START);
    let max = (limit & !(PAGE - 1)).saturating_sub(floor);
    if len > max {
        return Err(KernelError::InitrdTooLarge { len, max });
    }
    let needed = if len == 0 {
        plan.kernel.end
    } else {
        floor + len.next_multiple_of(PAGE)
    };
    if needed > low_end {
        let given = memory::total(memory);
        return Err(KernelError::DoesNotFit {
            needed,
            given,
            initrd: len != 0,
        });
    }
    let top = low_end.min(limit);
    Ok((top - len) & !(PAGE - 1))
}

/// Reads the initrd into guest memory at `start`.
pub(super) fn copy(
    memory: &GuestMemoryMmap<()>,
    file: &mut File,
    start: u64,
    len: u64,
) -> Result<Range<u64>, KernelError> {
    file.seek(SeekFrom::Start(0))
        .map_err(KernelError::InitrdRead)?;
    // It fits the memory, so the memory's usize.
    let count = usize::try_from(len).unwrap_or(usize::MAX);
    memory
        .read_exact_volatile_from(GuestAddress(start), file, count)
        .map_err(KernelError::InitrdCopy)?;
    Ok(start..start + len)
}
