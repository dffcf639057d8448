//! Copy on write: a disk that begins as a copy of another, the base, and keeps what is written to it apart,
//! in memory or in a file of its own.
//!
//! The base is only read, so any number of disks may share it, and with it the host's page cache. A write
//! that covers a block only in part brings the rest of it over from the base first. What the file looks
//! like, and why it survives a crash, is told in [`format`]; what is kept in memory looks the same, in a
//! memfd that has no map.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::UNIX_EPOCH;

use super::buffers::Buffers;
use super::disk::DiskInfo;
use super::engine::sync;
use super::file::DiskFile;
use super::image::{Access, ImageError};
use super::store::{Place, Span, Store};
use format::{BLOCK, Header, PAGE, data_at, file_len};
use map::Map;

pub(super) mod format;
mod identity;
mod map;
#[cfg(test)]
mod tests;

/// The overlay's own file among those that spans are in. The base's follow.
const TOP: usize = 0;

/// A base and what was written over it.
#[derive(Debug)]
pub(super) struct Overlay {
    base: Box<dyn Store>,
    capacity: u64,
    /// Made by `begin` where it is a new file.
    top: OnceLock<DiskFile>,
    keep: Keep,
    // The lane's thread and whoever flushes from outside need it.
    map: Mutex<Map>,
    /// Held for the length of a flush: map pages are written in the order of their contents.
    commit: Mutex<()>,
}

/// Where what is written is kept.
#[derive(Debug)]
enum Keep {
    Memory,
    File {
        path: PathBuf,
        header: Header,
        direct: bool,
    },
}

impl Overlay {
    /// An overlay that is gone with the disk.
    pub(super) fn in_memory(base: Box<dyn Store>) -> io::Result<Self> {
        let capacity = base.info().capacity;
        let overlay = Self::new(base, capacity, Keep::Memory);
        let top = DiskFile::in_memory(file_len(capacity))?;
        // Nobody else has it yet.
        let _ = overlay.top.set(top);
        Ok(overlay)
    }

    /// The overlay in the file at `path`, which is made by [`begin`](Store::begin) if there is none.
    /// `base_paths` are where the base is, and `direct` goes around the page cache.
    pub(super) fn in_file(
        base: Box<dyn Store>,
        base_paths: &[PathBuf],
        path: &Path,
        direct: bool,
    ) -> Result<Self, ImageError> {
        let base_path = base_paths.first().ok_or(ImageError::NoPath)?;
        let failed = |source| ImageError::Io {
            path: base_path.to_owned(),
            source,
        };
        let modified = modified(base_paths).map_err(failed)?;
        let ours = identity::of(base.as_ref(), modified).map_err(failed)?;
        let keep = |header| Keep::File {
            path: path.to_owned(),
            header,
            direct,
        };
        // An empty file is one whose making was interrupted.
        if path.metadata().map_or_else(
            |error| error.kind() == ErrorKind::NotFound,
            |metadata| metadata.is_file() && metadata.len() == 0,
        ) {
            may_create(path)?;
            let header = Header {
                capacity: ours.len,
                base: ours,
            };
            return Ok(Self::new(base, header.capacity, keep(header)));
        }
        let access = Access {
            direct,
            ..Access::default()
        };
        let top = DiskFile::open(path, access)?;
        let (header, map) = load(path, &top)?;
        if (header.base.len, header.base.fingerprint) != (ours.len, ours.fingerprint) {
            return Err(ImageError::OtherBase {
                path: path.to_owned(),
                base: base_path.to_owned(),
            });
        }
        if header.base.modified != modified {
            log::warn!(
                "disk image {} was modified since its overlay {} was made, or copied; if its contents changed, the guest's disk is damaged",
                base_path.display(),
                path.display()
            );
        }
        let overlay = Self::new(base, header.capacity, keep(header));
        let _ = overlay.top.set(top);
        *overlay.map() = map;
        Ok(overlay)
    }

