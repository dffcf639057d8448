//! The tables of a qcow2 image, looked through when it is opened: all that is used is in the file, and what
//! could be written to lies apart from the tables and is counted as used.
//!
//! imago believes what it finds: on an image that fails here, a guest's write could land in a table, or a new
//! cluster on one in use. The tables are 1/8000 of what is stored, for clusters of 64 KiB. Two clusters of the
//! disk in one place are not looked for: they harm the guest's data only. Neither memory nor time depend on
//! more than the bytes that are in the file: holes are skipped.

use std::io;
use std::ops::Range;

use super::counts::Counts;
use super::header::{Header, Qcow2Error};
use super::ordered::OFFSET;
use crate::virtio::block::buffers::Buffers;
use crate::virtio::block::file::DiskFile;

/// Bytes of counts that are looked at at once.
const WINDOW: u64 = 4096;

const COMPRESSED: u64 = 1 << 62;

const CUT_OFF: Qcow2Error = Qcow2Error::Damaged("it refers to what is not in it; was it cut off?");
const CROSSED: Qcow2Error = Qcow2Error::Damaged("its tables lie on each other");
const OVERWRITTEN: Qcow2Error = Qcow2Error::Damaged("its data lie on its tables");
const UNALIGNED: Qcow2Error = Qcow2Error::Damaged("it refers to what is no cluster");
const UNCOUNTED: Qcow2Error = Qcow2Error::Damaged("it counts as free what is in use");

/// What was wrong.
pub(super) enum Fault {
    /// The image.
    Image(Qcow2Error),
    /// The host.
    Host(io::Error),
}

