//! Telling one base from another without reading all of it.

use std::io;

use super::format::{BLOCK, Identity};
use crate::virtio::block::buffers::Buffers;
use crate::virtio::block::engine::sync;
use crate::virtio::block::store::Store;

/// Bytes from the start that count: partition tables and superblocks, with the identifiers and times that
/// tell file systems and their states apart.
const HEAD: u64 = 64 << 10;
/// Blocks that count besides, spread evenly.
const SAMPLES: u64 = 64;

/// What `base` is known by, which was last modified then.
///
/// # Errors
/// It cannot be read.
pub(super) fn of(base: &dyn Store, modified: u64) -> io::Result<Identity> {
    let len = base.info().capacity;
    let head = crc(base, 0..HEAD.min(len), 0)?;
    let mut samples = 0;
    for sample in 0..SAMPLES {
        let at = len / SAMPLES * sample / BLOCK * BLOCK;
        samples = crc(base, at..(at + BLOCK).min(len), samples)?;
    }
    Ok(Identity {
        len,
        fingerprint: u64::from(head) << 32 | u64::from(samples),
        modified,
    })
}

/// The CRC of a range, carried on from another's.
fn crc(base: &dyn Store, range: std::ops::Range<u64>, before: u32) -> io::Result<u32> {
    let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    sync::read(base, range.start, Buffers::of_bytes(&mut bytes))?;
    let mut crc = crc32fast::Hasher::new_with_initial(before);
    crc.update(&bytes);
    Ok(crc.finalize())
}
