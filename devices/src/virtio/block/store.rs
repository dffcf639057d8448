//! Where the bytes of a disk are: in which of its files, at which offset. A format is a [`Store`]; the
//! engines move the bytes for all of them.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::disk::{Disk, DiskInfo, DiskLane};
use super::engine::{self, Engine};
use super::file::DiskFile;

/// A run of bytes of the disk that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Which of the files they are in; bytes that are in none read as zeroes.
    pub(super) file: Option<usize>,
    /// Where in it.
    pub(super) offset: u64,
    /// How many.
    pub(super) len: u64,
}

/// A format, seen from an engine.
///
/// An engine that has operations under way calls [`read`](Self::read) and [`write`](Self::write) when it
/// starts one, and [`written`](Self::written) when a write has ended well.
pub(super) trait Store: fmt::Debug + Send + Sync {
    /// Size and abilities.
    fn info(&self) -> DiskInfo;
    /// Whether lanes need not know of each other.
    fn is_parallel(&self) -> bool;
    /// The files that spans are in, always the same and in the same order.
    fn files(&self) -> &[DiskFile];
    /// The spans that hold a range, in order.
    fn read(&self, offset: u64, len: u64, spans: &mut Vec<Span>);
    /// The spans that a range is to be written to, in order, all of them in files.
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
    /// Forgets a range.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range read as zeroes.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// Makes everything durable that has been written.
    fn flush(&self) -> io::Result<()>;
    /// Whether [`flush`](Self::flush) would only sync the files, which an engine can do better.
    fn is_flushed_by_sync(&self) -> bool;
}

/// A store and the kind of engine it is driven by.
#[derive(Debug)]
pub struct StoredDisk<S> {
    store: Arc<S>,
    engine: Engine,
}

impl<S: Store> StoredDisk<S> {
    pub(super) fn new(store: S, engine: Engine) -> Self {
        Self {
            store: Arc::new(store),
            engine,
        }
    }
}

impl<S: Store + 'static> Disk for StoredDisk<S> {
    fn info(&self) -> DiskInfo {
        self.store.info()
    }

    fn is_parallel(&self) -> bool {
        self.store.is_parallel()
    }

    fn lane(&self, depth: u16) -> io::Result<Box<dyn DiskLane>> {
        engine::lane(self.engine, &self.store, depth)
    }
}
