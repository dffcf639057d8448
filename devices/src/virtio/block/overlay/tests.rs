//! Overlays on real files: what is written over a base, what is left of it, and what a crash leaves.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::format::{FormatError, data_at, file_len, page_at};
use crate::virtio::block::disk::{Disk, SECTOR};
use crate::virtio::block::image::ImageError;
use crate::virtio::block::tests::bench::{Bench, engines};
use crate::virtio::block::{Cache, Engine, Keep, Options, open};

/// A base and a place for its overlay.
#[derive(Debug)]
struct Stage {
    directory: TempDir,
    base: PathBuf,
    top: PathBuf,
}

const BLOCK: u64 = 4096;

impl Stage {
    /// A base of so many bytes, each of them the number of its sector and one.
    fn new(len: u64) -> Self {
        let directory = TempDir::new().unwrap();
        let base = directory.path().join("base.img");
        let bytes: Vec<u8> = (0..len)
            .map(|at| (at / SECTOR + 1).to_le_bytes()[0])
            .collect();
        fs::write(&base, bytes).unwrap();
        Self {
            top: directory.path().join("top.mvm"),
            base,
            directory,
        }
    }

    fn open(&self, engine: Engine) -> Result<Arc<dyn Disk>, ImageError> {
        self.open_as(engine, Cache::Writeback)
    }

    fn open_as(&self, engine: Engine, cache: Cache) -> Result<Arc<dyn Disk>, ImageError> {
        let options = Options {
            engine,
            cache,
            overlay: Some(Keep::File(self.top.clone())),
            ..Options::default()
        };
        open(&[&self.base], &options)
    }

    fn bench(&self, engine: Engine) -> Bench {
        Bench::new(&self.open(engine).unwrap())
    }

    fn refusal(&self) -> String {
        let message = self.open(Engine::Sync).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        message
    }

    fn base_bytes(&self) -> Vec<u8> {
        fs::read(&self.base).unwrap()
    }
}

/// As a process that is killed: nothing is done about the disk any more, but its lock goes.
fn kill(bench: Bench, top: &Path) {
    let before = fs::read(top).unwrap();
    drop(bench);
    fs::write(top, before).unwrap();
}

#[test]
fn the_base_stays_and_the_overlay_is_found_again() {
    for engine in engines() {
        let stage = Stage::new(64 * SECTOR);
        let before = stage.base_bytes();
        let mut expected = before.clone();
        {
            let disk = stage.open(engine).unwrap();
            assert!(
                !stage.top.exists(),
                "nothing is made before the checks are over"
            );
            assert_eq!(disk.info().capacity, 64 * SECTOR);
            let mut bench = Bench::new(&disk);
            assert_eq!(bench.read(0, &[64 * 512]).unwrap(), before);
            // A part of a block, a whole one, and parts of two.
            bench.write(512, &[&[0xa1; 512]]).unwrap();
            bench.write(4096, &[&[0xa2; 4096]]).unwrap();
            bench.write(8192 + 3584, &[&[0xa3; 1024]]).unwrap();
            expected[512..1024].fill(0xa1);
            expected[4096..8192].fill(0xa2);
            expected[8192 + 3584..8192 + 4608].fill(0xa3);
            assert_eq!(bench.read(0, &[64 * 512]).unwrap(), expected);
            bench.flush().unwrap();
        }
        assert_eq!(stage.base_bytes(), before);
        let mut bench = stage.bench(engine);
        assert_eq!(bench.read(0, &[64 * 512]).unwrap(), expected, "{engine:?}");
        assert_eq!(stage.base_bytes(), before);
    }
}

#[test]
fn memory_forgets() {
    for engine in engines() {
        let stage = Stage::new(16 * SECTOR);
        let options = Options {
            engine,
            overlay: Some(Keep::Memory),
            ..Options::default()
        };
        let disk = || open(&[&stage.base], &options).unwrap();
        let mut first = Bench::new(&disk());
        // Two at once: the base is shared.
        let mut second = Bench::new(&disk());
        first.write(0, &[&[0xaa; 512]]).unwrap();
        second.write_as(512, &[&[0xbb; 512]], true).unwrap();
        first.flush().unwrap();
        assert_eq!(
            first.read(0, &[512, 512]).unwrap(),
            [[0xaa; 512], [2; 512]].concat()
        );
        assert_eq!(
            second.read(0, &[512, 512]).unwrap(),
            [[1; 512], [0xbb; 512]].concat()
        );
        drop((first, second));
        let mut third = Bench::new(&disk());
        assert_eq!(
            third.read(0, &[512, 512]).unwrap(),
            [[1; 512], [2; 512]].concat()
        );
        assert_eq!(fs::read_dir(stage.directory.path()).unwrap().count(), 1);
    }
}

