//! Killed at any write, an image is in order, and has what was flushed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use super::{CLUSTER, Stage};
use crate::virtio::block::buffers::Buffers;
use crate::virtio::block::disk::SECTOR;
use crate::virtio::block::image::Access;
use crate::virtio::block::qcow2::Qcow2;
use crate::virtio::block::qcow2::ordered::fuse;
use crate::virtio::block::store::Store;

const SIZE: u64 = 8 << 20;

/// What each sector has for sure, and what it may have.
struct Model {
    flushed: Vec<u8>,
    now: Vec<u8>,
    /// Changed since the flush.
    open: Vec<bool>,
}

impl Model {
    fn new() -> Self {
        let sectors = usize::try_from(SIZE / SECTOR).unwrap();
        Self {
            flushed: vec![0; sectors],
            now: vec![0; sectors],
            open: vec![false; sectors],
        }
    }

    fn write(&mut self, offset: u64, len: u64, byte: u8) {
        let sector = |at| usize::try_from(at / SECTOR).unwrap();
        let range = sector(offset)..sector(offset + len);
        self.now[range.clone()].fill(byte);
        self.open[range].fill(true);
    }

    fn flush(&mut self) {
        self.flushed.clone_from(&self.now);
        self.open.fill(false);
    }
}

/// Writes here and there, such that new tables are needed all the time; ends with the first error.
fn work(image: &Qcow2, model: &mut Model) -> std::io::Result<()> {
    for step in 0..40u64 {
        let byte = u8::try_from(step).unwrap() + 1;
        let offset = step * 1_234_567 % SIZE / 512 * 512;
        let len = (512 + step % 5 * 4096).min(SIZE - offset);
        model.write(offset, len, byte);
        image.write_inside(
            offset,
            Buffers::of_bytes(&mut vec![byte; usize::try_from(len).unwrap()]),
        )?;
        let offset = step * 7_654_321 % SIZE / CLUSTER * CLUSTER;
        let len = (2 * CLUSTER).min(SIZE - offset);
        match step % 4 {
            1 => {
                model.write(offset, len, 0);
                image.write_zeroes(offset, len, step % 8 == 1)?;
            }
            2 => {
                image.flush()?;
                model.flush();
            }
            _ => {}
        }
    }
    Ok(())
}

/// What `qemu-img check` says: nothing but clusters that nobody uses may be wrong.
fn is_in_order(path: &Path) -> Option<bool> {
    let output = Command::new("qemu-img")
        .arg("check")
        .arg(path)
        .output()
        .ok()?;
    // 3: only leaked clusters.
    Some(matches!(output.status.code(), Some(0 | 3)))
}

#[test]
fn no_kill_costs_more_than_space() {
    let stage = Stage::new();
    let made = stage.create("made.qcow2", SIZE, None);
    let path = stage.path("a.qcow2");
    let access = Access {
        any_size: true,
        ..Access::default()
    };
    let mut kills = 0;
    for writes in 1.. {
        fs::copy(&made, &path).unwrap();
        let mut model = Model::new();
        let image = Qcow2::open(&path, access).unwrap();
        image.begin().unwrap();
        fuse().store(writes, Ordering::Relaxed);
        let end = work(&image, &mut model);
        drop(image);
        fuse().store(i64::MAX, Ordering::Relaxed);
        match is_in_order(&path) {
            None if writes == 1 => eprintln!("skipped: `qemu-img check` is not there"),
            None => {}
            Some(well) => assert!(well, "after {writes} writes: see `qemu-img check`"),
        }
        let image = Qcow2::open(&path, access).unwrap();
        image.begin().unwrap();
        let mut found = vec![0; usize::try_from(SIZE).unwrap()];
        image.read_inside(0, Buffers::of_bytes(&mut found)).unwrap();
        for (number, sector) in found.as_chunks::<512>().0.iter().enumerate() {
            assert!(
                *sector == [model.flushed[number]; 512] || model.open[number],
                "after {writes} writes: sector {number} is {}, was {}",
                sector[0],
                model.flushed[number]
            );
        }
        if end.is_ok() {
            break;
        }
        kills += 1;
    }
    assert!(kills > 100, "{kills}");
}
