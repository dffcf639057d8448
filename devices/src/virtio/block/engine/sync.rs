//! The engine of plain system calls: every operation is done when it returns.

use std::io;
use std::sync::Arc;

use crate::virtio::block::disk::{DiskLane, DiskOp, Progress, Tag};
use crate::virtio::block::file::DiskFile;
use crate::virtio::block::iovec::Buffers;
use crate::virtio::block::store::{Span, Store};

/// A lane that waits for the host.
#[derive(Debug)]
pub(super) struct SyncLane<S> {
    store: Arc<S>,
}

impl<S: Store> SyncLane<S> {
    pub(super) fn new(store: Arc<S>) -> Self {
        Self { store }
    }
}

impl<S: Store> DiskLane for SyncLane<S> {
    fn submit(&mut self, _tag: Tag, op: DiskOp<'_>) -> Progress {
        Progress::Done(execute(self.store.as_ref(), op))
    }
}

/// Does `op` and waits for it.
pub(super) fn execute(store: &impl Store, op: DiskOp<'_>) -> io::Result<()> {
    match op {
        DiskOp::Read { offset, buffers } => read(store, offset, Buffers::of(buffers)),
        DiskOp::Write {
            offset,
            buffers,
            through,
        } => {
            write(store, offset, Buffers::of(buffers))?;
            flush_if(store, through)
        }
        DiskOp::Flush => store.flush(),
        DiskOp::Discard { offset, len } => store.discard(offset, len),
        DiskOp::WriteZeroes {
            offset,
            len,
            unmap,
            through,
        } => {
            store.write_zeroes(offset, len, unmap)?;
            flush_if(store, through)
        }
    }
}

fn read(store: &impl Store, offset: u64, mut buffers: Buffers) -> io::Result<()> {
    let mut spans = Vec::new();
    store.read(offset, buffers.len(), &mut spans);
    transfer_all(store, false, spans, &mut buffers)
}

fn write(store: &impl Store, offset: u64, mut buffers: Buffers) -> io::Result<()> {
    let mut spans = Vec::new();
    let len = buffers.len();
    store.write(offset, len, &mut spans)?;
    transfer_all(store, true, spans, &mut buffers)?;
    store.written(offset, len);
    Ok(())
}

fn transfer_all(
    store: &impl Store,
    write: bool,
    spans: Vec<Span>,
    buffers: &mut Buffers,
) -> io::Result<()> {
    for span in spans {
        let file = span.file.and_then(|index| store.files().get(index));
        transfer(file, write, span.offset, buffers.split(span.len))?;
    }
    Ok(())
}

/// Moves the bytes of one span. Those that are in no file read as zeroes, and cannot be written.
pub(super) fn transfer(
    file: Option<&DiskFile>,
    write: bool,
    offset: u64,
    buffers: Buffers,
) -> io::Result<()> {
    match (file, write) {
        (Some(file), false) => file.read(offset, buffers),
        (Some(file), true) => file.write(offset, buffers),
        (None, false) => {
            buffers.fill_zero();
            Ok(())
        }
        (None, true) => Err(io::ErrorKind::NotFound.into()),
    }
}

fn flush_if(store: &impl Store, through: bool) -> io::Result<()> {
    if through { store.flush() } else { Ok(()) }
}
