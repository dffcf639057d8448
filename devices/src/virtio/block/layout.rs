//! How several files make one disk. Pure arithmetic.

use super::store::{Place, Span};

/// How the bytes of a disk are spread over its files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// One file after the other.
    #[default]
    Linear,
    /// So many bytes of the first, as many of the next, and round again. All files are of one size, which is
    /// a multiple of the stripe.
    Stripe(u64),
}

/// A layout of files of known sizes.
#[derive(Debug)]
pub(super) struct Map {
    layout: Layout,
    /// Where on the disk each file begins, if they come one after the other.
    starts: Vec<u64>,
    len: u64,
}

impl Map {
    /// The disk that files of these sizes make.
    pub(super) fn new(layout: Layout, lens: &[u64]) -> Self {
        let mut len = 0u64;
        let starts = lens
            .iter()
            .map(|file| {
                let start = len;
                len = len.saturating_add(*file);
                start
            })
            .collect();
        Self {
            layout,
            starts,
            len,
        }
    }

    /// Bytes of the disk.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Where a range of the disk is.
    pub(super) fn spans(&self, offset: u64, len: u64, spans: &mut Vec<Span>) {
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let (file, place, run) = match self.layout {
                Layout::Linear => self.linear(at),
                Layout::Stripe(stripe) => self.striped(stripe, at),
            };
            let now = run.min(end - at);
            spans.push(Span {
                place: Place::File(file),
                offset: place,
                len: now,
            });
            at += now;
        }
    }

    /// The file of a byte, its place in it, and how many bytes from there on lie together.
    fn linear(&self, at: u64) -> (usize, u64, u64) {
        let file = self.starts.partition_point(|start| *start <= at).max(1) - 1;
        let start = self.starts.get(file).copied().unwrap_or(0);
        let end = self.starts.get(file + 1).copied().unwrap_or(u64::MAX);
        (file, at - start, end - at)
    }

    fn striped(&self, stripe: u64, at: u64) -> (usize, u64, u64) {
        let files = self.starts.len() as u64;
        let (number, within) = (at / stripe, at % stripe);
        let file = usize::try_from(number % files).unwrap_or(0);
        (file, number / files * stripe + within, stripe - within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each byte of the disk: its file and place.
    fn bytes(map: &Map, offset: u64, len: u64) -> Vec<(usize, u64)> {
        let mut spans = Vec::new();
        map.spans(offset, len, &mut spans);
        assert!(spans.iter().all(|span| span.len > 0));
        spans
            .iter()
            .flat_map(|span| {
                let Place::File(file) = span.place else {
                    panic!("{span:?}");
                };
                (span.offset..span.offset + span.len).map(move |at| (file, at))
            })
            .collect()
    }

    #[test]
    fn every_byte_has_one_place_and_ranges_are_what_their_bytes_are() {
        let linear: Vec<(usize, u64)> = [3u64, 1, 5]
            .into_iter()
            .enumerate()
            .flat_map(|(file, len)| (0..len).map(move |at| (file, at)))
            .collect();
        let striped = (0..4u64)
            .flat_map(|row| (0..3).flat_map(move |file| [(file, row * 2), (file, row * 2 + 1)]))
            .collect();
        for (layout, lens, expected) in [
            (Layout::Linear, vec![3, 1, 5], linear),
            (Layout::Stripe(2), vec![8, 8, 8], striped),
            (Layout::Linear, vec![4], (0..4).map(|at| (0, at)).collect()),
        ] {
            let map = Map::new(layout, &lens);
            let len = expected.len() as u64;
            assert_eq!(map.len(), len);
            for from in 0..=len {
                for to in from..=len {
                    let (first, last) = (usize::try_from(from), usize::try_from(to));
                    let expected = &expected[first.unwrap()..last.unwrap()];
                    assert_eq!(
                        bytes(&map, from, to - from),
                        expected,
                        "{layout:?} {from}..{to}"
                    );
                }
            }
        }
    }

    #[test]
    fn one_file_is_one_span() {
        let map = Map::new(Layout::Linear, &[1 << 40]);
        let mut spans = Vec::new();
        map.spans(512, 1 << 30, &mut spans);
        assert_eq!(spans.len(), 1);
        assert!(Map::new(Layout::Linear, &[u64::MAX, u64::MAX]).len() == u64::MAX);
    }
}
