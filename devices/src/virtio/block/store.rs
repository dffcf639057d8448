//! Where the bytes of a disk are: in which of its files, at which offset. A format is a [`Store`]; the
//! engines move the bytes for all of them.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::buffers::Buffers;
use super::disk::{Disk, DiskInfo, DiskLane, ResizeError};
use super::engine::{self, Engine};
use super::file::DiskFile;
use super::image::ImageError;

/// A run of bytes of the disk that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// What they are in.
    pub(super) place: Place,
    /// Where in it.
    pub(super) offset: u64,
    /// How many.
    pub(super) len: u64,
}

/// What a span is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The file with this number.
    File(usize),
    /// Nothing: zeroes.
    Zeroes,
    /// Only the store can tell: see [`Store::read_inside`] and [`Store::write_inside`].
    Inside,
}

/// A format, seen from an engine.
///
/// An engine calls [`read`](Self::read) and [`write`](Self::write) when it starts an operation, and
/// [`written`](Self::written) when a write has ended well; it may have many under way.
pub(super) trait Store: fmt::Debug + Send + Sync {
    /// Size and abilities.
    fn info(&self) -> DiskInfo;
    /// Makes on disk what has to be there before the first operation. Does nothing the second time.
    ///
    /// # Errors
    /// Nothing can be stored.
    fn begin(&self) -> Result<(), ImageError> {
        Ok(())
    }
    /// Whether lanes need not know of each other.
    fn is_parallel(&self) -> bool {
        false
    }
    /// How many files spans may be in.
    fn file_count(&self) -> usize;
    /// The file with this number, always the same.
    fn file(&self, index: usize) -> Option<&DiskFile>;
    /// The spans that hold a range, in order.
    fn read(&self, offset: u64, len: u64, spans: &mut Vec<Span>);
    /// The spans that a range is to be written to, in order, none of them zeroes.
    ///
    /// # Errors
    /// There is no place for it.
    fn write(&self, offset: u64, len: u64, spans: &mut Vec<Span>) -> io::Result<()>;
    /// Data has arrived in the spans that [`write`](Self::write) gave for the range.
    fn written(&self, _offset: u64, _len: u64) {}
    /// Whether the range can be written only while nothing else is under way.
    fn is_exclusive(&self, _offset: u64, _len: u64) -> bool {
        false
    }
    /// Reads what is [`Place::Inside`].
    ///
    /// # Errors
    /// The host's.
    fn read_inside(&self, _offset: u64, _buffers: Buffers<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Writes what is [`Place::Inside`].
    ///
    /// # Errors
    /// The host's.
    fn write_inside(&self, _offset: u64, _buffers: Buffers<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Forgets a range.
    ///
    /// # Errors
    /// The host's.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// The host's.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// Makes everything durable that has been written.
    ///
    /// # Errors
    /// It is not.
    fn flush(&self) -> io::Result<()>;
    /// See [`Disk::resize`].
    ///
    /// # Errors
    /// It keeps the size it has.
    fn resize(&self, _bytes: Option<u64>) -> Result<u64, ResizeError> {
        Err(ResizeError::Fixed)
    }
    /// How many files from the first on an engine would have to sync, where a flush is that and nothing
    /// more.
    fn flushed_by_sync(&self) -> Option<usize>;
}

/// A store and the kind of engine it is driven by.
#[derive(Debug)]
pub(super) struct StoredDisk {
    store: Arc<dyn Store>,
    engine: Engine,
}

impl StoredDisk {
    pub(super) fn new(store: Arc<dyn Store>, engine: Engine) -> Self {
        Self { store, engine }
    }
}

impl Disk for StoredDisk {
    fn info(&self) -> DiskInfo {
        self.store.info()
    }

    fn begin(&self) -> Result<(), ImageError> {
        self.store.begin()
    }

    fn is_parallel(&self) -> bool {
        self.store.is_parallel()
    }

    fn flush(&self) -> io::Result<()> {
        self.store.flush()
    }

    fn resize(&self, bytes: Option<u64>) -> Result<u64, ResizeError> {
        self.store.resize(bytes)
    }

    fn lane(&self, depth: u16) -> io::Result<Box<dyn DiskLane>> {
        self.store.begin().map_err(io::Error::other)?;
        engine::lane(self.engine, &self.store, depth)
    }
}
