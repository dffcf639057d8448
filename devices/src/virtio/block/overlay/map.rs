//! Which blocks the overlay has: the map in memory, and what of it the file does not have yet.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::format::{PAGE_BLOCKS, PAGE_WORDS};

/// The map. Pages without a set bit are not there.
#[derive(Debug, Default)]
pub(super) struct Map {
    pages: BTreeMap<u64, Box<[u64; PAGE_WORDS]>>,
    /// Pages that have bits which the file lacks.
    dirty: BTreeSet<u64>,
}

/// Blocks one after the other that all are in the overlay, or all are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) blocks: Range<u64>,
    pub(super) present: bool,
}

impl Map {
    /// A page as the file has it.
    pub(super) fn load(&mut self, page: u64, words: [u64; PAGE_WORDS]) {
        if words.iter().any(|word| *word != 0) {
            self.pages.insert(page, Box::new(words));
        }
    }

    pub(super) fn contains(&self, block: u64) -> bool {
        let (page, word, bit) = locate(block);
        self.pages
            .get(&page)
            .is_some_and(|words| words[word] & bit != 0)
    }

    /// Says that the overlay has these blocks.
    pub(super) fn insert(&mut self, blocks: Range<u64>) {
        for block in blocks {
            let (page, word, bit) = locate(block);
            let words = self
                .pages
                .entry(page)
                .or_insert_with(|| Box::new([0; PAGE_WORDS]));
            if words[word] & bit == 0 {
                words[word] |= bit;
                self.dirty.insert(page);
            }
        }
    }

    /// `blocks`, cut where presence changes, and at each end of a page's blocks: that is where their data
    /// is not contiguous.
    pub(super) fn runs(&self, blocks: Range<u64>) -> impl Iterator<Item = Run> {
        let mut next = blocks.start;
        std::iter::from_fn(move || {
            let start = next;
            if start >= blocks.end {
                return None;
            }
            let present = self.contains(start);
            let group_end = (start / PAGE_BLOCKS + 1) * PAGE_BLOCKS;
            let end = blocks.end.min(group_end);
            next = (start + 1..end)
                .find(|block| self.contains(*block) != present)
                .unwrap_or(end);
            Some(Run {
                blocks: start..next,
                present,
            })
        })
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The pages that the file lacks bits of, as they are now. They count as written from here on.
    pub(super) fn take_dirty(&mut self) -> Vec<(u64, Box<[u64; PAGE_WORDS]>)> {
        std::mem::take(&mut self.dirty)
            .into_iter()
            .filter_map(|page| Some((page, self.pages.get(&page)?.clone())))
            .collect()
    }

    /// A page could not be written after all.
    pub(super) fn mark_dirty(&mut self, page: u64) {
        self.dirty.insert(page);
    }
}

/// Page, word in it, and bit in that.
fn locate(block: u64) -> (u64, usize, u64) {
    let index = block % PAGE_BLOCKS;
    // Less than the words of a page.
    let word = usize::try_from(index / 64).unwrap_or(0);
    (block / PAGE_BLOCKS, word, 1 << (index % 64))
}
