//! Around the page cache: O_DIRECT, which wants everything aligned, for buffers and offsets that are not.
//!
//! A transfer that fits goes straight between the file and guest memory. Buffers at odd addresses go
//! through one of ours; a write that covers a block only in part reads the block first, and must have it
//! for itself until it is written back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::buffers::{self, Buffers};

/// Bytes that go through a buffer of ours at a time.
const CHUNK: u64 = 256 << 10;

/// No host is known that asks for more.
const MAX_ALIGN: u64 = 4096;

/// What a file asks of transfers around the page cache. Powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of addresses.
    pub(super) memory: u64,
    /// Of offsets and lengths.
    pub(super) offset: u64,
}

impl Alignment {
    /// What `file`, opened with O_DIRECT, asks for; none if it cannot do it.
    pub(super) fn of(file: &File) -> Option<Self> {
        let asked = ask(file).unwrap_or_else(|| probe(file));
        let fits = |align: u64| align.is_power_of_two() && align <= MAX_ALIGN;
        asked.filter(|align| fits(align.memory) && fits(align.offset))
    }

    /// Whether the range begins and ends where it may.
    pub(super) fn has_range(self, offset: u64, len: u64) -> bool {
        (offset | len).is_multiple_of(self.offset)
    }

    /// Whether the transfer can be done as it is.
    pub(super) fn has(self, offset: u64, buffers: &Buffers<'_>) -> bool {
        offset.is_multiple_of(self.offset)
            && buffers.parts().all(|(address, len)| {
                address.is_multiple_of(self.memory) && len.is_multiple_of(self.offset)
            })
    }
}

/// statx(2), Linux 6.1: the answer, or none if the kernel or the file system gives none.
fn ask(file: &File) -> Option<Option<Alignment>> {
    let answer = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if !StatxFlags::from_bits_retain(answer.stx_mask).contains(StatxFlags::DIOALIGN) {
        return None;
    }
    let (memory, offset) = (answer.stx_dio_mem_align, answer.stx_dio_offset_align);
    Some((memory > 0 && offset > 0).then(|| Alignment {
        memory: memory.into(),
        offset: offset.into(),
    }))
}

/// The least of the usual alignments with which the file's first bytes can be read.
fn probe(file: &File) -> Option<Alignment> {
    let works = |align: &u64| {
        let mut bounce = Bounce::new(2 * align);
        // Aligned to this and to no more.
        let len = usize::try_from(*align).unwrap_or(0);
        file.read_at(&mut bounce.bytes()[len..2 * len], 0).is_ok()
    };
    let align = [512, MAX_ALIGN].into_iter().find(works)?;
    Some(Alignment {
        memory: align,
        offset: align,
    })
}

/// Fills `buffers` from `offset` of `file`.
pub(super) fn read(
    file: &File,
    align: Alignment,
    offset: u64,
    mut buffers: Buffers<'_>,
) -> io::Result<()> {
    if align.has(offset, &buffers) {
        return buffers::read_exact_at(file, buffers, offset);
    }
    let mut bounce = Bounce::new(CHUNK + 2 * align.offset);
    let mut at = offset;
    while !buffers.is_empty() {
        let part = buffers.split(CHUNK - at % CHUNK);
        let window = Window::around(at, part.len(), align);
        let bytes = bounce.window(&window);
        let inner = window.inner();
        if read_to_end_at(file, align, bytes, window.start)? < inner.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        part.copy_from(&bytes[inner]);
        at += part.len();
    }
    Ok(())
}

/// Fills `bytes`, as far as the file goes: a qcow2 may end amid a block.
fn read_to_end_at(
    file: &File,
    align: Alignment,
    bytes: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        let read = match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        filled += read;
        // Nobody may ask for what follows the end of a file: it would not be aligned.
        if read == 0 || !align.has_range(0, filled as u64) {
            break;
        }
    }
    Ok(filled)
}

/// Stores `buffers` at `offset` of `file`. Unless [`Alignment::has_range`] says yes, nobody else may write
/// to the blocks at either end meanwhile.
pub(super) fn write(
    file: &File,
    align: Alignment,
    offset: u64,
    mut buffers: Buffers<'_>,
) -> io::Result<()> {
    if align.has(offset, &buffers) {
        return buffers::write_all_at(file, buffers, offset);
    }
    let mut bounce = Bounce::new(CHUNK + 2 * align.offset);
    let mut at = offset;
    while !buffers.is_empty() {
        let part = buffers.split(CHUNK - at % CHUNK);
        let window = Window::around(at, part.len(), align);
        let bytes = bounce.window(&window);
        let inner = window.inner();
        // The blocks at the ends keep what is not written over.
        let block = usize::try_from(align.offset).map_err(io::Error::other)?;
        if inner.start > 0 {
            file.read_exact_at(&mut bytes[..block], window.start)?;
        }
        if inner.end < bytes.len() && (inner.start == 0 || bytes.len() > block) {
            let last = bytes.len() - block;
            file.read_exact_at(&mut bytes[last..], window.start + last as u64)?;
        }
        part.copy_to(&mut bytes[inner]);
        file.write_all_at(bytes, window.start)?;
        at += part.len();
    }
    Ok(())
}

/// Whole blocks around a range.
#[derive(Debug)]
struct Window {
    start: u64,
    end: u64,
    /// What is to be moved, from the start of the window.
    from: u64,
    to: u64,
}

impl Window {
    fn around(offset: u64, len: u64, align: Alignment) -> Self {
        let start = offset - offset % align.offset;
        let end = offset + len;
        Self {
            start,
            end: end.next_multiple_of(align.offset),
            from: offset - start,
            to: end - start,
        }
    }

    /// At most a chunk and two blocks, so it is a length of memory.
    fn inner(&self) -> std::ops::Range<usize> {
        let index = |at| usize::try_from(at).unwrap_or(usize::MAX);
        index(self.from)..index(self.to)
    }
}

/// A buffer that begins at a page.
#[derive(Debug)]
struct Bounce(Vec<u8>);

impl Bounce {
    fn new(len: u64) -> Self {
        let len = usize::try_from(len + MAX_ALIGN).unwrap_or(0);
        Self(vec![0; len])
    }

    fn bytes(&mut self) -> &mut [u8] {
        let align = usize::try_from(MAX_ALIGN).unwrap_or(1);
        let skip = self.0.as_ptr().align_offset(align);
        &mut self.0[skip..]
    }

    fn window(&mut self, window: &Window) -> &mut [u8] {
        let len = usize::try_from(window.end - window.start).unwrap_or(0);
        &mut self.bytes()[..len]
    }
}
