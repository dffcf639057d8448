//! What imago stores an image in: its file, with an order kept that imago 0.2 leaves open.
//!
//! It counts a new cluster in memory and refers to it on disk at once where the reference is an entry of the
//! L1 table (a new L2 table) or of the refcount table (a new refcount block). Killed in between, it would leave
//! a cluster in use that counts as free, and the next user would overwrite it. So such an entry is held back
//! until the count of what it refers to is in the file: then a kill at any moment costs space at worst.
//! imago itself never reads these tables again.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imago::Storage;
use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use super::header::{Fields, Header};
use crate::virtio::block::buffers::Buffers;
use crate::virtio::block::file::DiskFile;

/// Where an entry's offset is: bits 9 to 55 in both tables, as clusters are of 512 bytes at least and the rest
/// of a refcount table's entry is offsets that no file has.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// A larger write is no entry. imago writes single entries, or the block around one as O_DIRECT wants it.
const MAX_ENTRIES: u64 = 4096;

/// A file of a chain.
#[derive(Debug)]
pub(super) struct Ordered {
    file: File,
    /// Of an image that is written.
    tables: Option<Tables>,
}

/// The tables that refer to tables.
#[derive(Debug)]
struct Tables {
    /// The same file.
    file: Arc<DiskFile>,
    header: Header,
    // Lanes of the device and whoever flushes from outside write.
    held: Mutex<Held>,
    #[cfg(test)]
    fuse: Arc<std::sync::atomic::AtomicI64>,
}

/// What is held back.
#[derive(Debug)]
struct Held {
    /// The refcount table, which moves when it grows.
    refs: Range<u64>,
    /// Entries by their place.
    entries: BTreeMap<u64, Vec<u8>>,
}

impl Ordered {
    /// An image that is only read, or a raw one.
    pub(super) fn read_only(file: &DiskFile) -> io::Result<Self> {
        Ok(Self {
            file: file.duplicate()?.try_into()?,
            tables: None,
        })
    }

    /// An image that is written.
    pub(super) fn new(file: &Arc<DiskFile>, header: &Header) -> io::Result<Self> {
        Ok(Self {
            file: file.duplicate()?.try_into()?,
            tables: Some(Tables {
                held: Mutex::new(Held {
                    refs: header.refs.clone(),
                    entries: BTreeMap::new(),
                }),
                header: header.clone(),
                file: file.clone(),
                #[cfg(test)]
                fuse: fuse(),
            }),
        })
    }
}

impl Tables {
    fn held(&self) -> MutexGuard<'_, Held> {
        // Entries come and go one by one.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a write is one of entries that may have to wait.
    fn are_entries(&self, offset: u64, len: u64) -> bool {
        len <= MAX_ENTRIES
            && len.is_multiple_of(8)
            && (self.header.l1.contains(&offset) || self.held().refs.contains(&offset))
    }

    /// Takes entries and writes what need not wait.
    fn refer(&self, offset: u64, entries: Vec<u8>) -> io::Result<()> {
        let mut held = self.held();
        held.entries.insert(offset, entries);
        self.settle(&mut held)
    }

    /// Looks at what may have changed with a write that has been done.
    fn written(&self, offset: u64, len: u64) -> io::Result<()> {
        let cluster = self.header.counts.cluster;
        let mut held = self.held();
        if offset < cluster {
            let mut head = [0; 64];
            self.file.read(0, Buffers::of_bytes(&mut head))?;
            if let Some((at, len)) = Fields(&head).refs(cluster) {
                held.refs = at..at.saturating_add(len);
            }
        }
        // Counts are written by the block.
        if !held.entries.is_empty() && len == cluster {
            self.settle(&mut held)?;
        }
        Ok(())
    }

