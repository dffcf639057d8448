//! One open file of a disk, and what can be done to its bytes at once: read, written, cleared, made
//! durable.
//!
//! An image file or a block device. The cheapest way to clear a range is found by trying: a file system
//! or a device that does not know one is not asked again.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::Errno;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_io_nr;

use super::buffers::{self, Buffers};
use super::direct::{self, Alignment};
use super::disk::{ResizeError, SECTOR};
use super::image::{self, Access, Image, ImageError};

/// Zeroes that are written at a time where the host cannot be told to clear a range.
const ZEROES: u64 = 16 << 20;

/// An image file or block device, open and locked.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    /// Bytes.
    len: u64,
    /// The size the host handles it in, in bytes.
    pub(super) block_size: u32,
    /// What transfers must be like that go around the page cache, if they do.
    direct: Option<Alignment>,
    /// How space is given back.
    discard: Discard,
    /// Holes can be punched, and read as zeroes.
    punch: AtomicBool,
    /// Ranges can be zeroed in place.
    zero_range: AtomicBool,
    /// The host could not store what it had taken, and has forgotten it since.
    lost: AtomicBool,
}

impl DiskFile {
    /// Opens and locks the image at `path`: exclusively, or shared with other readers if read-only.
    pub(super) fn open(path: &Path, access: Access) -> Result<Self, ImageError> {
        let Image {
            file,
            len,
            is_device,
            block_size,
            direct,
        } = image::open(path, access)?;
        let discard = match (access.read_only, is_device) {
            (true, _) => Discard::Never,
            (false, true) if device_discards(&file) => Discard::Device,
            (false, false) if can_punch(&file, len) => Discard::Punch,
            (false, _) => Discard::Never,
        };
        Ok(Self {
            file,
            len,
            block_size,
            direct,
            discard,
            punch: AtomicBool::new(discard != Discard::Never),
            zero_range: AtomicBool::new(true),
            lost: AtomicBool::new(false),
        })
    }

    /// A file without a name, of `len` bytes, which is gone when it is closed.
    pub(super) fn in_memory(len: u64) -> io::Result<Self> {
        let file = File::from(memfd_create("mvm-overlay", MemfdFlags::CLOEXEC)?);
        file.set_len(len)?;
        Ok(Self {
            file,
            len,
            block_size: 4096,
            direct: None,
            discard: Discard::Punch,
            punch: AtomicBool::new(true),
            zero_range: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })
    }

    /// Its size in bytes when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Another descriptor of the same open file, under the same lock.
    pub(super) fn duplicate(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Changes the size.
    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    /// Gives it a size that a disk can have, or finds out which one it has now.
    pub(super) fn resize(&self, bytes: Option<u64>) -> Result<u64, ResizeError> {
        let host = ResizeError::Host;
        let metadata = self.file.metadata().map_err(host)?;
        let is_device = metadata.file_type().is_block_device();
        let len = match bytes {
            Some(_) if is_device => return Err(ResizeError::Device),
            Some(bytes) => bytes,
            // A block device's metadata has no size. Nobody reads where the file stands.
            None => seek(&self.file, SeekFrom::End(0)).map_err(|error| host(error.into()))?,
        };
        let block = self.direct.map_or(SECTOR, |align| align.offset.max(SECTOR));
        if len == 0 || !len.is_multiple_of(block) {
            return Err(ResizeError::Size { bytes: len, block });
        }
        if bytes.is_some() {
            self.file.set_len(len).map_err(host)?;
        }
        Ok(len)
    }

    /// Where the next bytes from `offset` on are that are not a hole; none if only a hole is left.
    pub(super) fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            // A file system that does not know its holes has none to skip.
            Err(Errno::INVAL) => Ok((offset < self.len).then_some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    /// A file as it is, of which `len` bytes are used.
    #[cfg(test)]
    pub(super) fn of(file: File, len: u64) -> Self {
        Self {
            file,
            len,
            block_size: 512,
            direct: None,
            discard: Discard::Never,
            punch: AtomicBool::new(false),
            zero_range: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        }
    }

    /// Asks more of transfers than the host does.
    #[cfg(test)]
    pub(super) fn with_alignment(mut self, align: Alignment) -> Self {
        self.direct = Some(align);
        self
    }

    /// Leaves only these ways to clear a range.
    #[cfg(test)]
    pub(super) fn restrict(&self, punch: bool, zero_range: bool) {
        self.punch.fetch_and(punch, Ordering::Relaxed);
        self.zero_range.fetch_and(zero_range, Ordering::Relaxed);
    }

    /// To map it.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// For an engine that does the same by other means.
    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether space can be given back.
    pub(super) fn can_discard(&self) -> bool {
        self.discard != Discard::Never
    }

    /// Whether it is read and written around the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Whether the kernel takes the transfer as it is.
    pub(super) fn takes(&self, offset: u64, buffers: &Buffers<'_>) -> bool {
        self.direct.is_none_or(|align| align.has(offset, buffers))
    }

    /// The blocks that no two writes may share at once, if there are any.
    pub(super) fn exclusive_block(&self) -> Option<u64> {
        let align = self.direct?.offset;
        (align > SECTOR).then_some(align)
    }

    pub(super) fn read(&self, offset: u64, buffers: Buffers<'_>) -> io::Result<()> {
        match self.direct {
            None => buffers::read_exact_at(&self.file, buffers, offset),
            Some(align) => direct::read(&self.file, align, offset, buffers),
        }
    }

    /// A write that ends amid an [exclusive block](Self::exclusive_block) must be the only one there.
    pub(super) fn write(&self, offset: u64, buffers: Buffers<'_>) -> io::Result<()> {
        match self.direct {
            None => buffers::write_all_at(&self.file, buffers, offset),
            Some(align) => direct::write(&self.file, align, offset, buffers),
        }
    }

    /// Makes everything written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.may_sync()?;
        self.file
            .sync_data()
            .inspect_err(|error| self.sync_failed(error))
    }

    /// Whether a sync would mean what it says. Linux tells of each failure once, and takes the pages that
    /// it could not write for clean (fsync(2)): a second sync that succeeds would be a lie.
    pub(super) fn may_sync(&self) -> io::Result<()> {
        match self.lost.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(io::Error::other(
                "the host has lost what was written to it before",
            )),
        }
    }

