//! A disk that is an image file, or a block device, as it is: sector n is byte n × 512.
//!
//! Data goes between the file and guest memory without a copy of ours; it is durable after `fdatasync`,
//! which a flush is and a write-through write ends in.

use std::io;
use std::path::Path;

use super::disk::DiskInfo;
use super::file::DiskFile;
use super::image::{Access, ImageError};
use super::store::{Place, Span, Store};

/// The bytes of one file.
#[derive(Debug)]
pub(super) struct Raw {
    files: [DiskFile; 1],
    info: DiskInfo,
}

impl Raw {
    /// Opens and locks the image at `path`.
    pub(super) fn open(path: &Path, access: Access) -> Result<Self, ImageError> {
        Ok(Self::of(DiskFile::open(path, access)?, access.read_only))
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

    fn only(&self) -> &DiskFile {
        let [file] = &self.files;
        file
    }
}

impl Store for Raw {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn is_parallel(&self) -> bool {
        self.info.read_only || self.only().exclusive_block().is_none()
    }

    fn file_count(&self) -> usize {
        self.files.len()
    }

    fn file(&self, index: usize) -> Option<&DiskFile> {
        self.files.get(index)
    }

    fn read(&self, offset: u64, len: u64, spans: &mut Vec<Span>) {
        spans.push(Span {
            place: Place::File(0),
            offset,
            len,
        });
    }

    fn write(&self, offset: u64, len: u64, spans: &mut Vec<Span>) -> io::Result<()> {
        self.read(offset, len, spans);
        Ok(())
    }

    fn is_exclusive(&self, offset: u64, len: u64) -> bool {
        let block = self.only().exclusive_block();
        block.is_some_and(|block| !(offset | len).is_multiple_of(block))
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.only().discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.only().write_zeroes(offset, len, unmap)
    }

    fn flush(&self) -> io::Result<()> {
        self.only().sync()
    }

    fn flushed_by_sync(&self) -> Option<usize> {
        Some(self.files.len())
    }
}
