//! What a driver asks of a block device: descriptor chains in, checked requests out.
//!
//! Virtio 1.2 §5.2.6. Pure: nothing here touches the disk or the rings. A chain whose *shape* no driver
//! may make (no header, no status byte, data in the wrong direction) is [`Malformed`]: there may be no
//! place for an answer, so the device faults. A request whose *content* cannot be served (beyond the
//! end, not in whole sectors, read-only, unknown) is well-formed and answered with a status. Memory the
//! guest can change under way is read once.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::disk::SECTOR;
use crate::io::{Buffers, Chain};
use crate::mem::{GuestAddress, GuestSlice};

/// Bytes of `struct virtio_blk_req` before the data: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const SEGMENT: usize = 16;
/// The most segments a discard or write-zeroes request may have; offered to the driver.
pub(super) const MAX_SEGMENTS: u8 = 32;
/// The most sectors a discard segment may have: 2 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// The most sectors a write-zeroes segment may have: 64 MiB, as the zeroes may have to be written.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 17;
/// Length of the device's name, padded with zeroes.
pub(super) const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// What the last byte of every request says. §5.2.6, VIRTIO_BLK_S_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// Done.
    Ok = 0,
    /// The disk failed, or the request was out of bounds.
    IoErr = 1,
    /// The device does not know the request.
    Unsupp = 2,
}

/// What this device and this driver agreed on, as far as it decides which requests are served.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Size of the disk.
    pub(super) sectors: u64,
    /// No request may change the disk.
    pub(super) read_only: bool,
    /// VIRTIO_BLK_F_DISCARD was negotiated.
    pub(super) discard: bool,
    /// VIRTIO_BLK_F_WRITE_ZEROES was negotiated.
    pub(super) write_zeroes: bool,
}

/// A chain that is not a request, and what it lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// A request, and where its answer goes.
#[derive(Debug)]
pub(super) struct Request<'m> {
    /// Names the chain in the used ring.
    pub(super) head: u16,
    /// Where the status byte goes.
    pub(super) status: GuestAddress,
    /// Device-writable bytes before the status byte.
    pub(super) room: u32,
    /// What to do.
    pub(super) action: Action<'m>,
}

/// What to do. Everything in it is within the disk and permitted.
#[derive(Debug)]
pub(super) enum Action<'m> {
    /// Disk to guest, from a byte offset; the buffers are all of the room.
    Read(u64, Buffers<'m>),
    /// Guest to disk, at a byte offset.
    Write(u64, Buffers<'m>),
    /// Make the writes so far durable.
    Flush,
    /// Name the disk.
    GetId(Buffers<'m>),
    /// Forget or clear ranges of the disk.
    Clear(Vec<Range>),
    /// Answer without touching the disk.
    Refuse(Status),
}

impl Action<'_> {
    /// Bytes it may make the disk read or write, for the rate limit. Zeroes count, since the disk may have
    /// to write them; what is discarded is only forgotten.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Read(_, buffers) | Self::Write(_, buffers) => total(buffers),
            Self::Clear(ranges) => ranges
                .iter()
                .filter(|range| range.clear != Clear::Discard)
                .map(|range| range.len)
                .sum(),
            Self::Flush | Self::GetId(_) | Self::Refuse(_) => 0,
        }
    }
}

/// Part of a discard or write-zeroes request, in bytes, not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) clear: Clear,
}

/// What becomes of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clear {
    /// Any content will do.
    Discard,
    /// Zeroes.
    Zero {
        /// The space may go back to the host.
        unmap: bool,
    },
}

