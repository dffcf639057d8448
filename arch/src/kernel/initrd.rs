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

/// An initrd: a file, and what comes behind it.
///
/// The kernel takes archives one after the other, compressed or not; what it unpacks last stands. One that
/// is not compressed begins at a multiple of four bytes, with zeroes before it
/// (`Documentation/driver-api/early-userspace/buffer-format.rst`).
#[derive(Debug, Default)]
pub struct Initrd<'a> {
    /// The user's file; its position changes.
    pub file: Option<&'a mut File>,
    /// An archive to put behind it.
    pub appended: &'a [u8],
}

impl<'a> From<Option<&'a mut File>> for Initrd<'a> {
    fn from(file: Option<&'a mut File>) -> Self {
        Self {
            file,
            appended: &[],
        }
    }
}

impl Initrd<'_> {
    /// Sizes of the file and of the whole.
    pub(super) fn size(&mut self) -> Result<Size, KernelError> {
        let file = match &mut self.file {
            Some(file) => size(file)?,
            None => 0,
        };
        let appended = self.appended.len() as u64;
        let whole = match appended {
            0 => file,
            appended => file
                .checked_next_multiple_of(ALIGNMENT)
                .and_then(|start| start.checked_add(appended))
                .ok_or(KernelError::InitrdTooLarge {
                    len: file,
                    max: u64::MAX,
                })?,
        };
        Ok(Size { file, whole })
    }

    /// Reads all of it into guest memory at `start`.
    pub(super) fn copy(
        self,
        memory: &GuestMemoryMmap<()>,
        start: u64,
        size: Size,
    ) -> Result<Range<u64>, KernelError> {
        if let Some(file) = self.file {
            copy(memory, file, start, size.file)?;
        }
        // The gap is zero: nothing has written to this memory yet.
        let appended = start + size.whole - self.appended.len() as u64;
        memory
            .write_slice(self.appended, GuestAddress(appended))
            .map_err(KernelError::InitrdCopy)?;
        Ok(start..start + size.whole)
    }
}

/// How long an initrd is, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// The file.
    pub file: u64,
    /// All of it.
    pub whole: u64,
}

/// Where an archive that is not compressed may begin.
const ALIGNMENT: u64 = 4;

/// The size of the initrd file.
fn size(file: &mut File) -> Result<u64, KernelError> {
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

/// Reads the file into guest memory at `start`.
fn copy(
    memory: &GuestMemoryMmap<()>,
    file: &mut File,
    start: u64,
    len: u64,
) -> Result<(), KernelError> {
    file.seek(SeekFrom::Start(0))
        .map_err(KernelError::InitrdRead)?;
    // It fits the memory, so the memory's usize.
    let count = usize::try_from(len).unwrap_or(usize::MAX);
    memory
        .read_exact_volatile_from(GuestAddress(start), file, count)
        .map_err(KernelError::InitrdCopy)
}