#[test]
fn what_was_flushed_survives_a_kill_and_the_rest_is_as_before() {
    for engine in engines() {
        let stage = Stage::new(16 * BLOCK);
        let mut bench = stage.bench(engine);
        bench.write(0, &[&[0xaa; 4096]]).unwrap();
        bench.write(BLOCK + 512, &[&[0xbb; 512]]).unwrap();
        bench.flush().unwrap();
        bench.write(2 * BLOCK, &[&[0xcc; 4096]]).unwrap();
        bench.write(3 * BLOCK + 512, &[&[0xdd; 512]]).unwrap();
        bench.write(0, &[&[0xee; 512]]).unwrap();
        kill(bench, &stage.top);

        let mut bench = stage.bench(engine);
        let mut expected = stage.base_bytes();
        expected[..4096].fill(0xaa);
        // What was there already is written in place.
        expected[..512].fill(0xee);
        expected[4096 + 512..4096 + 1024].fill(0xbb);
        assert_eq!(bench.read(0, &[16 * 4096]).unwrap(), expected, "{engine:?}");
        // The data that no bit speaks of is not mistaken for the rest of a block.
        bench.write(2 * BLOCK + 512, &[&[0xff; 512]]).unwrap();
        expected[2 * 4096 + 512..2 * 4096 + 1024].fill(0xff);
        assert_eq!(bench.read(0, &[16 * 4096]).unwrap(), expected, "{engine:?}");
    }
}

#[test]
fn a_disk_that_is_let_go_has_everything() {
    for engine in engines() {
        let stage = Stage::new(4 * BLOCK);
        let mut bench = stage.bench(engine);
        bench.write(BLOCK, &[&[0xaa; 4096]]).unwrap();
        drop(bench);
        let mut bench = stage.bench(engine);
        assert_eq!(bench.read(BLOCK, &[4096]).unwrap(), [0xaa; 4096]);
    }
}

#[test]
fn zeroes_hide_the_base_and_discards_give_space_back() {
    for engine in engines() {
        let stage = Stage::new(512 * BLOCK);
        let mut bench = stage.bench(engine);
        let allocated = || fs::metadata(&stage.top).unwrap().blocks() * 512;
        bench.zero(512, 6 * BLOCK, true).unwrap();
        let mut expected = stage.base_bytes();
        expected[512..512 + 6 * 4096].fill(0);
        assert_eq!(bench.read(0, &[512 * 4096]).unwrap(), expected);
        bench.flush().unwrap();
        assert!(allocated() < 16 * BLOCK, "{} for zeroes", allocated());

        bench.write(0, &[&vec![0xaa; 1 << 20]]).unwrap();
        bench.flush().unwrap();
        let full = allocated();
        assert!(full >= 1 << 20);
        bench.discard(0, 1 << 20).unwrap();
        assert!(full - allocated() >= 1 << 20, "{full} to {}", allocated());
        // What the base has is not touched by a discard.
        bench.discard(300 * BLOCK, BLOCK).unwrap();
        expected[..1 << 20].fill(0);
        assert_eq!(bench.read(0, &[512 * 4096]).unwrap(), expected);
    }
}

#[test]
fn a_short_last_block_is_a_block() {
    for engine in engines() {
        let stage = Stage::new(BLOCK + 3 * SECTOR);
        let mut bench = stage.bench(engine);
        bench.write(BLOCK + 1024, &[&[0xaa; 512]]).unwrap();
        let mut expected = stage.base_bytes();
        expected[4096 + 1024..].fill(0xaa);
        assert_eq!(bench.read(0, &[4096 + 1536]).unwrap(), expected);
        bench.zero(BLOCK, 3 * SECTOR, false).unwrap();
        drop(bench);
        let mut bench = stage.bench(engine);
        assert_eq!(bench.read(BLOCK, &[1536]).unwrap(), [0; 1536]);
    }
}

