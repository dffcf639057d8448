//! One open file of a disk, and what can be done to its bytes at once: read, written, cleared, made
//! durable.
//!
//! An image file or a block device. The cheapest way to clear a range is found by trying: a file system
//! or a device that does not know one is not asked again.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::image::{self, Image, ImageError};
use super::iovec::{self, Buffers};

/// Zeroes to write where the host cannot be told to clear a range.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// An image file or block device, open and locked.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    /// Bytes.
    pub(super) len: u64,
    /// The size the host handles it in, in bytes.
    pub(super) block_size: u32,
    /// Holes can be punched.
    punch: AtomicBool,
    /// Ranges can be zeroed in place.
    zero_range: AtomicBool,
}

impl DiskFile {
    /// Opens and locks the image at `path`: exclusively, or shared with other readers if `read_only`.
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let Image {
            file,
            len,
            is_device,
            block_size,
        } = image::open(path, read_only)?;
        // What a block device can forget cannot be tried without loss, so only files offer discard.
        let punch = !read_only && !is_device && can_punch(&file, len);
        Ok(Self {
            file,
            len,
            block_size,
            punch: AtomicBool::new(punch),
            zero_range: AtomicBool::new(true),
        })
    }

    /// A file as it is, of which `len` bytes are used.
    #[cfg(test)]
    pub(super) fn of(file: File, len: u64) -> Self {
        Self {
            file,
            len,
            block_size: 512,
            punch: AtomicBool::new(false),
            zero_range: AtomicBool::new(false),
        }
    }

    /// Leaves only these ways to clear a range.
    #[cfg(test)]
    pub(super) fn restrict(&self, punch: bool, zero_range: bool) {
        self.punch.fetch_and(punch, Ordering::Relaxed);
        self.zero_range.fetch_and(zero_range, Ordering::Relaxed);
    }

    /// For an engine that does the same by other means.
    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether space can be given back.
    pub(super) fn can_discard(&self) -> bool {
        self.punch.load(Ordering::Relaxed)
    }

    pub(super) fn read(&self, offset: u64, buffers: Buffers) -> io::Result<()> {
        iovec::read_exact_at(&self.file, buffers, offset)
    }

    pub(super) fn write(&self, offset: u64, buffers: Buffers) -> io::Result<()> {
        iovec::write_all_at(&self.file, buffers, offset)
    }

    /// Makes everything written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the space of a range back.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        clear(&self.file, Way::Punch, offset, len)
    }

    /// Clears a range the cheapest way the host has; in the end by writing zeroes.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let (way, works) = if unmap && self.can_discard() {
            (Way::Punch, &self.punch)
        } else {
            (Way::ZeroInPlace, &self.zero_range)
        };
        if works.load(Ordering::Relaxed) {
            match clear(&self.file, way, offset, len) {
                Ok(()) => return Ok(()),
                // A block device wants ranges of its own sectors, a file system may not know the mode.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                Err(error) if is_unsupported(&error) => works.store(false, Ordering::Relaxed),
                Err(error) => return Err(error),
            }
        }
        let mut at = offset;
        let mut left = len;
        while left > 0 {
            let now = usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            self.file.write_all_at(&ZEROES[..now], at)?;
            at += now as u64;
            left -= now as u64;
        }
        Ok(())
    }
}

/// Whether the file system gives space back. Asked beyond the end, where there is none to lose.
fn can_punch(file: &File, len: u64) -> bool {
    clear(file, Way::Punch, len, 4096).is_ok()
}

/// How a range is cleared.
#[derive(Debug, Clone, Copy)]
enum Way {
    Punch,
    ZeroInPlace,
}

/// fallocate(2) of a range, without a change of the file's size.
fn clear(file: &File, way: Way, offset: u64, len: u64) -> io::Result<()> {
    loop {
        let mode = match way {
            Way::Punch => FallocateMode::PunchHole,
            Way::ZeroInPlace => FallocateMode::ZeroRange,
        };
        match fallocate(file, mode, true, offset, len).map_err(io::Error::from) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}
