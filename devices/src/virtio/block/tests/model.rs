//! A disk as it should be: an array of bytes, whatever operations are cut into.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::bench::Bench;
use crate::virtio::block::disk::{Disk, SECTOR};

/// One operation, its data at odd addresses and in odd pieces.
#[derive(Debug, Clone)]
pub(in crate::virtio::block) struct Step {
    kind: u8,
    sector: u64,
    sectors: u64,
    byte: u8,
    /// Where the buffers are cut.
    cuts: Vec<usize>,
}

/// Sectors of the disk.
pub(in crate::virtio::block) const SECTORS: u64 = 64;

pub(in crate::virtio::block) fn step() -> impl Strategy<Value = Step> {
    let place = (0..SECTORS).prop_flat_map(|sector| (Just(sector), 1..=(SECTORS - sector).min(24)));
    (place, 0..3u8, any::<u8>(), vec(any::<usize>(), 0..4)).prop_map(
        |((sector, sectors), kind, byte, cuts)| Step {
            kind,
            sector,
            sectors,
            byte,
            cuts,
        },
    )
}

fn pieces(len: usize, cuts: &[usize]) -> Vec<usize> {
    let mut ends: Vec<usize> = cuts.iter().map(|at| 1 + at % len).collect();
    ends.push(len);
    ends.sort_unstable();
    ends.dedup();
    let mut from = 0;
    ends.into_iter()
        .map(|end| end - std::mem::replace(&mut from, end))
        .collect()
}

/// Does all of it, and sees that the disk is an array of bytes.
pub(in crate::virtio::block) fn check(disk: &Arc<dyn Disk>, steps: &[Step]) {
    let mut bench = Bench::new(disk);
    let mut model = vec![0u8; usize::try_from(SECTORS * SECTOR).unwrap()];
    for Step {
        kind,
        sector,
        sectors,
        byte,
        cuts,
    } in steps
    {
        let offset = sector * SECTOR;
        let from = usize::try_from(offset).unwrap();
        let len = usize::try_from(sectors * SECTOR).unwrap();
        let part = &mut model[from..from + len];
        let pieces = pieces(len, cuts);
        match kind {
            0 => assert_eq!(bench.read(offset, &pieces).unwrap(), part),
            1 => {
                for (n, to) in part.iter_mut().enumerate() {
                    *to = byte.wrapping_add(u8::try_from(n % 251).unwrap());
                }
                let mut rest = &*part;
                let parts: Vec<&[u8]> = pieces
                    .iter()
                    .map(|len| rest.split_off(..*len).unwrap())
                    .collect();
                bench.write(offset, &parts).unwrap();
            }
            _ => {
                part.fill(0);
                bench.zero(offset, sectors * SECTOR, false).unwrap();
            }
        }
    }
    let whole = usize::try_from(SECTORS * SECTOR).unwrap();
    assert!(bench.read(0, &[whole]).unwrap() == model);
}
