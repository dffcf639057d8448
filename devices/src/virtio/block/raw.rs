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
use super::image::ImageError;
use super::store::{Span, Store, StoredDisk};

/// How an image is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// The guest may not write it, and others may read it.
    pub read_only: bool,
    /// Who moves the data.
    pub engine: Engine,
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
    let store = Raw::open(path, options.read_only)?;
    Ok(Arc::new(StoredDisk::new(store, options.engine)))
}

/// The bytes of one file.
#[derive(Debug)]
pub(super) struct Raw {
    files: [DiskFile; 1],
    info: DiskInfo,
}

impl Raw {
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        Ok(Self::of(DiskFile::open(path, read_only)?, read_only))
    }

    pub(super) fn of(file: DiskFile, read_only: bool) -> Self {
        let info = DiskInfo {
            capacity: file.len,
            read_only,
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
        true
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
