//! Opening an image: everything that can be wrong with it, said before a guest runs.
//!
//! A writable image is locked exclusively and a read-only one shared (flock), so that whatever one VM
//! writes, no other VM has open. The lock lives and dies with the open file, and with what is under way on
//! it: a process that was killed may hold it for a moment longer, until the host has ended what its
//! io_uring had begun. So a lock is waited for, briefly.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::direct::Alignment;
use super::disk::SECTOR;
use super::overlay::format::FormatError;
use super::qcow2::header::Qcow2Error;

/// Why an image cannot be a disk. Each is one line with the remedy, if there is one.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Nothing is there.
    #[error("{path}: no such file; check the path, or make an image with `truncate -s 1G {path}`")]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// A directory.
    #[error("{path}: is a directory; make an image of it with `mkfs.ext4 -d {path} IMAGE 1G`")]
    Directory {
        /// The image.
        path: PathBuf,
    },
    /// A terminal, a pipe, a socket.
    #[error("{path}: is neither a file nor a block device")]
    Kind {
        /// The image.
        path: PathBuf,
    },
    /// It may not be opened for writing.
    #[error(
        "{path}: may not be written ({source}); attach it read-only with `{path},ro`, or change its permissions"
    )]
    NotWritable {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It may not be opened for reading.
    #[error("{path}: may not be read ({source}); change its permissions")]
    NotReadable {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The block device is mounted, or another VM writes it.
    #[error("{path}: is mounted on the host or in use by another VM; unmount it or stop that")]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// Another disk, of this VM or another, has the image open and one of them would write it.
    #[error(
        "{path}: is in use by another VM or disk; stop that, or attach the image read-only in both with `{path},ro`"
    )]
    Locked {
        /// The image.
        path: PathBuf,
    },
    /// The file system cannot lock.
    #[error(
        "{path}: cannot be locked against use by two VMs ({source}); move it to a file system with flock(2)"
    )]
    NoLock {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// No bytes.
    #[error("{path}: is empty; give it a size with `truncate -s 1G {path}`")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Its last sector is incomplete. Rounding down would hide data and up would change the file, so
    /// that is for the owner to do.
    #[error(
        "{path}: its size of {len} bytes is not a multiple of 512; round it up with `truncate -s %512 {path}`"
    )]
    PartialSector {
        /// The image.
        path: PathBuf,
        /// Its size.
        len: u64,
    },
    /// The engine that was asked for is not there.
    #[error("{path}: this host's kernel has no usable io_uring ({source}); use engine=auto")]
    NoIoUring {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The page cache cannot be bypassed.
    #[error("{path}: its file system cannot do cache=none (O_DIRECT); use cache=writeback")]
    NoDirect {
        /// The image.
        path: PathBuf,
    },
    /// Its last block is incomplete, and without the page cache only whole ones can be written.
    #[error(
        "{path}: its size of {len} bytes is not a multiple of {block}, which cache=none needs on this file system; use cache=writeback, or round it up with `truncate -s %{block} {path}`"
    )]
    PartialBlock {
        /// The image.
        path: PathBuf,
        /// Its size.
        len: u64,
        /// The size of a block.
        block: u64,
    },
    /// A qcow2 image that cannot be used.
    #[error("{path} {source}")]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: Qcow2Error,
    },
    /// Files that cannot be striped.
    #[error(
        "{path}: files are striped only if all are of one size and that is a multiple of the stripe, {stripe} bytes; this one is {len} bytes and the first {first}"
    )]
    Stripe {
        /// The file.
        path: PathBuf,
        /// Its size.
        len: u64,
        /// The size of the first.
        first: u64,
        /// Bytes in a stripe.
        stripe: u64,
    },
    /// A disk of several files that is not raw.
    #[error("{path}: only raw images can be one of several that make a disk; leave out the others")]
    SeveralOfFormat {
        /// The image.
        path: PathBuf,
    },
    /// No image at all.
    #[error("no image is named; name one")]
    NoPath,
    /// An engine that does not go with a format.
    #[error("{path}: a qcow2 image is not served by io_uring; leave out engine=io_uring")]
    EngineOfFormat {
        /// The image.
        path: PathBuf,
    },
    /// A file that should be an overlay and is not, or not a whole one.
    #[error("{path} {source}")]
    Overlay {
        /// The overlay.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// An overlay that was made over something else.
    #[error(
        "{path} is an overlay of another image than {base}, or {base} was changed since; use the image it was made with, or another overlay"
    )]
    OtherBase {
        /// The overlay.
        path: PathBuf,
        /// What it was to lie over.
        base: PathBuf,
    },
    /// An overlay cannot be made.
    #[error("{path}: no overlay can be made there: {source}")]
    NoOverlay {
        /// The overlay.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Anything else.
    #[error("{path}: cannot be opened: {source}")]
    Io {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// How an image is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Access {
    /// Nobody writes it, and others may read it.
    pub(super) read_only: bool,
    /// Around the page cache.
    pub(super) direct: bool,
    /// It is not the disk itself, so its size need not be one of a disk.
    pub(super) any_size: bool,
}

/// An image, open, locked, and of a size that a disk can have.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) file: File,
    /// Bytes, a multiple of [`SECTOR`].
    pub(super) len: u64,
    pub(super) is_device: bool,
    /// The size the host handles it in, in bytes: a power of two, 512 to 4096.
    pub(super) block_size: u32,
    /// What transfers must be like, where they go around the page cache.
    pub(super) direct: Option<Alignment>,
}