/// The map has a page for each 126 MiB, between the data.
#[test]
fn the_data_goes_on_behind_a_page_of_the_map() {
    for engine in engines() {
        let stage = Stage::new(BLOCK);
        let base = fs::File::options().write(true).open(&stage.base).unwrap();
        base.set_len(300 << 20).unwrap();
        let at = (126 << 20) - 2048;
        base.write_all_at(&[7; 8192], at - 2048).unwrap();
        let mut bench = stage.bench(engine);
        let before = bench.read(at - 2048, &[8192]).unwrap();
        assert_eq!(before, [7; 8192]);
        bench.write(at, &[&[8; 4096]]).unwrap();
        bench.write(299 << 20, &[&[9; 512]]).unwrap();
        drop(bench);
        let mut bench = stage.bench(engine);
        let mut expected = [7; 8192];
        expected[2048..2048 + 4096].fill(8);
        assert_eq!(bench.read(at - 2048, &[8192]).unwrap(), expected);
        assert_eq!(
            bench.read(299 << 20, &[1024]).unwrap(),
            [[9; 512], [0; 512]].concat()
        );
        let info = fs::metadata(&stage.top).unwrap();
        assert_eq!(info.len(), file_len(300 << 20));
        assert!(info.blocks() * 512 < 1 << 20, "it is sparse");
    }
}

#[test]
fn one_overlay_has_one_user() {
    let stage = Stage::new(BLOCK);
    let _first = stage.bench(Engine::Sync);
    let message = stage.refusal();
    assert!(message.contains("top.mvm: is in use"), "{message}");
}

#[test]
fn an_overlay_of_another_base_is_refused() {
    let stage = Stage::new(64 * BLOCK);
    drop(stage.bench(Engine::Sync));
    let base = fs::File::options().write(true).open(&stage.base).unwrap();
    let before = stage.base_bytes();
    // In the first bytes, in a sampled block, and in the size.
    for (at, len) in [
        (1024, 64 * BLOCK),
        (63 * BLOCK, 64 * BLOCK),
        (0, 65 * BLOCK),
    ] {
        if len == 64 * BLOCK {
            base.write_all_at(b"changed", at).unwrap();
        }
        base.set_len(len).unwrap();
        let message = stage.refusal();
        assert!(message.contains("another image than"), "{message}");
        base.set_len(64 * BLOCK).unwrap();
        base.write_all_at(&before, 0).unwrap();
        stage.open(Engine::Sync).unwrap();
    }
}

/// What an interrupted `begin` leaves behind.
#[test]
fn an_overlay_that_was_never_finished_is_begun_again() {
    let stage = Stage::new(64 * BLOCK);
    drop(stage.bench(Engine::Sync));
    let whole = fs::read(&stage.top).unwrap();
    for len in [0, 4096] {
        fs::write(&stage.top, &whole[..len]).unwrap();
        let mut bench = stage.bench(Engine::Sync);
        bench.write(63 * BLOCK, &[&[0xaa; 4096]]).unwrap();
        drop(bench);
        let mut bench = stage.bench(Engine::Sync);
        assert_eq!(bench.read(63 * BLOCK, &[4096]).unwrap(), [0xaa; 4096]);
        drop(bench);
        assert_eq!(
            fs::metadata(&stage.top).unwrap().len(),
            file_len(64 * BLOCK)
        );
    }
}

