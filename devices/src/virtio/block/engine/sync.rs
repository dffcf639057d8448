//! The engine of plain system calls: every operation is done when it returns.

use std::io;
use std::sync::Arc;

use crate::virtio::block::disk::{DiskLane, DiskOp, Progress, Tag};
use crate::virtio::block::iovec::Buffers;
use crate::virtio::block::store::Store;

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

/// Fills `buffers` from `offset`.
pub(super) fn read(store: &impl Store, offset: u64, mut buffers: Buffers) -> io::Result<()> {
    let mut spans = Vec::new();
    store.read(offset, buffers.len(), &mut spans);
    for span in spans {
        let part = buffers.split(span.len);
        match span.file.and_then(|index| store.files().get(index)) {
            Some(file) => file.read(span.offset, part)?,
            None => part.fill_zero(),
        }
    }
    Ok(())
}

/// Stores `buffers` at `offset`.
fn write(store: &impl Store, offset: u64, mut buffers: Buffers) -> io::Result<()> {
    let mut spans = Vec::new();
    let len = buffers.len();
    store.write(offset, len, &mut spans)?;
    for span in spans {
        let part = buffers.split(span.len);
        let file = span.file.and_then(|index| store.files().get(index));
        file.ok_or(io::ErrorKind::NotFound)?
            .write(span.offset, part)?;
    }
    store.written(offset, len);
    Ok(())
}

fn flush_if(store: &impl Store, through: bool) -> io::Result<()> {
    if through { store.flush() } else { Ok(()) }
}