impl From<Qcow2Error> for Fault {
    fn from(error: Qcow2Error) -> Self {
        Self::Image(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// Looks through the image in `file`, with more care if it is going to be written.
pub(super) fn check(file: &DiskFile, header: &Header, written: bool) -> Result<(), Fault> {
    let cluster = header.counts.cluster;
    let mut check = Check {
        file,
        counts: header.counts,
        end: file.len().next_multiple_of(cluster),
        blocks: blocks(file, &header.refs)?,
        window: Vec::new(),
        window_at: u64::MAX,
        written,
    };
    let l2 = entries(file, &header.l1)?.into_iter();
    let mut l2: Vec<u64> = l2
        .map(|entry| entry & OFFSET)
        .filter(|at| *at != 0)
        .collect();
    // One behind the other is how a disk reads them best.
    l2.sort_unstable();
    let blocks = check.blocks.iter().filter(|at| **at != 0);
    let mut tables: Vec<Range<u64>> = l2
        .iter()
        .chain(blocks)
        .map(|at| *at..*at + cluster)
        .collect();
    tables.extend([
        0..cluster,
        whole(&header.l1, cluster),
        whole(&header.refs, cluster),
    ]);
    tables.sort_unstable_by_key(|table| table.start);
    for table in &tables {
        check.is_there(table)?;
    }
    if tables.is_sorted_by(|before, after| before.end <= after.start) {
        for table in &tables {
            check.is_counted(table)?;
        }
    } else {
        return Err(CROSSED.into());
    }

    let mut gap = 0..0;
    let mut data = 0;
    for at in l2 {
        // As long as the last hole goes on there is nothing to read.
        if data < at + cluster {
            data = file.next_data(at)?.unwrap_or(u64::MAX);
        }
        if data < at + cluster {
            check.l2_table(at, &tables, &mut gap)?;
        }
    }
    Ok(())
}

/// The clusters that a table takes.
fn whole(table: &Range<u64>, cluster: u64) -> Range<u64> {
    table.start..table.end.next_multiple_of(cluster)
}

/// Where the blocks of counts are; zero for one that is not there.
fn blocks(file: &DiskFile, refs: &Range<u64>) -> Result<Vec<u64>, Fault> {
    let blocks = entries(file, refs)?;
    match blocks.iter().all(|block| block & !OFFSET == 0) {
        true => Ok(blocks),
        false => Err(UNALIGNED.into()),
    }
}

fn entries(file: &DiskFile, table: &Range<u64>) -> io::Result<Vec<u64>> {
    let len = table.end.min(file.len()).saturating_sub(table.start);
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read(table.start, Buffers::of_bytes(&mut bytes))?;
    let entries = bytes.as_chunks().0.iter();
    Ok(entries.map(|entry| u64::from_be_bytes(*entry)).collect())
}

struct Check<'a> {
    file: &'a DiskFile,
    counts: Counts,
    /// Of the file, in whole clusters.
    end: u64,
    /// Where the blocks of counts are.
    blocks: Vec<u64>,
    /// Some of one block's counts.
    window: Vec<u8>,
    window_at: u64,
    written: bool,
}

impl Check<'_> {
    fn is_there(&self, range: &Range<u64>) -> Result<(), Fault> {
        if !range.start.is_multiple_of(self.counts.cluster) {
            return Err(UNALIGNED.into());
        }
        if range.end > self.end {
            return Err(CUT_OFF.into());
        }
        Ok(())
    }

    /// Every cluster of a range is counted as used.
    fn is_counted(&mut self, range: &Range<u64>) -> Result<(), Fault> {
        if !self.written {
            return Ok(());
        }
        let mut at = range.start;
        while at < range.end {
            if !self.has_count(at)? {
                return Err(UNCOUNTED.into());
            }
            at += self.counts.cluster;
        }
        Ok(())
    }

    fn has_count(&mut self, at: u64) -> io::Result<bool> {
        let place = self.counts.place(at);
        let block = usize::try_from(place.block).ok();
        let block = block.and_then(|block| self.blocks.get(block).copied());
        let Some(block @ 1..) = block else {
            return Ok(false);
        };
        let size = WINDOW.min(self.counts.cluster);
        let within = place.offset % size;
        let window = block + place.offset - within;
        if window != self.window_at {
            let len = size.min(self.file.len().saturating_sub(window));
            self.window
                .resize(usize::try_from(len).map_err(io::Error::other)?, 0);
            self.window_at = u64::MAX;
            self.file
                .read(window, Buffers::of_bytes(&mut self.window))?;
            self.window_at = window;
        }
        let within = usize::try_from(within).map_err(io::Error::other)?;
        let count = self.window.get(within..within + place.len);
        Ok(count.is_some_and(|count| place.is_used(count)))
    }

    /// The clusters that the L2 table at `at` refers to. `gap` is one between the tables.
    fn l2_table(
        &mut self,
        at: u64,
        tables: &[Range<u64>],
        gap: &mut Range<u64>,
    ) -> Result<(), Fault> {
        let cluster = self.counts.cluster;
        for entry in entries(self.file, &(at..at + cluster))? {
            let range = if entry & COMPRESSED != 0 {
                self.compressed(entry)
            } else {
                let start = entry & OFFSET;
                if start == 0 {
                    continue;
                }
                let range = start..start + cluster;
                self.is_there(&range)?;
                range
            };
            if range.end > self.end {
                return Err(CUT_OFF.into());
            }
            if !self.written {
                continue;
            }
            if range.start < gap.start || range.end > gap.end {
                *gap = between(tables, range.start, self.end);
                if range.start < gap.start || range.end > gap.end {
                    return Err(OVERWRITTEN.into());
                }
            }
            self.is_counted(&(range.start - range.start % cluster..range.end))?;
        }
        Ok(())
    }

    /// The bytes that a compressed cluster is in: an offset, and of how many sectors after the first.
    fn compressed(&self, entry: u64) -> Range<u64> {
        let bits = 62 - (self.counts.cluster.ilog2() - 8);
        let start = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        let end = start - start % 512 + (sectors + 1) * 512;
        // What is said is how much there is at most.
        start..end.min(self.end.max(start + 1))
    }
}

/// What lies around `at` and between the tables, which are in order; nothing if it is in one.
fn between(tables: &[Range<u64>], at: u64, end: u64) -> Range<u64> {
    let after = tables.partition_point(|table| table.start <= at);
    let start = after.checked_sub(1).map_or(0, |before| tables[before].end);
    let end = tables.get(after).map_or(end, |table| table.start);
    start..end.max(start)
}