/// Each way to damage a file, and what is said of it. None is opened, and none is changed.
#[test]
fn damaged_files_are_refused_untouched() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage, &str); 14] = [
        ("empty but for zeroes", |f| f.fill(0), "not an overlay"),
        ("another magic", |f| f[0] ^= 1, "not an overlay"),
        ("a raw image", |f| f[..4096].fill(0xaa), "not an overlay"),
        ("less than a header", |f| f.truncate(512), "not an overlay"),
        ("a later version", |f| f[8] = 2, "of version 2"),
        ("a bit of the header", |f| f[17] ^= 4, "damaged header"),
        (
            "another block size",
            |f| sealed(f, 12, &512u32.to_le_bytes()),
            "damaged header",
        ),
        (
            "no capacity",
            |f| sealed(f, 16, &0u64.to_le_bytes()),
            "damaged header",
        ),
        (
            "half a sector",
            |f| sealed(f, 16, &262_145u64.to_le_bytes()),
            "damaged header",
        ),
        (
            "a disk without end",
            |f| sealed(f, 16, &u64::MAX.to_le_bytes()),
            "damaged header",
        ),
        (
            "a huge disk",
            |f| sealed(f, 16, &(1u64 << 61).to_le_bytes()),
            "cut off",
        ),
        (
            "less than its base",
            |f| sealed(f, 24, &(1u64 << 40).to_le_bytes()),
            "damaged header",
        ),
        (
            "an unknown feature",
            |f| sealed(f, 48, &[1]),
            "does not know (0x1)",
        ),
        ("its last block", |f| f.truncate(f.len() - 1024), "cut off"),
    ];
    let stage = Stage::new(64 * BLOCK);
    let mut bench = stage.bench(Engine::Sync);
    bench.write(0, &[&[0xaa; 8192]]).unwrap();
    drop(bench);
    let whole = fs::read(&stage.top).unwrap();
    let refused = |bytes: &[u8], words: &str| {
        fs::write(&stage.top, bytes).unwrap();
        let message = stage.refusal();
        assert!(message.contains("top.mvm"), "{message}");
        assert!(message.contains(words), "no '{words}' in {message}");
        assert!(
            fs::read(&stage.top).unwrap() == bytes,
            "{words}: it was changed"
        );
    };
    for (name, damage, words) in damages {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        assert_ne!(bytes, whole, "{name}");
        refused(&bytes, words);
    }
    // Each byte of the sector of the map that is used.
    let page = usize::try_from(page_at(0)).unwrap();
    for at in 0..512 {
        let mut bytes = whole.clone();
        bytes[page + at] ^= 0x10;
        refused(&bytes, "damaged map (sector 0)");
    }
    // A whole sector in another's place.
    let mut bytes = whole.clone();
    bytes.copy_within(page..page + 512, page + 512);
    refused(&bytes, "damaged map (sector 1)");
    fs::write(&stage.top, &whole).unwrap();
    stage.open(Engine::Sync).unwrap();
}

/// Changes the header and makes its checksum fit.
fn sealed(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32fast::hash(&file[..508]);
    file[508..512].copy_from_slice(&crc.to_le_bytes());
}

/// Terabytes of nothing are opened at once.
#[test]
fn a_vast_sparse_overlay_costs_what_is_in_it() {
    let directory = TempDir::new().unwrap();
    let base = directory.path().join("base.img");
    let len = 8 << 40;
    fs::File::create(&base).unwrap().set_len(len).unwrap();
    let options = Options {
        overlay: Some(Keep::File(directory.path().join("top.mvm"))),
        ..Options::default()
    };
    let at = len - BLOCK;
    let mut bench = Bench::new(&open(&[&base], &options).unwrap());
    bench.write(at, &[&[0xaa; 4096]]).unwrap();
    drop(bench);
    let mut bench = Bench::new(&open(&[&base], &options).unwrap());
    assert_eq!(
        bench.read(at - BLOCK, &[8192]).unwrap(),
        [[0; 4096], [0xaa; 4096]].concat()
    );
}

#[test]
fn an_overlay_that_cannot_be_made_is_one_line() {
    let mut stage = Stage::new(BLOCK);
    stage.top = stage.directory.path().join("none/top.mvm");
    assert!(stage.refusal().contains("no overlay can be made"));
    stage.top = stage.base.clone();
    let message = stage.refusal();
    assert!(
        message.contains("is in use") || message.contains("not an overlay"),
        "{message}"
    );
    let stage = Stage::new(BLOCK);
    fs::create_dir(&stage.top).unwrap();
    assert!(stage.refusal().contains("is a directory"));
}

#[test]
fn the_places_in_the_file_are_those_of_its_description() {
    assert_eq!(
        (page_at(0), data_at(0), data_at(32255)),
        (4096, 8192, 8192 + 32255 * 4096)
    );
    assert_eq!(page_at(1), data_at(32255) + 4096);
    assert_eq!(data_at(32256), page_at(1) + 4096);
    assert_eq!(file_len(BLOCK + 1), data_at(1) + 4096);
    assert_eq!(FormatError::Magic.to_string().lines().count(), 1);
}

