//! The buffers of a chain as one run of bytes, wherever the driver split them (Virtio 1.2 §2.7.4: a
//! device makes no assumption about that).

use crate::mem::GuestSlice;

/// Bytes in `buffers`: at most as many as guest memory has, times the descriptors of a chain.
pub(crate) fn total(buffers: &[GuestSlice<'_>]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

/// Moves bytes from the front of `buffers` into `out`; returns how many there were.
pub(crate) fn take_front(buffers: &mut Vec<GuestSlice<'_>>, out: &mut [u8]) -> usize {
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

/// Copies `bytes` to the front of `buffers`, as far as there is room; returns how many fitted.
pub(crate) fn put_front(buffers: &[GuestSlice<'_>], bytes: &[u8]) -> usize {
    let mut written = 0;
    for buffer in buffers {
        let rest = &bytes[written..];
        let now = rest.len().min(buffer.len());
        buffer.copy_from(&rest[..now]);
        written += now;
    }
    written
}

/// What remains of `buffers` without their first `skip` bytes, and with no more than `limit` bytes.
pub(crate) fn part<'m>(
    buffers: &[GuestSlice<'m>],
    mut skip: usize,
    mut limit: usize,
) -> impl Iterator<Item = GuestSlice<'m>> {
    buffers.iter().filter_map(move |buffer| {
        let start = skip.min(buffer.len());
        skip -= start;
        let len = limit.min(buffer.len() - start);
        limit -= len;
        buffer
            .subslice(start, len)
            .ok()
            .filter(|part| !part.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices(memory: &mut [Vec<u8>]) -> Vec<GuestSlice<'_>> {
        memory
            .iter_mut()
            .map(|bytes| GuestSlice::from(&mut bytes[..]))
            .collect()
    }

    fn bytes<'m>(buffers: impl IntoIterator<Item = GuestSlice<'m>>) -> Vec<u8> {
        let mut out = Vec::new();
        for buffer in buffers {
            let mut copy = vec![0; buffer.len()];
            buffer.copy_to(&mut copy[..]);
            out.extend(copy);
        }
        out
    }

    #[test]
    fn bytes_are_taken_and_put_across_buffers() {
        let mut memory = [vec![1, 2], vec![], vec![3], vec![4, 5, 6]];
        let mut buffers = slices(&mut memory);
        assert_eq!(put_front(&buffers, &[9, 8, 7]), 3);
        assert_eq!(total(&buffers), 6);
        let mut front = [0; 4];
        assert_eq!(take_front(&mut buffers, &mut front), 4);
        assert_eq!(front, [9, 8, 7, 4]);
        assert_eq!(bytes(buffers.iter().copied()), [5, 6]);
        let mut more = [0; 4];
        assert_eq!(take_front(&mut buffers, &mut more), 2);
        assert!(buffers.is_empty());
        let mut memory = [vec![0, 0]];
        assert_eq!(put_front(&slices(&mut memory), &[1, 2, 3]), 2);
    }

    #[test]
    fn every_part_is_where_it_says() {
        let mut memory = [vec![0, 1, 2], vec![3], vec![4, 5, 6, 7]];
        let buffers = slices(&mut memory);
        let all: Vec<u8> = (0..8).collect();
        for skip in 0..10 {
            for limit in 0..10 {
                let expected: Vec<u8> = all.iter().copied().skip(skip).take(limit).collect();
                assert_eq!(bytes(part(&buffers, skip, limit)), expected);
            }
        }
    }
}
