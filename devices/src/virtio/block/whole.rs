//! A whole file that others map: opened, checked and locked as a disk's is, and made durable by the same
//! engines.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FileType, SeekFrom, fallocate, fstat, fstatvfs, seek};
use rustix::io::{Errno, retry_on_intr};

use super::disk::DiskLane;
use super::engine::{self, Engine};
use super::file::DiskFile;
use super::image::{Access, ImageError};
use super::layout::Layout;
use super::raw::Raw;
use super::store::Store;

/// An open file whose bytes are moved by whoever has it mapped.
#[derive(Debug)]
pub(in crate::virtio) struct WholeFile {
    raw: Arc<Raw>,
}

impl WholeFile {
    /// Opens and locks the image at `path`.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing was changed.
    pub(in crate::virtio) fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let access = Access {
            read_only,
            ..Access::default()
        };
        let file = DiskFile::open(path, access)?;
        let raw = Raw::of(vec![file], Layout::Linear, read_only);
        Ok(Self { raw: Arc::new(raw) })
    }

    /// Bytes.
    pub(in crate::virtio) fn len(&self) -> u64 {
        self.raw.info().capacity
    }

    /// To map it.
    pub(in crate::virtio) fn fd(&self) -> BorrowedFd<'_> {
        match self.raw.file(0) {
            Some(file) => file.file().as_fd(),
            None => unreachable!("opened with one file"),
        }
    }

    /// Bytes that the file has now: somebody may have truncated it.
    pub(in crate::virtio) fn present(&self) -> io::Result<u64> {
        // A block device's metadata has no size, and nothing uses the file's position.
        Ok(seek(self.fd(), SeekFrom::End(0))?)
    }

    /// Makes sure that there is room for all of it, holes too, without changing what it says.
    ///
    /// # Errors
    /// There is not, and nothing was done.
    pub(in crate::virtio) fn reserve(&self) -> io::Result<()> {
        let file = self.fd();
        let stat = fstat(file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let present = u64::try_from(stat.st_blocks).unwrap_or(0);
        let missing = self.len().saturating_sub(present.saturating_mul(512));
        let system = fstatvfs(file)?;
        let room = system.f_bavail.saturating_mul(system.f_frsize);
        // fallocate would fill the file system up before it fails. Some have no size of their own.
        if system.f_blocks > 0 && missing > room {
            return Err(Errno::NOSPC.into());
        }
        let keep = FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fallocate(file, keep, 0, self.len())) {
            // A file system that cannot promise room.
            Err(Errno::OPNOTSUPP) => Ok(()),
            reserved => Ok(reserved?),
        }
    }

    /// A way to flush it, with at most `depth` flushes under way.
    pub(in crate::virtio) fn lane(&self, depth: u16) -> io::Result<Box<dyn DiskLane>> {
        let store: Arc<dyn Store> = self.raw.clone();
        engine::lane(Engine::Auto, &store, depth)
    }
}
