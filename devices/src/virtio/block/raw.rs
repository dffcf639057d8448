//! A disk that is an image file, or a block device, or several of them, as they are: sector n of a single
//! one is byte n × 512.
//!
//! Data goes between the files and guest memory without a copy of ours; it is durable after `fdatasync`,
//! which a flush is and a write-through write ends in.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::buffers::Buffers;
use super::disk::{DiskInfo, ResizeError};
use super::file::DiskFile;
use super::image::{Access, ImageError};
use super::layout::{Layout, Map};
use super::store::{Place, Span, Store};

/// The bytes of one file, or of several.
#[derive(Debug)]
pub(super) struct Raw {
    files: Vec<DiskFile>,
    map: Map,
    /// As it was opened.
    info: DiskInfo,
    /// Bytes now.
    capacity: AtomicU64,
    /// Some file cannot have parts of a block written to it by two at once.
    has_blocks: bool,
}

impl Raw {
    /// Opens and locks the images at `paths`.
    pub(super) fn open(
        paths: &[PathBuf],
        layout: Layout,
        access: Access,
    ) -> Result<Self, ImageError> {
        let files = paths
            .iter()
            .map(|path| DiskFile::open(path, access))
            .collect::<Result<Vec<_>, _>>()?;
        if let (Layout::Stripe(stripe), Some(first)) = (layout, files.first()) {
            let fits =
                |file: &DiskFile| file.len() == first.len() && file.len().is_multiple_of(stripe);
            if let Some((path, file)) = paths.iter().zip(&files).find(|(_, file)| !fits(file)) {
                return Err(ImageError::Stripe {
                    path: path.clone(),
                    len: file.len(),
                    first: first.len(),
                    stripe,
                });
            }
        }
        Ok(Self::of(files, layout, access.read_only))
    }

    pub(super) fn of(files: Vec<DiskFile>, layout: Layout, read_only: bool) -> Self {
        let lens: Vec<u64> = files.iter().map(DiskFile::len).collect();
        let map = Map::new(layout, &lens);
        let info = DiskInfo {
            capacity: map.len(),
            read_only,
            // A guest that keeps to whole blocks is spared what a part of one costs.
            block_size: files
                .iter()
                .map(|file| file.block_size)
                .max()
                .unwrap_or(512),
            discard: files.iter().all(DiskFile::can_discard),
        };
        Self {
            has_blocks: files.iter().any(|file| file.exclusive_block().is_some()),
            files,
            map,
            capacity: AtomicU64::new(info.capacity),
            info,
        }
    }

    /// Whether the disk's first bytes are these four.
    pub(super) fn begins_with(&self, bytes: &[u8; 4]) -> bool {
        let mut start = [0; 4];
        let first = self.files.first();
        let read = first.map(|file| file.read(0, Buffers::of_bytes(&mut start)));
        read.is_some_and(|read| read.is_ok()) && start == *bytes
    }

    /// The files that a range is in, and where in each.
    fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = (&DiskFile, Span)> {
        let mut spans = Vec::new();
        self.map.spans(offset, len, &mut spans);
        spans.into_iter().filter_map(|span| match span.place {
            Place::File(index) => Some((self.files.get(index)?, span)),
            Place::Zeroes | Place::Inside => None,
        })
    }

    /// The same, in one piece for each file: the stripes of a range lie together in each.
    fn ranges(&self, offset: u64, len: u64) -> Vec<(&DiskFile, Range<u64>)> {
        let mut ranges: Vec<(&DiskFile, Range<u64>)> = Vec::new();
        for (file, span) in self.parts(offset, len) {
            let end = span.offset + span.len;
            let before = ranges
                .iter_mut()
                .find(|(other, range)| std::ptr::eq(*other, file) && range.end == span.offset);
            match before {
                Some((_, range)) => range.end = end,
                None => ranges.push((file, span.offset..end)),
            }
        }
        ranges
    }
}

impl Store for Raw {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            capacity: self.capacity.load(Ordering::Acquire),
            ..self.info
        }
    }

    fn is_parallel(&self) -> bool {
        self.info.read_only || !self.has_blocks
    }

    fn file_count(&self) -> usize {
        self.files.len()
    }

    fn file(&self, index: usize) -> Option<&DiskFile> {
        self.files.get(index)
    }

    fn read(&self, offset: u64, len: u64, spans: &mut Vec<Span>) {
        self.map.spans(offset, len, spans);
    }

    fn write(&self, offset: u64, len: u64, spans: &mut Vec<Span>) -> io::Result<()> {
        self.map.spans(offset, len, spans);
        Ok(())
    }

    fn is_exclusive(&self, offset: u64, len: u64) -> bool {
        self.has_blocks
            && self.parts(offset, len).any(|(file, span)| {
                let block = file.exclusive_block();
                block.is_some_and(|block| !(span.offset | span.len).is_multiple_of(block))
            })
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.ranges(offset, len)
            .into_iter()
            .try_for_each(|(file, range)| file.discard(range.start, range.end - range.start))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.ranges(offset, len)
            .into_iter()
            .try_for_each(|(file, range)| {
                file.write_zeroes(range.start, range.end - range.start, unmap)
            })
    }

    fn flush(&self) -> io::Result<()> {
        self.files.iter().try_for_each(DiskFile::sync)
    }

    fn resize(&self, bytes: Option<u64>) -> Result<u64, ResizeError> {
        let [file] = self.files.as_slice() else {
            return Err(ResizeError::Fixed);
        };
        if bytes.is_some() && self.info.read_only {
            return Err(ResizeError::ReadOnly);
        }
        let len = file.resize(bytes)?;
        self.capacity.store(len, Ordering::Release);
        Ok(len)
    }

    fn flushed_by_sync(&self) -> Option<usize> {
        Some(self.files.len())
    }
}
