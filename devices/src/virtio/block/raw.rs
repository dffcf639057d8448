//! A disk that is an image file, or a block device, as it is: sector n is byte n × 512.
//!
//! Data goes between the file and guest memory without a copy of ours; it is durable after `fdatasync`,
//! which a flush is and a write-through write ends in.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::disk::{Disk, DiskInfo};
use super::engine::Engine;
use super::file::DiskFile;
use super::image::{Access, ImageError};
use super::store::{Span, Store, StoredDisk};

/// How an image is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// The guest may not write it, and others may read it.
    pub read_only: bool,
    /// Who moves the data.
    pub engine: Engine,
    /// Whether the host's page cache is used.
    pub cache: Cache,
}

/// Whether the host's page cache stands between the guest and the disk. Either way a guest that flushes
/// has its data on stable storage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cache {
    /// It does: what was written is read from memory, also by other VMs.
    #[default]
    Writeback,
    /// It does not (O_DIRECT): memory is spent once, in the guest.
    None,
}

/// Opens and locks the raw image at `path`: exclusively, or shared with other readers if read-only.
///
/// # Errors
/// See [`ImageError`]; the image is untouched.
pub fn open(path: &Path, options: Options) -> Result<Arc<dyn Disk>, ImageError> {
    options
        .engine
        .check()
        .map_err(|source| ImageError::NoIoUring {
            path: path.to_owned(),
            source,
        })?;
    let store = Raw::open(path, options)?;
    Ok(Arc::new(StoredDisk::new(store, options.engine)))
}

/// The bytes of one file.
#[derive(Debug)]
pub(super) struct Raw {
    files: [DiskFile; 1],
    info: DiskInfo,
}

impl Raw {
    fn open(path: &Path, options: Options) -> Result<Self, ImageError> {
        let access = Access {
            read_only: options.read_only,
            direct: options.cache == Cache::None,
        };
        Ok(Self::of(DiskFile::open(path, access)?, options.read_only))
    }

    pub(super) fn of(file: DiskFile, read_only: bool) -> Self {
        let info = DiskInfo {
            capacity: file.len,
            read_only,
            // A guest that keeps to whole blocks is spared what a part of one costs.
            block_size: file.block_size,
            discard: file.can_discard(),
        };
        Self {
            files: [file],
            info,
        }
    }

    fn file(&self) -> &DiskFile {
        let [file] = &self.files;
        file
    }
}

impl Store for Raw {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn is_parallel(&self) -> bool {
        self.info.read_only || self.file().exclusive_block().is_none()
    }

    fn files(&self) -> &[DiskFile] {
        &self.files
    }

    fn read(&self, offset: u64, len: u64, spans: &mut Vec<Span>) {
        spans.push(Span {
            file: Some(0),
            offset,
            len,
        });
    }

    fn write(&self, offset: u64, len: u64, spans: &mut Vec<Span>) -> io::Result<()> {
        self.read(offset, len, spans);
        Ok(())
    }

    fn is_exclusive(&self, offset: u64, len: u64) -> bool {
        let block = self.file().exclusive_block();
        block.is_some_and(|block| !(offset | len).is_multiple_of(block))
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file().discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.file().write_zeroes(offset, len, unmap)
    }

    fn flush(&self) -> io::Result<()> {
        self.file().sync()
    }

    fn is_flushed_by_sync(&self) -> bool {
        true
    }
}