    fn new(base: Box<dyn Store>, capacity: u64, keep: Keep) -> Self {
        Self {
            base,
            capacity,
            top: OnceLock::new(),
            keep,
            map: Mutex::default(),
            commit: Mutex::default(),
        }
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        // Each change of the map is whole in itself.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn top(&self) -> io::Result<&DiskFile> {
        self.top.get().ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// The blocks that a range has a part of.
    fn blocks(offset: u64, len: u64) -> Range<u64> {
        offset / BLOCK..(offset + len).div_ceil(BLOCK)
    }

    /// The blocks at the ends of a range that it covers only in part.
    fn edges(&self, offset: u64, len: u64) -> impl Iterator<Item = u64> {
        let end = offset + len;
        let cut = |at: u64| !at.is_multiple_of(BLOCK);
        let first = cut(offset).then_some(offset / BLOCK);
        // The last block of a disk may be a short one.
        let last = (cut(end) && end < self.capacity).then_some(end / BLOCK);
        let last = last.filter(|last| Some(*last) != first);
        first.into_iter().chain(last).filter(move |_| len > 0)
    }

    /// Brings a block over from the base, so that a part of it can be written.
    fn fill(&self, block: u64) -> io::Result<()> {
        let mut bytes = [0; PAGE];
        let at = block * BLOCK;
        let there = self.base.info().capacity.saturating_sub(at).min(BLOCK);
        let there = usize::try_from(there).map_err(io::Error::other)?;
        let buffers = Buffers::of_bytes(&mut bytes[..there]);
        sync::read(self.base.as_ref(), at, buffers)?;
        let buffers = Buffers::of_bytes(&mut bytes);
        self.top()?.write(data_at(block), buffers)?;
        self.map().insert(block..block + 1);
        Ok(())
    }

    /// The parts of a range that lie together in the overlay's file, and whether they are there.
    fn top_spans(&self, offset: u64, len: u64) -> Vec<(Span, Range<u64>, bool)> {
        let end = offset + len;
        let runs = self
            .map()
            .runs(Self::blocks(offset, len))
            .collect::<Vec<_>>();
        runs.into_iter()
            .map(|run| {
                let from = offset.max(run.blocks.start * BLOCK);
                let to = end.min(run.blocks.end * BLOCK);
                let span = Span {
                    place: Place::File(TOP),
                    offset: data_at(run.blocks.start) + (from - run.blocks.start * BLOCK),
                    len: to - from,
                };
                (span, from..to, run.present)
            })
            .collect()
    }

    fn read_base(&self, range: Range<u64>, spans: &mut Vec<Span>) {
        let base_end = self.base.info().capacity;
        let end = range.end.min(base_end);
        if range.start < end {
            let first = spans.len();
            self.base.read(range.start, end - range.start, spans);
            for span in &mut spans[first..] {
                if let Place::File(index) = &mut span.place {
                    *index += 1;
                }
            }
        }
        let start = range.start.max(base_end);
        if start < range.end {
            spans.push(Span {
                place: Place::Zeroes,
                offset: 0,
                len: range.end - start,
            });
        }
    }

    /// Data first, then the bits that say so.
    fn commit(&self) -> io::Result<()> {
        let top = self.top()?;
        let _commit = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        let dirty = self.map().take_dirty();
        let write = || {
            top.sync()?;
            if dirty.is_empty() {
                return Ok(());
            }
            for (number, words) in &dirty {
                let mut page = format::encode_page(*number, words);
                top.write(format::page_at(*number), Buffers::of_bytes(&mut page))?;
            }
            top.sync()
        };
        write().inspect_err(|_| {
            let mut map = self.map();
            dirty.iter().for_each(|(number, _)| map.mark_dirty(*number));
        })
    }
}

impl Store for Overlay {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            capacity: self.capacity,
            read_only: false,
            block_size: 4096,
            discard: true,
        }
    }

    fn begin(&self) -> Result<(), ImageError> {
        let Keep::File {
            path,
            header,
            direct,
        } = &self.keep
        else {
            return Ok(());
        };
        let failed = |source| ImageError::Io {
            path: path.clone(),
            source,
        };
        match self.top.get() {
            // Its making was interrupted after the header.
            Some(top) if top.len() == BLOCK => top.set_len(file_len(self.capacity)).map_err(failed),
            Some(_) => Ok(()),
            None => {
                create(path, header).map_err(failed)?;
                let access = Access {
                    direct: *direct,
                    ..Access::default()
                };
                let top = DiskFile::open(path, access)?;
                let _ = self.top.set(top);
                Ok(())
            }
        }
    }

    fn file_count(&self) -> usize {
        1 + self.base.file_count()
    }

    fn file(&self, index: usize) -> Option<&DiskFile> {
        match index.checked_sub(1) {
            None => self.top.get(),
            Some(index) => self.base.file(index),
        }
    }

    fn read(&self, offset: u64, len: u64, spans: &mut Vec<Span>) {
        for (span, range, present) in self.top_spans(offset, len) {
            if present {
                spans.push(span);
            } else {
                self.read_base(range, spans);
            }
        }
    }

    fn write(&self, offset: u64, len: u64, spans: &mut Vec<Span>) -> io::Result<()> {
        for block in self.edges(offset, len) {
            if !self.map().contains(block) {
                self.fill(block)?;
            }
        }
        for (span, ..) in self.top_spans(offset, len) {
            match spans.last_mut() {
                // What is there and what is not lie side by side all the same.
                Some(last) if last.offset + last.len == span.offset => last.len += span.len,
                _ => spans.push(span),
            }
        }
        Ok(())
    }

    fn written(&self, offset: u64, len: u64) {
        self.map().insert(Self::blocks(offset, len));
    }

    /// A block that is being written for the first time must not be brought over from the base meanwhile.
    fn is_exclusive(&self, offset: u64, len: u64) -> bool {
        let block = self.top.get().and_then(DiskFile::exclusive_block);
        let map = self.map();
        block.is_some_and(|block| !(offset | len).is_multiple_of(block))
            || self.edges(offset, len).any(|edge| !map.contains(edge))
    }

    fn read_inside(&self, offset: u64, buffers: Buffers<'_>) -> io::Result<()> {
        self.base.read_inside(offset, buffers)
    }

    /// What the base has may as well stay.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let top = self.top()?;
        for (span, _, present) in self.top_spans(offset, len) {
            if present {
                top.discard(span.offset, span.len)?;
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let top = self.top()?;
        let mut spans = Vec::new();
        self.write(offset, len, &mut spans)?;
        for span in spans {
            top.write_zeroes(span.offset, span.len, unmap)?;
        }
        self.written(offset, len);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        match self.keep {
            Keep::Memory => Ok(()),
            Keep::File { .. } => self.commit(),
        }
    }

    fn flushed_by_sync(&self) -> Option<usize> {
        match self.keep {
            Keep::Memory => Some(0),
            Keep::File { .. } if self.map().is_dirty() => None,
            Keep::File { .. } => Some(1),
        }
    }
}