/// Opens and locks the image at `path`.
pub(super) fn open(path: &Path, access: Access) -> Result<Image, ImageError> {
    let Access {
        read_only,
        direct,
        any_size,
    } = access;
    let failed = |source: io::Error| refusal(path, read_only, source);
    let owned = || path.to_owned();

    let metadata = path.metadata().map_err(failed)?;
    let is_device = metadata.file_type().is_block_device();
    if metadata.is_dir() {
        return Err(ImageError::Directory { path: owned() });
    }
    if !is_device && !metadata.is_file() {
        return Err(ImageError::Kind { path: owned() });
    }
    // For a block device, O_EXCL without O_CREAT fails if the host has it mounted.
    let exclusive = match is_device && !read_only {
        true => libc::O_EXCL,
        false => 0,
    };
    let around = if direct { libc::O_DIRECT } else { 0 };
    let mut file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(exclusive | around)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) if direct => ImageError::NoDirect { path: owned() },
            _ => failed(error),
        })?;
    lock_soon(&file, read_only).map_err(|error| match error {
        TryLockError::WouldBlock => ImageError::Locked { path: owned() },
        TryLockError::Error(source) => ImageError::NoLock {
            path: owned(),
            source,
        },
    })?;
    // A block device's metadata has no size.
    let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if len == 0 {
        return Err(ImageError::Empty { path: owned() });
    }
    if !len.is_multiple_of(SECTOR) && !any_size {
        return Err(ImageError::PartialSector { path: owned(), len });
    }
    let direct = match direct {
        true => Some(alignment(path, &file, if any_size { 0 } else { len })?),
        false => None,
    };
    Ok(Image {
        file,
        len,
        is_device,
        block_size: block_size(metadata.blksize()),
        direct,
    })
}

/// What transfers around the page cache must be like for the whole of `file`.
fn alignment(path: &Path, file: &File, len: u64) -> Result<Alignment, ImageError> {
    let path = || path.to_owned();
    let align = Alignment::of(file).ok_or_else(|| ImageError::NoDirect { path: path() })?;
    if !align.has_range(0, len) {
        return Err(ImageError::PartialBlock {
            path: path(),
            len,
            block: align.offset,
        });
    }
    Ok(align)
}

/// How long a lock may outlive its owner.
const LINGER: Duration = Duration::from_secs(1);

fn lock_soon(file: &File, read_only: bool) -> Result<(), TryLockError> {
    let start = Instant::now();
    loop {
        match lock(file, read_only) {
            Err(TryLockError::WouldBlock) if start.elapsed() < LINGER => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn lock(file: &File, read_only: bool) -> Result<(), TryLockError> {
    if read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    }
}

/// File systems name up to a megabyte as their block size; no driver expects a disk with such sectors.
fn block_size(preferred: u64) -> u32 {
    [4096, 2048, 1024]
        .into_iter()
        .find(|size| u64::from(*size) <= preferred)
        .unwrap_or(512)
}

/// What to say of an error of the host.
pub(super) fn refusal(path: &Path, read_only: bool, source: io::Error) -> ImageError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound => ImageError::Missing { path },
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem if !read_only => {
            ImageError::NotWritable { path, source }
        }
        ErrorKind::PermissionDenied => ImageError::NotReadable { path, source },
        ErrorKind::ResourceBusy => ImageError::Busy { path },
        _ => ImageError::Io { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors that a test which may run as root cannot provoke.
    #[test]
    fn each_refusal_of_the_host_has_its_remedy() {
        for (errno, read_only, words) in [
            (libc::EACCES, false, "attach it read-only with `a.img,ro`"),
            (libc::EACCES, true, "may not be read"),
            (libc::EROFS, false, "attach it read-only with `a.img,ro`"),
            (libc::ENOENT, true, "no such file"),
            (libc::EBUSY, false, "unmount it or stop that"),
            (libc::EIO, true, "cannot be opened"),
        ] {
            let source = io::Error::from_raw_os_error(errno);
            let message = refusal(Path::new("a.img"), read_only, source).to_string();
            assert!(message.starts_with("a.img: "), "{message}");
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn block_sizes_are_those_of_disks() {
        for (preferred, size) in [
            (0, 512),
            (512, 512),
            (1024, 1024),
            (3000, 2048),
            (4096, 4096),
            (1 << 20, 4096),
            (u64::MAX, 4096),
        ] {
            assert_eq!(block_size(preferred), size);
        }
    }
}