    /// Writes every entry that waits no longer. One may wait for another.
    fn settle(&self, held: &mut Held) -> io::Result<()> {
        loop {
            let mut ready = Vec::new();
            for (offset, entries) in &held.entries {
                if self.are_counted(&held.refs, entries)? {
                    ready.push(*offset);
                }
            }
            if ready.is_empty() {
                return Ok(());
            }
            for offset in ready {
                if let Some(entries) = held.entries.get_mut(&offset) {
                    self.may_write()?;
                    self.file.write(offset, Buffers::of_bytes(entries))?;
                    held.entries.remove(&offset);
                }
            }
        }
    }

    /// Whether the file counts each cluster that is referred to as used.
    fn are_counted(&self, refs: &Range<u64>, entries: &[u8]) -> io::Result<bool> {
        for entry in entries.as_chunks().0 {
            let at = u64::from_be_bytes(*entry) & OFFSET;
            if at != 0 && !self.is_counted(refs, at)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_counted(&self, refs: &Range<u64>, at: u64) -> io::Result<bool> {
        let place = self.header.counts.place(at);
        let entry = refs.start + place.block * 8;
        if !refs.contains(&entry) {
            return Ok(false);
        }
        let mut bytes = [0; 8];
        self.file.read(entry, Buffers::of_bytes(&mut bytes))?;
        let block = u64::from_be_bytes(bytes) & OFFSET;
        if block == 0 {
            return Ok(false);
        }
        let count = &mut bytes[..place.len];
        self.file
            .read(block + place.offset, Buffers::of_bytes(count))?;
        Ok(place.is_used(count))
    }

    /// Nothing is held back any more.
    fn finish(&self) -> io::Result<()> {
        let mut held = self.held();
        self.settle(&mut held)?;
        match held.entries.is_empty() {
            true => Ok(()),
            false => Err(io::Error::other("a table in use is not counted as such")),
        }
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "tests pull a plug here"
    )]
    fn may_write(&self) -> io::Result<()> {
        Ok(())
    }

    /// A test that kills at some write.
    #[cfg(test)]
    fn may_write(&self) -> io::Result<()> {
        match self.fuse.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) {
            1.. => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl fmt::Display for Ordered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl Storage for Ordered {
    fn mem_align(&self) -> usize {
        self.file.mem_align()
    }

    fn req_align(&self) -> usize {
        self.file.req_align()
    }

    fn zero_align(&self) -> usize {
        self.file.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.file.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: as the caller promised.
        unsafe { self.file.pure_readv(buffers, offset) }
    }

    unsafe fn pure_writev(&self, buffers: IoVector<'_>, offset: u64) -> io::Result<()> {
        let len = buffers.len();
        if let Some(tables) = &self.tables {
            tables.may_write()?;
            if tables.are_entries(offset, len) {
                let mut entries = vec![0; usize::try_from(len).map_err(io::Error::other)?];
                buffers.copy_into_slice(&mut entries);
                return tables.refer(offset, entries);
            }
        }
        // SAFETY: as the caller promised.
        unsafe { self.file.pure_writev(buffers, offset) }?;
        match &self.tables {
            Some(tables) => tables.written(offset, len),
            None => Ok(()),
        }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as the caller promised.
        unsafe { self.file.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as the caller promised.
        unsafe { self.file.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as the caller promised.
        unsafe { self.file.pure_discard(offset, length) }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    /// imago has written all counts before.
    fn sync(&self) -> io::Result<()> {
        match &self.tables {
            Some(tables) => {
                tables.finish()?;
                tables.file.sync()
            }
            None => self.file.sync(),
        }
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: as the caller promised.
        unsafe { self.file.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.get_storage_helper()
    }
}

/// After how many writes of this thread's images their plug is pulled.
#[cfg(test)]
pub(super) fn fuse() -> Arc<std::sync::atomic::AtomicI64> {
    thread_local! {
        static FUSE: Arc<std::sync::atomic::AtomicI64> = Arc::new(i64::MAX.into());
    }
    FUSE.with(Arc::clone)
}