    /// A sync has failed. Around the page cache there is nothing that can have been lost by it.
    pub(super) fn sync_failed(&self, error: &io::Error) {
        let errno = error.raw_os_error();
        if self.direct.is_none() && matches!(errno, Some(libc::EIO | libc::ENOSPC | libc::EDQUOT)) {
            self.lost.store(true, Ordering::Release);
        }
    }

    /// Gives the space of a range back.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.discard {
            Discard::Never => Ok(()),
            Discard::Punch => clear(&self.file, Way::Punch, offset, len),
            Discard::Device => match blkdiscard(&self.file, offset, len) {
                // Less than a sector of the device's own, or not the part of it that can be discarded: the
                // contents do not matter, so they may as well stay.
                Err(error) if error.kind() == ErrorKind::InvalidInput || is_unsupported(&error) => {
                    Ok(())
                }
                result => result,
            },
        }
    }

    /// Clears a range the cheapest way the host has; in the end by writing zeroes.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let (way, works) = if unmap && self.punch.load(Ordering::Relaxed) {
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
            let now = left.min(ZEROES);
            self.write(at, Buffers::of_zeroes(now))?;
            at += now;
            left -= now;
        }
        Ok(())
    }
}

/// A ring that had the file registered goes some time after its last user, and would hold the lock until
/// then.
impl Drop for DiskFile {
    fn drop(&mut self) {
        // A lock that is not there any more is what was wanted.
        let _ = self.file.unlock();
    }
}

/// Whether the file system gives space back. Asked beyond the end, where there is none to lose.
fn can_punch(file: &File, len: u64) -> bool {
    clear(file, Way::Punch, len, 4096).is_ok()
}

/// How a file gives space back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Discard {
    Never,
    /// A hole in an image file.
    Punch,
    /// BLKDISCARD of a block device, where what comes back is anything.
    Device,
}

/// What a block device can forget cannot be tried without loss, so sysfs is asked
/// (Documentation/ABI/stable/sysfs-block, discard_max_bytes).
fn device_discards(file: &File) -> bool {
    let Ok(metadata) = file.metadata() else {
        return false;
    };
    let device = metadata.rdev();
    let directory = format!(
        "/sys/dev/block/{}:{}",
        libc::major(device),
        libc::minor(device)
    );
    // A partition has its disk's queue.
    ["queue", "../queue"].into_iter().any(|queue| {
        let path = format!("{directory}/{queue}/discard_max_bytes");
        let bytes = fs::read_to_string(path).ok();
        bytes.is_some_and(|bytes| bytes.trim().parse().is_ok_and(|bytes: u64| bytes > 0))
    })
}

// linux/fs.h.
ioctl_io_nr!(BLKDISCARD, 0x12, 119);

fn blkdiscard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two 64-bit numbers from its argument.
    match unsafe { ioctl_with_ref(file, BLKDISCARD(), &range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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
