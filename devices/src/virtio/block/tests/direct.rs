//! Around the page cache, with buffers and offsets as no driver aligns them.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, VolatileSlice};

use super::bench::{Bench, engines};
use super::model::{SECTORS, check, step};
use crate::virtio::block::direct::Alignment;
use crate::virtio::block::disk::{Disk, DiskOp, Progress, SECTOR, Tag};
use crate::virtio::block::file::DiskFile;
use crate::virtio::block::image::{Access, ImageError};
use crate::virtio::block::layout::Layout;
use crate::virtio::block::raw::Raw;
use crate::virtio::block::store::StoredDisk;
use crate::virtio::block::{Cache, Engine, Options, open};

const DIRECT: Access = Access {
    read_only: false,
    direct: true,
    any_size: false,
};

/// A file around the page cache, unless the file system of the temporary directory knows no such thing.
fn file(image: &NamedTempFile) -> Option<DiskFile> {
    match DiskFile::open(image.path(), DIRECT) {
        Ok(file) => Some(file),
        Err(ImageError::NoDirect { .. }) => {
            eprintln!("skipped: the file system of the temporary directory has no O_DIRECT");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn direct_is_what_the_option_asks_for() {
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let Some(file) = file(&image) else { return };
    let flags = |fd| fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    // O_DIRECT, fcntl.h of x86-64 and most others: 040000, in the octal of fdinfo.
    let direct = |fd| {
        let info = flags(fd);
        let octal = info.lines().find_map(|line| line.strip_prefix("flags:"));
        i32::from_str_radix(octal.unwrap().trim(), 8).unwrap() & libc::O_DIRECT != 0
    };
    assert!(direct(file.fd()));
    drop(file);
    let file = DiskFile::open(image.path(), Access::default()).unwrap();
    assert!(!direct(file.fd()));
}

#[test]
fn a_size_that_whole_blocks_do_not_make_is_refused() {
    let align = Alignment {
        memory: 512,
        offset: 4096,
    };
    assert!(align.has_range(0, 8192) && !align.has_range(0, 4608) && !align.has_range(512, 4096));
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(512 * 3).unwrap();
    let options = Options {
        cache: Cache::None,
        ..Options::default()
    };
    // Whether blocks are larger here is the host's affair; either way it is one line.
    if let Err(error) = open(&[image.path()], &options) {
        let message = error.to_string();
        assert!(message.contains("cache=writeback"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

/// Each reads the block that all of them are in, and writes it back.
#[test]
fn parts_of_one_block_written_at_once_all_arrive() {
    for engine in engines() {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(4 << 12).unwrap();
        let Some(file) = file(&image) else { return };
        let file = file.with_alignment(Alignment {
            memory: 512,
            offset: 4096,
        });
        let disk: Arc<dyn Disk> = Arc::new(StoredDisk::new(
            Arc::new(Raw::of(vec![file], Layout::Linear, false)),
            engine,
        ));
        assert!(
            !disk.is_parallel(),
            "lanes would not see each other's writes"
        );
        let mut bench = Bench::new(&disk);
        let mut memory = Sectors([[0; 512]; 8]);
        for round in 0..10u8 {
            let mut pending = 0;
            for (tag, bytes) in (0u8..).zip(&mut memory.0) {
                bytes.fill(round * 8 + tag);
                let whole = tag == 7;
                let buffers = [VolatileSlice::from(&mut bytes[..])];
                let many = [buffers[0]; 8];
                // Seven sectors of the second block, and all of the third.
                let op = DiskOp::Write {
                    offset: if whole {
                        8192
                    } else {
                        4096 + u64::from(tag) * SECTOR
                    },
                    buffers: if whole { &many } else { &buffers },
                    through: false,
                };
                match bench.lane.submit(Tag(tag.into()), op) {
                    Progress::Done(result) => result.unwrap(),
                    Progress::Pending => pending += 1,
                }
            }
            bench.finish(pending);
            let mut expected: Vec<u8> = (0..7).flat_map(|tag| [round * 8 + tag; 512]).collect();
            expected.extend([0; 512]);
            expected.extend([round * 8 + 7; 4096]);
            assert_eq!(bench.read(4096, &[8192]).unwrap(), expected);
        }
    }
}

/// Whether anything of `file` arrives before a lane has been told to start the four reads that it was given.
fn begins_early(file: DiskFile, limit: Duration) -> bool {
    let store = Raw::of(vec![file], Layout::Linear, false);
    let disk: Arc<dyn Disk> = Arc::new(StoredDisk::new(Arc::new(store), Engine::IoUring));
    // Gone after the lane, which waits for what the kernel has.
    let mut memory = Sectors([[0xee; 512]; 8]);
    let mut bench = Bench::new(&disk);
    let (buffers, _) = memory.0.split_at_mut(4);
    let buffers: Vec<_> = buffers
        .iter_mut()
        .map(|bytes| VolatileSlice::from(&mut bytes[..]))
        .collect();
    for (tag, buffer) in (0..).zip(&buffers) {
        let op = DiskOp::Read {
            offset: u64::from(tag) * SECTOR,
            buffers: std::slice::from_ref(buffer),
        };
        assert!(matches!(bench.lane.submit(Tag(tag), op), Progress::Pending));
    }
    let arrived = || buffers[0].read_obj::<u8>(0).unwrap() == 0;
    let asked = Instant::now();
    while !arrived() && asked.elapsed() < limit {
        thread::sleep(Duration::from_millis(1));
    }
    let early = arrived();
    bench.finish(buffers.len());
    assert!(arrived());
    early
}

#[test]
fn a_disk_begins_while_more_is_made_ready_for_it() {
    if !engines().contains(&Engine::IoUring) {
        return;
    }
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let cached = DiskFile::open(image.path(), Access::default()).unwrap();
    assert!(!begins_early(cached, Duration::ZERO));
    let Some(direct) = file(&image) else { return };
    assert!(begins_early(direct, Duration::from_secs(60)));
}

/// Where O_DIRECT takes them from as they are.
#[repr(align(512))]
struct Sectors([[u8; 512]; 8]);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(30) })]

    #[test]
    fn every_byte_arrives_whatever_the_alignment(steps in vec(step(), 1..16), zero_range: bool) {
        let image = NamedTempFile::new().unwrap();
        for engine in engines() {
            for (memory, offset) in [(512, 512), (4096, 512), (512, 4096), (4096, 4096)] {
                image.as_file().set_len(0).unwrap();
                image.as_file().set_len(SECTORS * SECTOR).unwrap();
                let Some(file) = file(&image) else { return Ok(()) };
                let file = file.with_alignment(Alignment { memory, offset });
                file.restrict(true, zero_range);
                let store = Raw::of(vec![file], Layout::Linear, false);
                let disk: Arc<dyn Disk> = Arc::new(StoredDisk::new(Arc::new(store), engine));
                check(&disk, &steps);
            }
        }
    }
}
