//! The engine of plain system calls: every operation is done when it returns.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use crate::virtio::block::buffers::Buffers;
use crate::virtio::block::disk::{DiskLane, DiskOp, Progress, Tag};
use crate::virtio::block::store::{Place, Span, Store};

/// A lane that waits for the host.
#[derive(Debug)]
pub(super) struct SyncLane {
    store: Arc<dyn Store>,
}

impl SyncLane {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }
}

impl DiskLane for SyncLane {
    fn submit(&mut self, _tag: Tag, op: DiskOp<'_>) -> Progress {
        Progress::Done(execute(self.store.as_ref(), op))
    }
}

/// Does `op` and waits for it.
pub(super) fn execute(store: &dyn Store, op: DiskOp<'_>) -> io::Result<()> {
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

/// Fills `buffers` from `offset` of the disk.
pub(in crate::virtio::block) fn read(
    store: &dyn Store,
    offset: u64,
    mut buffers: Buffers<'_>,
) -> io::Result<()> {
    let mut spans = Vec::new();
    store.read(offset, buffers.len(), &mut spans);
    transfer_all(store, false, spans, &mut buffers)
}

fn write(store: &dyn Store, offset: u64, mut buffers: Buffers<'_>) -> io::Result<()> {
    let mut spans = Vec::new();
    let len = buffers.len();
    store.write(offset, len, &mut spans)?;
    transfer_all(store, true, spans, &mut buffers)?;
    store.written(offset, len);
    Ok(())
}

fn transfer_all(
    store: &dyn Store,
    write: bool,
    spans: Vec<Span>,
    buffers: &mut Buffers<'_>,
) -> io::Result<()> {
    for span in spans {
        transfer(store, write, span, buffers.split(span.len))?;
    }
    Ok(())
}

/// Moves the bytes of one span.
pub(super) fn transfer(
    store: &dyn Store,
    write: bool,
    span: Span,
    buffers: Buffers<'_>,
) -> io::Result<()> {
    let offset = span.offset;
    match (span.place, write) {
        (Place::Zeroes, false) => {
            buffers.fill_zero();
            Ok(())
        }
        (Place::Zeroes, true) => Err(ErrorKind::InvalidInput.into()),
        (Place::Inside, false) => store.read_inside(offset, buffers),
        (Place::Inside, true) => store.write_inside(offset, buffers),
        (Place::File(index), _) => {
            let file = store.file(index).ok_or(ErrorKind::NotFound)?;
            if write {
                file.write(offset, buffers)
            } else {
                file.read(offset, buffers)
            }
        }
    }
}

fn flush_if(store: &dyn Store, through: bool) -> io::Result<()> {
    if through { store.flush() } else { Ok(()) }
}