/// Makes a request of a chain.
pub(super) fn parse<'m>(chain: Chain<'m>, rules: &Rules) -> Result<Request<'m>, Malformed> {
    let Chain {
        head,
        mut readable,
        mut writable,
        last_writable,
    } = chain;
    let mut header = [0; HEADER];
    if take_front(&mut readable, &mut header) < HEADER {
        return Err(Malformed("no complete header"));
    }
    let status = last_writable.ok_or(Malformed("no status byte"))?;
    drop_last_byte(&mut writable);
    let room = u32::try_from(total(&writable)).map_err(|_| Malformed("longer than 4 GiB"))?;

    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let action = match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => {
            expect_none(&readable)?;
            match locate(sector, u64::from(room), rules) {
                Some(offset) => Action::Read(offset, writable),
                None => Action::Refuse(Status::IoErr),
            }
        }
        VIRTIO_BLK_T_OUT => {
            expect_none(&writable)?;
            match locate(sector, total(&readable), rules) {
                // §5.2.6.2: a device that offers RO answers writes with IOERR.
                Some(offset) if !rules.read_only => Action::Write(offset, readable),
                _ => Action::Refuse(Status::IoErr),
            }
        }
        // Neither has data to speak of; what a driver sends along is ignored.
        VIRTIO_BLK_T_FLUSH => Action::Flush,
        VIRTIO_BLK_T_GET_ID => Action::GetId(writable),
        VIRTIO_BLK_T_DISCARD => {
            expect_none(&writable)?;
            clear(rules.discard, &mut readable, rules, |flags| {
                // §5.2.6.2: unmap is for write-zeroes only.
                (flags == 0).then_some((Clear::Discard, MAX_DISCARD_SECTORS))
            })
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            expect_none(&writable)?;
            clear(rules.write_zeroes, &mut readable, rules, |flags| {
                let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
                (flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP == 0)
                    .then_some((Clear::Zero { unmap }, MAX_WRITE_ZEROES_SECTORS))
            })
        }
        _ => Action::Refuse(Status::Unsupp),
    };
    Ok(Request {
        head,
        status,
        room,
        action,
    })
}

/// The segments of a discard or write-zeroes request: all of them, or a refusal, so that a bad one
/// leaves the disk as it was. `by_flags` gives the effect and the most sectors, or `None` for flags
/// that are not known.
fn clear<'m>(
    negotiated: bool,
    data: &mut Buffers<'_>,
    rules: &Rules,
    by_flags: impl Fn(u32) -> Option<(Clear, u32)>,
) -> Action<'m> {
    if rules.read_only {
        return Action::Refuse(Status::IoErr);
    }
    if !negotiated {
        return Action::Refuse(Status::Unsupp);
    }
    let bytes = total(data);
    let limit = (SEGMENT * usize::from(MAX_SEGMENTS)) as u64;
    if bytes == 0 || bytes > limit || !bytes.is_multiple_of(SEGMENT as u64) {
        return Action::Refuse(Status::IoErr);
    }
    let mut ranges = Vec::new();
    let mut segment = [0; SEGMENT];
    while take_front(data, &mut segment) == SEGMENT {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = segment;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let Some((clear, most)) = by_flags(u32::from_le_bytes(flags)) else {
            return Action::Refuse(Status::Unsupp);
        };
        let len = u64::from(sectors) * SECTOR;
        match locate(sector, len, rules) {
            Some(offset) if sectors <= most => {
                if len > 0 {
                    ranges.push(Range { offset, len, clear });
                }
            }
            _ => return Action::Refuse(Status::IoErr),
        }
    }
    Action::Clear(ranges)
}

/// The byte offset of `len` bytes at `sector`, if they are whole sectors within the disk.
fn locate(sector: u64, len: u64, rules: &Rules) -> Option<u64> {
    if !len.is_multiple_of(SECTOR) {
        return None;
    }
    let end = sector.checked_add(len / SECTOR)?;
    (end <= rules.sectors).then_some(())?;
    sector.checked_mul(SECTOR)
}

fn expect_none(buffers: &[GuestSlice<'_>]) -> Result<(), Malformed> {
    if buffers.is_empty() {
        Ok(())
    } else {
        Err(Malformed("data in the wrong direction"))
    }
}

/// Bytes in `buffers`: at most as many as guest memory has, times the descriptors of a chain.
fn total(buffers: &[GuestSlice<'_>]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

/// Moves bytes from the front of `buffers` into `out`; returns how many there were.
fn take_front(buffers: &mut Buffers<'_>, out: &mut [u8]) -> usize {
    let mut filled = 0;
    let mut emptied = 0;
    for buffer in buffers.iter_mut() {
        let wanted = &mut out[filled..];
        if wanted.is_empty() {
            break;
        }
        let count = buffer.copy_to(wanted);
        filled += count;
        match buffer.offset(count) {
            Ok(rest) if !rest.is_empty() => *buffer = rest,
            _ => emptied += 1,
        }
    }
    buffers.drain(..emptied);
    filled
}

/// Takes the status byte off the device-writable buffers, which may leave an empty one to drop.
fn drop_last_byte(buffers: &mut Buffers<'_>) {
    if let Some(last) = buffers.pop()
        && last.len() > 1
        && let Ok(rest) = last.subslice(0, last.len() - 1)
    {
        buffers.push(rest);
    }
}