/// A guest that ends without a flush has its last writes all the same.
impl Drop for Overlay {
    fn drop(&mut self) {
        let dirty = matches!(self.keep, Keep::File { .. }) && self.map().is_dirty();
        if dirty && let Err(error) = self.commit() {
            log::warn!("disk image overlay: what was written last is lost: {error}");
        }
    }
}

/// When the last of some files was modified, in nanoseconds; zero for devices.
fn modified(paths: &[PathBuf]) -> io::Result<u64> {
    let mut last = 0;
    for path in paths {
        let metadata = path.metadata()?;
        if metadata.is_file() {
            let since = metadata.modified()?.duration_since(UNIX_EPOCH);
            let nanos = since.unwrap_or_default().as_nanos();
            last = last.max(u64::try_from(nanos).unwrap_or(u64::MAX));
        }
    }
    Ok(last)
}

/// Whether a file can be made at `path` later on.
fn may_create(path: &Path) -> Result<(), ImageError> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let refused = |source| ImageError::NoOverlay {
        path: path.to_owned(),
        source,
    };
    let metadata = parent.metadata().map_err(refused)?;
    if metadata.is_dir() {
        Ok(())
    } else {
        Err(refused(ErrorKind::NotADirectory.into()))
    }
}

/// Makes an empty overlay. Interrupted anywhere, it leaves an empty file, or one of a header, or a whole one.
fn create(path: &Path, header: &Header) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.try_lock()?;
    if file.metadata()?.len() != 0 {
        return Err(ErrorKind::AlreadyExists.into());
    }
    file.write_all_at(&header.encode(), 0)?;
    file.set_len(file_len(header.capacity))?;
    file.sync_all()?;
    // The name has to survive too.
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    file.unlock()
}

/// What a file says, all of it checked.
fn load(path: &Path, top: &DiskFile) -> Result<(Header, Map), ImageError> {
    let refused = |source| ImageError::Overlay {
        path: path.to_owned(),
        source,
    };
    let failed = |source| ImageError::Io {
        path: path.to_owned(),
        source,
    };
    let mut page = [0; PAGE];
    if top.len() < BLOCK {
        return Err(refused(format::FormatError::Magic));
    }
    top.read(0, Buffers::of_bytes(&mut page)).map_err(failed)?;
    let header = Header::decode(&page).map_err(refused)?;
    let wanted = file_len(header.capacity);
    if top.len() < wanted && top.len() != BLOCK {
        let len = top.len();
        return Err(refused(format::FormatError::CutOff { len, wanted }));
    }
    let mut map = Map::default();
    let mut at = BLOCK;
    // Holes are skipped: a disk of terabytes costs no more than what was written to it.
    while let Some(data) = top.next_data(at).map_err(failed)? {
        let number = format::page_from(data);
        let place = format::page_at(number);
        if place >= wanted {
            break;
        }
        if data < place + BLOCK && data + BLOCK > place {
            top.read(place, Buffers::of_bytes(&mut page))
                .map_err(failed)?;
            map.load(number, format::decode_page(number, &page).map_err(refused)?);
            at = place + BLOCK;
        } else {
            at = place;
        }
    }
    Ok((header, map))
}
