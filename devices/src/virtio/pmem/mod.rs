//! virtio-pmem, Virtio 1.2 §5.19: a file as memory that keeps what is written to it.
//!
//! The file is mapped and becomes a range of guest physical addresses, a [`Window`]; the guest reads and
//! writes it like memory, through the host's page cache, which VMs share, and without a copy in its own
//! (DAX). The device says where the window is, and its one queue carries flushes. The face belongs to a
//! transport, the [`Worker`](worker::Worker) to an I/O thread, the window to the VM that puts it in place.

mod mapping;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use self::mapping::Mapping;
use super::block::image::ImageError;
use super::block::{WholeFile, id_of};
use super::{ActivateError, Features, Lane, QueueIndex, VirtioDevice, VirtioKind, read_from};

/// §5.19.2: the one queue.
const QUEUE: QueueIndex = QueueIndex(0);
/// Linux sends one flush for each flush of the block device, and waits.
const QUEUE_SIZE: u16 = 64;

/// What a window is a multiple of, and what its address must be one of: Linux hot-adds memory in
/// subsections of 2 MiB (`include/linux/mmzone.h`, SUBSECTION_SHIFT) and refuses a device of another size
/// (`mm/memory_hotplug.c`, check_pfn_span).
pub const ALIGNMENT: u64 = 2 << 20;

/// Why a file cannot be persistent memory.
#[derive(Debug, Error)]
pub enum PmemError {
    /// It cannot be opened or locked.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What the guest would write behind the file's end would be lost.
    #[error(
        "{path}: its size of {len} bytes is not a multiple of 2M, as memory's is; round it up with `truncate -s %2M {path}`, or attach it read-only with `{path},ro`"
    )]
    PartialPage {
        /// The file.
        path: PathBuf,
        /// Its size.
        len: u64,
    },
    /// The guest would freeze at the first page that the host has no room for.
    #[error(
        "{path}: the host cannot keep room for all of its {len} bytes: {source}; make room, or attach it read-only with `{path},ro`"
    )]
    Reserve {
        /// The file.
        path: PathBuf,
        /// Its size.
        len: u64,
        /// What the host said.
        source: io::Error,
    },
    /// The host does not map it.
    #[error("{path}: cannot be mapped: {source}")]
    Map {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// A file as a range of guest physical addresses. Whoever puts it there keeps it for as long as the guest
/// can run.
#[derive(Debug)]
pub struct Window {
    path: PathBuf,
    file: WholeFile,
    mapping: Mapping,
    read_only: bool,
}

impl Window {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, open: to be watched.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.fd()
    }

    /// Where it is in this process.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.mapping.address()
    }

    /// Bytes, a multiple of [`ALIGNMENT`].
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a file of no bytes is refused")]
    pub fn len(&self) -> u64 {
        self.mapping.len as u64
    }

    /// Whether the guest may only read it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Makes sure that the host has room for whatever the guest writes: everything else has been checked.
    ///
    /// # Errors
    /// It has not.
    pub fn begin(&self) -> Result<(), PmemError> {
        if self.read_only {
            return Ok(());
        }
        self.file.reserve().map_err(|source| PmemError::Reserve {
            path: self.path.clone(),
            len: self.file.len(),
            source,
        })
    }

    /// Whether the file has become shorter than it was when it was opened: what is missing cannot be read
    /// any more.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        self.file.present().is_ok_and(|len| len < self.file.len())
    }
}

/// Persistent memory. Owned by its transport.
#[derive(Debug)]
pub struct Pmem {
    window: Arc<Window>,
    /// Guest physical address of the window.
    start: u64,
    name: Arc<str>,
}

impl Pmem {
    /// Opens, locks and maps the file at `path`: exclusively, or shared with other readers if read-only.
    /// The guest will find it at `start`, which is a multiple of [`ALIGNMENT`].
    ///
    /// # Errors
    /// See [`PmemError`]; nothing was changed.
    pub fn open(path: &Path, read_only: bool, start: u64) -> Result<Self, PmemError> {
        let file = WholeFile::open(path, read_only)?;
        let len = file.len();
        if !read_only && !len.is_multiple_of(ALIGNMENT) {
            return Err(PmemError::PartialPage {
                path: path.to_owned(),
                len,
            });
        }
        let mapping = Mapping::new(file.fd(), len, read_only).map_err(|source| PmemError::Map {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            window: Arc::new(Window {
                path: path.to_owned(),
                file,
                mapping,
                read_only,
            }),
            start,
            name: id_of(path).into(),
        })
    }

    /// Guest physical address of the window.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// What is to be put there.
    #[must_use]
    pub fn window(&self) -> Arc<Window> {
        self.window.clone()
    }
}

impl VirtioDevice for Pmem {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Pmem
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// §5.19.3: the device has no features of its own.
    fn features(&self) -> Features {
        Features::VERSION_1 | Features::INDIRECT_DESC | Features::EVENT_IDX
    }

    /// §5.19.4: where the window begins, and its length.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let words = [self.start, self.window.len()].map(u64::to_le_bytes);
        read_from(words.into_iter().flatten(), offset, data);
    }

    fn activate(&mut self, _acked: Features) -> Result<Vec<Lane>, ActivateError> {
        let worker = worker::Worker::new(self.window.clone(), self.name.clone());
        let worker = worker.map_err(|source| ActivateError {
            what: "no descriptor for its file",
            source: Some(source),
        })?;
        Ok(Lane::whole(worker))
    }
}
