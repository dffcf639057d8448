//! A file in mvm's address space, for KVM to put into the guest's. Nothing of mvm reads or writes through
//! it: whoever truncates the file cannot kill a thread of the host.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::ALIGNMENT;

/// A mapped file, aligned to [`ALIGNMENT`] so that the host can use large pages, and as long as a multiple
/// of it: behind the file's end are zeroes.
#[derive(Debug)]
pub(super) struct Mapping {
    /// All that was reserved.
    reserved: *mut c_void,
    reserved_len: usize,
    /// What is used of it.
    start: *mut c_void,
    pub(super) len: usize,
}

// SAFETY: the pointers name a mapping that belongs to this value alone and is never accessed through it.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing changes behind a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the `bytes` of `file`, shared with whoever else has it open.
    pub(super) fn new(file: BorrowedFd<'_>, bytes: u64, read_only: bool) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let alignment = usize::try_from(ALIGNMENT).map_err(|_| too_large())?;
        let file_len = usize::try_from(bytes).map_err(|_| too_large())?;
        let len = file_len
            .checked_next_multiple_of(alignment)
            .ok_or_else(too_large)?;
        let reserved_len = len.checked_add(alignment).ok_or_else(too_large)?;
        // Readable, for what lies behind the file's end.
        // SAFETY: a new mapping, wherever there is room.
        let reserved = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            mmap_anonymous(ptr::null_mut(), reserved_len, ProtFlags::READ, flags)?
        };
        let skipped = reserved.addr().next_multiple_of(alignment) - reserved.addr();
        let mapping = Self {
            reserved,
            reserved_len,
            start: reserved.wrapping_byte_add(skipped),
            len,
        };
        let access = match read_only {
            true => ProtFlags::READ,
            false => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: replaces a part of the reservation, which nobody has seen yet: `skipped` is at most
        // `alignment`, and `file_len` at most `len`.
        unsafe {
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            mmap(mapping.start, file_len, access, flags, file, 0)?;
        }
        Ok(mapping)
    }

    /// Where it begins in mvm's address space.
    pub(super) fn address(&self) -> u64 {
        self.start.addr() as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole reservation, which is this value's; KVM was given it by somebody who holds the
        // value as long as the VM lives.
        let unmapped = unsafe { munmap(self.reserved, self.reserved_len) };
        debug_assert!(unmapped.is_ok());
    }
}
