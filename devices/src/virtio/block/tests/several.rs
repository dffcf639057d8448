//! Disks of several files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::bench::{Bench, engines};
use super::model::{SECTORS, check, step};
use crate::virtio::block::disk::{Disk, SECTOR};
use crate::virtio::block::image::ImageError;
use crate::virtio::block::{Cache, Layout, Options, open};

fn files(directory: &TempDir, sectors: &[u64]) -> Vec<PathBuf> {
    let file = |(number, sectors): (usize, &u64)| {
        let path = directory.path().join(format!("{number}.img"));
        fs::File::create(&path)
            .unwrap()
            .set_len(sectors * SECTOR)
            .unwrap();
        path
    };
    sectors.iter().enumerate().map(file).collect()
}

#[test]
fn one_file_goes_on_where_the_last_one_ended() {
    for engine in engines() {
        let directory = TempDir::new().unwrap();
        let paths = files(&directory, &[3, 1, 4]);
        let options = Options {
            engine,
            ..Options::default()
        };
        let disk = open(&paths, &options).unwrap();
        assert_eq!(disk.info().capacity, 8 * SECTOR);
        let mut bench = Bench::new(&disk);
        bench.write(2 * SECTOR, &[&[7; 512 * 4]]).unwrap();
        bench.flush().unwrap();
        let read = |file: usize| fs::read(&paths[file]).unwrap();
        assert_eq!(read(0), [[0; 512], [0; 512], [7; 512]].concat());
        assert_eq!(read(1), [7; 512]);
        assert_eq!(read(2), [[7; 512], [7; 512], [0; 512], [0; 512]].concat());
    }
}

#[test]
fn stripes_take_turns_and_are_discarded_together() {
    for engine in engines() {
        let directory = TempDir::new().unwrap();
        let paths = files(&directory, &[4096, 4096]);
        let options = Options {
            engine,
            layout: Layout::Stripe(64 << 10),
            ..Options::default()
        };
        let disk = open(&paths, &options).unwrap();
        let mut bench = Bench::new(&disk);
        bench
            .write(0, &[&vec![1; 64 << 10], &vec![2; 64 << 10]])
            .unwrap();
        bench.write(128 << 10, &[&[3; 512]]).unwrap();
        let first = fs::read(&paths[0]).unwrap();
        assert!(first[..64 << 10].iter().all(|byte| *byte == 1));
        assert!(first[64 << 10..][..512] == [3; 512]);
        assert!(
            fs::read(&paths[1]).unwrap()[..64 << 10]
                .iter()
                .all(|byte| *byte == 2)
        );
        if !disk.info().discard {
            return eprintln!("skipped: the temporary directory cannot punch holes");
        }
        bench.write(0, &[&vec![9; 2 << 20]]).unwrap();
        bench.flush().unwrap();
        let allocated = || -> u64 {
            let blocks = |path| fs::metadata(path).unwrap().blocks();
            paths.iter().map(blocks).sum::<u64>() * 512
        };
        let before = allocated();
        bench.discard(0, 2 << 20).unwrap();
        assert!(
            before - allocated() >= 2 << 20,
            "{before} to {}",
            allocated()
        );
    }
}

#[test]
fn files_that_cannot_be_striped_are_named() {
    let directory = TempDir::new().unwrap();
    let refused = |sectors: &[u64]| {
        let options = Options {
            layout: Layout::Stripe(64 << 10),
            ..Options::default()
        };
        let error = open(&files(&directory, sectors), &options).unwrap_err();
        assert!(matches!(error, ImageError::Stripe { .. }), "{error}");
        error.to_string()
    };
    assert!(refused(&[128, 256]).contains("1.img"));
    assert!(refused(&[129, 129]).contains("0.img"));
    let none: [PathBuf; 0] = [];
    assert!(open(&none, &Options::default()).is_err());
}

#[test]
fn each_file_is_locked() {
    let directory = TempDir::new().unwrap();
    let paths = files(&directory, &[8, 8]);
    let _first = open(&paths, &Options::default()).unwrap();
    for path in &paths {
        let error = open(&[path], &Options::default()).unwrap_err();
        assert!(matches!(error, ImageError::Locked { .. }), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn every_byte_arrives_wherever_the_files_meet(
        steps in vec(step(), 1..16),
        cuts in vec(1..SECTORS, 0..4),
        direct: bool,
    ) {
        let directory = TempDir::new().unwrap();
        let mut ends = [cuts, vec![SECTORS]].concat();
        ends.sort_unstable();
        ends.dedup();
        let mut from = 0;
        let linear: Vec<u64> = ends.iter().map(|end| end - std::mem::replace(&mut from, *end)).collect();
        let striped = vec![SECTORS / 4; 4];
        for engine in engines() {
            for (layout, sectors) in [(Layout::Linear, &linear), (Layout::Stripe(4096), &striped)] {
                let options = Options {
                    engine,
                    layout,
                    cache: if direct { Cache::None } else { Cache::Writeback },
                    ..Options::default()
                };
                let disk: Arc<dyn Disk> = match open(&files(&directory, sectors), &options) {
                    // Blocks of the file system that are larger than sectors.
                    Err(ImageError::NoDirect { .. } | ImageError::PartialBlock { .. }) => continue,
                    disk => disk.unwrap(),
                };
                prop_assert_eq!(disk.info().capacity, SECTORS * SECTOR);
                check(&disk, &steps);
            }
        }
    }
}
