//! A disk that is an image file, or a block device, as it is: sector n is byte n × 512.
//!
//! Every operation is done when it returns. Data goes between the file and guest memory without a copy
//! of ours; it is durable after `fdatasync`, which a flush is and a write-through write ends in.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::disk::{Disk, DiskInfo, DiskOp, Progress, Tag};
use super::image::{self, ImageError};
use super::iovec;
use super::request::ID_BYTES;

/// Zeroes to write where the host cannot be told to clear a range.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// An image file or block device. Holds the lock on it.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    info: DiskInfo,
    id: String,
    /// Holes can be punched.
    punch: bool,
    /// Ranges can be zeroed in place.
    zero_range: bool,
}

impl RawDisk {
    /// Opens and locks the image at `path`: exclusively, or shared with other readers if `read_only`.
    ///
    /// # Errors
    /// See [`ImageError`]; the image is untouched.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let image = image::open(path, read_only)?;
        // What a block device can forget cannot be tried without loss, so only files offer discard.
        let punch = !read_only && !image.is_device && can_punch(&image.file, image.len);
        Ok(Self {
            info: DiskInfo {
                capacity: image.len,
                read_only,
                block_size: image.block_size,
                discard: punch,
            },
            id: default_id(path),
            punch,
            zero_range: true,
            file: image.file,
        })
    }

    /// Names the disk to the guest, instead of after its file. The guest sees the first 20 bytes.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    fn execute(&mut self, op: DiskOp<'_>) -> io::Result<()> {
        match op {
            DiskOp::Read { offset, buffers } => iovec::read_exact_at(&self.file, buffers, offset),
            DiskOp::Write {
                offset,
                buffers,
                through,
            } => {
                iovec::write_all_at(&self.file, buffers, offset)?;
                self.sync_if(through)
            }
            DiskOp::Flush => self.file.sync_data(),
            DiskOp::Discard { offset, len } => clear(&self.file, Way::Punch, offset, len),
            DiskOp::WriteZeroes {
                offset,
                len,
                unmap,
                through,
            } => {
                self.write_zeroes(offset, len, unmap)?;
                self.sync_if(through)
            }
        }
    }

    fn sync_if(&self, through: bool) -> io::Result<()> {
        if through {
            self.file.sync_data()
        } else {
            Ok(())
        }
    }

    /// Clears a range the cheapest way the host has; in the end by writing zeroes.
    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let (mode, works) = if unmap && self.punch {
            (Way::Punch, &mut self.punch)
        } else {
            (Way::ZeroInPlace, &mut self.zero_range)
        };
        if *works {
            match clear(&self.file, mode, offset, len) {
                Ok(()) => return Ok(()),
                // A block device wants ranges of its own sectors, a file system may not know the mode.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                Err(error) if is_unsupported(&error) => *works = false,
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

impl Disk for RawDisk {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn submit(&mut self, _tag: Tag, op: DiskOp<'_>) -> Progress {
        Progress::Done(self.execute(op))
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

/// A name from the file's: the same each time, printable, at most 20 bytes, and different for long names
/// that begin alike.
fn default_id(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let name = name.as_encoded_bytes();
    let printable = |bytes: &[u8]| -> String {
        let legible = |byte: &u8| match *byte {
            byte if byte.is_ascii_alphanumeric() || b"._-+".contains(&byte) => char::from(byte),
            _ => '_',
        };
        bytes.iter().map(legible).collect()
    };
    if name.len() <= ID_BYTES {
        return printable(name);
    }
    // FNV-1a, 32 bits: eight digits that depend on the whole name.
    let hash = name.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("{}-{hash:08x}", printable(&name[..ID_BYTES - 9]))
}

#[cfg(test)]
mod tests;