/// One thing that happens to the disk.
#[derive(Debug, Clone)]
enum Step {
    Write { sector: u64, sectors: u64, byte: u8 },
    Zero { sector: u64, sectors: u64 },
    Discard { sector: u64, sectors: u64 },
    Flush,
    Reopen,
    Kill,
}

const SECTORS: u64 = 80;

fn step() -> impl Strategy<Value = Step> {
    let place =
        || (0..SECTORS).prop_flat_map(|sector| (Just(sector), 1..=(SECTORS - sector).min(20)));
    prop_oneof![
        6 => (place(), any::<u8>()).prop_map(|((sector, sectors), byte)| Step::Write {
            sector, sectors, byte
        }),
        2 => place().prop_map(|(sector, sectors)| Step::Zero { sector, sectors }),
        1 => place().prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

/// What the sectors may hold: each has a value for sure, or one of several after a kill or a discard.
type Model = Vec<Vec<u8>>;

fn check(bench: &mut Bench, model: &mut Model) {
    let bytes = bench
        .read(0, &[usize::try_from(SECTORS * SECTOR).unwrap()])
        .unwrap();
    for (at, (sector, allowed)) in bytes.chunks_exact(512).zip(model).enumerate() {
        assert!(
            sector.iter().all(|byte| *byte == sector[0]),
            "sector {at} is torn"
        );
        assert!(
            allowed.contains(&sector[0]),
            "sector {at}: {} is not of {allowed:?}",
            sector[0]
        );
        *allowed = vec![sector[0]];
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn whatever_happens_each_sector_is_what_was_written_last(
        steps in vec(step(), 1..40),
        direct: bool,
    ) {
        for engine in engines() {
            let stage = Stage::new(SECTORS * SECTOR);
            let cache = if direct { Cache::None } else { Cache::Writeback };
            let reopen = || Bench::new(&stage.open_as(engine, cache).unwrap());
            let mut bench = match stage.open_as(engine, cache) {
                Err(ImageError::NoDirect { .. }) => continue,
                disk => Bench::new(&disk.unwrap()),
            };
            // What is there for sure, and what was flushed last.
            let first: Model = stage.base_bytes().chunks_exact(512).map(|s| vec![s[0]]).collect();
            let (mut now, mut flushed) = (first.clone(), first);
            let range = |sector: u64, sectors: u64| {
                let from = usize::try_from(sector).unwrap();
                from..from + usize::try_from(sectors).unwrap()
            };
            for step in &steps {
                match *step {
                    Step::Write { sector, sectors, byte } => {
                        let data = vec![byte; range(0, sectors).len() * 512];
                        bench.write(sector * SECTOR, &[&data]).unwrap();
                        now[range(sector, sectors)].fill(vec![byte]);
                        // Without a flush a crash may or may not keep it.
                        flushed[range(sector, sectors)].iter_mut().for_each(|s| s.push(byte));
                    }
                    Step::Zero { sector, sectors } => {
                        bench.zero(sector * SECTOR, sectors * SECTOR, true).unwrap();
                        now[range(sector, sectors)].fill(vec![0]);
                        flushed[range(sector, sectors)].iter_mut().for_each(|s| s.push(0));
                    }
                    Step::Discard { sector, sectors } => {
                        bench.discard(sector * SECTOR, sectors * SECTOR).unwrap();
                        now[range(sector, sectors)].iter_mut().for_each(|s| s.push(0));
                        flushed[range(sector, sectors)].iter_mut().for_each(|s| s.push(0));
                    }
                    Step::Flush => {
                        bench.flush().unwrap();
                        check(&mut bench, &mut now);
                        flushed = now.clone();
                    }
                    Step::Reopen => {
                        check(&mut bench, &mut now);
                        drop(bench);
                        bench = reopen();
                        flushed = now.clone();
                    }
                    Step::Kill => {
                        kill(bench, &stage.top);
                        bench = reopen();
                        now = flushed.clone();
                        check(&mut bench, &mut now);
                        flushed = now.clone();
                    }
                }
                check(&mut bench, &mut now);
            }
        }
    }
}
