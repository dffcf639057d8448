//! Page numbers as the driver lists them, Virtio 1.2 §5.5.6: 32-bit numbers of 4096-byte pages, in any
//! order. Pure, but for the reading of guest memory.

use crate::mem::{GuestAddress, GuestSlice};

/// Bytes of a page, whatever the guest's own pages are. §5.5.6.
pub(super) const PAGE: u64 = 4096;

/// Page numbers that are read of one request. Linux and Windows send at most 1024.
pub(super) const MAX_PAGES: usize = 16 << 10;

/// Copies the start of `buffers` into `to`, as far as there is room; returns how many bytes.
pub(super) fn gather(buffers: &[GuestSlice<'_>], to: &mut [u8]) -> usize {
    let mut filled = 0;
    for buffer in buffers {
        filled += buffer.copy_to(&mut to[filled..]);
    }
    filled
}

/// Reads lists of page numbers; its memory is used again.
#[derive(Debug)]
pub(super) struct PageList {
    bytes: Box<[u8]>,
    pages: Vec<u32>,
}

/// Pages that lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: GuestAddress,
    pub(super) len: u64,
}

impl PageList {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; 4 * MAX_PAGES].into(),
            pages: Vec::new(),
        }
    }

    /// The first [`MAX_PAGES`] of the pages that `buffers` list, as few runs. Whether they are in guest
    /// memory is not looked at.
    pub(super) fn runs(&mut self, buffers: &[GuestSlice<'_>]) -> impl Iterator<Item = Run> {
        let len = gather(buffers, &mut self.bytes);
        let numbers = self.bytes[..len].as_chunks::<4>().0;
        self.pages.clear();
        self.pages
            .extend(numbers.iter().map(|number| u32::from_le_bytes(*number)));
        self.pages.sort_unstable();
        self.pages.dedup();
        // Sorted and without doubles, so each number is its run's first plus its place in the run.
        self.pages
            .chunk_by(|one, next| next - one == 1)
            .filter_map(|run| {
                Some(Run {
                    start: GuestAddress(u64::from(*run.first()?) * PAGE),
                    len: run.len() as u64 * PAGE,
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(pages: &[u32]) -> Vec<(u64, u64)> {
        let mut bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        // One number lies in two buffers.
        let middle = bytes.len().min(pages.len() * 2 + 1);
        let (one, other) = bytes.split_at_mut(middle);
        let buffers = [GuestSlice::from(one), GuestSlice::from(other)];
        PageList::new()
            .runs(&buffers)
            .map(|run| (run.start.0 / PAGE, run.len / PAGE))
            .collect()
    }

    #[test]
    fn neighbours_in_any_order_are_one_run() {
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[7]), [(7, 1)]);
        assert_eq!(runs(&[9, 8, 7, 3, 10]), [(3, 1), (7, 4)]);
        assert_eq!(runs(&[1, 2, 2, 1, 3]), [(1, 3)]);
        assert_eq!(runs(&[u32::MAX, 0]), [(0, 1), (u64::from(u32::MAX), 1)]);
    }

    #[test]
    fn a_request_is_read_up_to_a_limit() {
        let pages: Vec<u32> = (0..).take(MAX_PAGES + 5).collect();
        assert_eq!(runs(&pages), [(0, MAX_PAGES as u64)]);
    }
}
