//! Raw disks on real files, by either engine.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use tempfile::{NamedTempFile, TempDir};

use super::bench::{Bench, DEPTH, engines};
use crate::virtio::block::disk::{Disk, DiskInfo, DiskOp, Progress, SECTOR, Tag};
use crate::virtio::block::file::DiskFile;
use crate::virtio::block::image::{Access, ImageError};
use crate::virtio::block::layout::Layout;
use crate::virtio::block::raw::Raw;
use crate::virtio::block::store::StoredDisk;
use crate::virtio::block::{Engine, Options, open};

/// An image of `sectors`, each byte its sector's number and one.
fn image(sectors: u8) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (1..=sectors).flat_map(|n| [n; 512]).collect();
    fs::write(file.path(), bytes).unwrap();
    file
}

fn disk(path: &Path, engine: Engine, read_only: bool) -> Arc<dyn Disk> {
    let options = Options {
        engine,
        read_only,
        ..Options::default()
    };
    open(&[path], &options).unwrap()
}

fn info(path: &Path, read_only: bool) -> DiskInfo {
    disk(path, Engine::Sync, read_only).info()
}

/// Runs `test` with each engine on an image of its own.
fn each(sectors: u8, test: impl Fn(&mut Bench, &NamedTempFile)) {
    for engine in engines() {
        let file = image(sectors);
        test(&mut Bench::new(&disk(file.path(), engine, false)), &file);
    }
}

#[test]
fn tells_its_size_and_abilities() {
    let file = image(3);
    let writable = info(file.path(), false);
    assert_eq!((writable.capacity, writable.read_only), (3 * SECTOR, false));
    assert!(writable.block_size.is_power_of_two());
    assert!((512..=4096).contains(&writable.block_size));
    let info = info(file.path(), true);
    assert!(info.read_only && !info.discard);
}

#[test]
fn reads_and_writes_in_pieces() {
    each(4, |bench, file| {
        let data = bench.read(512, &[1, 600, 423]).unwrap();
        assert_eq!(data, [[2; 512], [3; 512]].concat());
        bench.write(1024, &[&[7; 100], &[8; 412]]).unwrap();
        bench.write_as(1536, &[&[9; 512]], true).unwrap();
        bench.flush().unwrap();
        assert_eq!(bench.read(0, &[]).unwrap(), []);

        let mut expected = [[1; 512], [2; 512], [8; 512], [9; 512]].concat();
        expected[1024..1124].fill(7);
        assert_eq!(fs::read(file.path()).unwrap(), expected);
    });
}

#[test]
fn more_buffers_than_one_call_takes() {
    each(200, |bench, file| {
        let data = bench.read(0, &[64; 1600]).unwrap();
        assert_eq!(data, fs::read(file.path()).unwrap());
        let parts: Vec<Vec<u8>> = (0..1600u32).map(|n| vec![n.to_le_bytes()[0]; 64]).collect();
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        bench.write(0, &parts).unwrap();
        assert_eq!(fs::read(file.path()).unwrap(), parts.concat());
    });
}

#[test]
fn many_at_once_end_each_on_its_own() {
    for engine in engines() {
        let file = image(200);
        let mut bench = Bench::new(&disk(file.path(), engine, false));
        let mut memory = vec![[0u8; 512]; usize::from(DEPTH)];
        for round in 0..20u64 {
            let mut pending = 0;
            let mut ended = Vec::new();
            for (tag, bytes) in (0..).zip(&mut memory) {
                let buffers = [vm_memory::VolatileSlice::from(&mut bytes[..])];
                // The last one of each round is beyond the end.
                let sector = match tag + 1 == u32::from(DEPTH) {
                    true => 200,
                    false => round * 7 + u64::from(tag),
                };
                let op = DiskOp::Read {
                    offset: sector * SECTOR,
                    buffers: &buffers,
                };
                match bench.lane.submit(Tag(tag), op) {
                    Progress::Done(result) => ended.push((Tag(tag), result)),
                    Progress::Pending => pending += 1,
                }
            }
            bench.lane.start();
            let before = ended.len();
            while ended.len() < before + pending {
                ended.extend(bench.lane.completed(true));
            }
            ended.sort_by_key(|(tag, _)| tag.0);
            for (tag, (ended, result)) in (0..).zip(&ended) {
                assert_eq!(ended.0, tag);
                assert_eq!(result.is_err(), tag + 1 == u32::from(DEPTH), "{result:?}");
            }
            for (tag, bytes) in (0..DEPTH - 1).zip(&memory) {
                let byte = u8::try_from(round * 7 + u64::from(tag) + 1).unwrap();
                assert_eq!(bytes, &[byte; 512], "{engine:?}");
            }
        }
        assert!(bench.lane.completed(true).is_empty(), "nothing is left");
    }
}

#[test]
fn a_lane_that_goes_leaves_nothing_under_way() {
    for engine in engines() {
        let file = image(8);
        let disk = disk(file.path(), engine, false);
        let mut bench = Bench::new(&disk);
        let mut bytes = [0xab; 4096];
        let buffers = [vm_memory::VolatileSlice::from(&mut bytes[..])];
        let op = DiskOp::Write {
            offset: 0,
            buffers: &buffers,
            through: true,
        };
        // Submitted, maybe not even started: dropping the lane ends it.
        let _ = bench.lane.submit(Tag(3), op);
        drop(bench);
        assert_eq!(fs::read(file.path()).unwrap(), [0xab; 4096], "{engine:?}");
    }
}

/// A ring that had the file registered goes only after a while.
#[test]
fn the_lock_goes_with_the_disk() {
    for engine in engines() {
        let file = image(8);
        for _ in 0..20 {
            let disk = disk(file.path(), engine, false);
            let mut bench = Bench::new(&disk);
            bench.write(0, &[&[1; 512]]).unwrap();
            drop(bench);
            drop(disk);
            file.reopen().unwrap().try_lock().unwrap();
        }
    }
}

#[test]
fn an_image_cut_off_under_way_is_an_error_and_not_zeroes() {
    each(4, |bench, file| {
        file.as_file().set_len(1000).unwrap();
        let error = bench.read(512, &[1024]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    });
}

#[test]
fn writes_to_a_read_only_disk_fail() {
    for engine in engines() {
        let file = image(1);
        let mut bench = Bench::new(&disk(file.path(), engine, true));
        bench.write(0, &[&[0; 512]]).unwrap_err();
        bench.zero(0, 512, false).unwrap_err();
        assert_eq!(fs::read(file.path()).unwrap(), [1; 512]);
    }
}

/// The null device takes every write and refuses fdatasync, which makes a sync visible.
#[test]
fn through_and_flush_reach_fdatasync() {
    for engine in engines() {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let store = Raw::of(vec![DiskFile::of(null, 1 << 20)], Layout::Linear, false);
        let disk: Arc<dyn Disk> = Arc::new(StoredDisk::new(Arc::new(store), engine));
        let mut bench = Bench::new(&disk);
        let refused = |result: io::Result<()>| {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        };
        bench.write(0, &[&[1; 512]]).unwrap();
        // Sometimes the ring is done at once and sometimes later.
        for _ in 0..100 {
            refused(bench.write_as(0, &[&[1; 512]], true));
            refused(bench.flush());
        }
        bench.zero(0, 512, false).unwrap();
        refused(bench.run(DiskOp::WriteZeroes {
            offset: 0,
            len: 512,
            unmap: false,
            through: true,
        }));
    }
}

/// The full device has room for nothing.
#[test]
fn no_space_is_an_error() {
    for engine in engines() {
        let full = File::options()
            .read(true)
            .write(true)
            .open("/dev/full")
            .unwrap();
        let store = Raw::of(vec![DiskFile::of(full, 1 << 20)], Layout::Linear, false);
        let disk: Arc<dyn Disk> = Arc::new(StoredDisk::new(Arc::new(store), engine));
        let mut bench = Bench::new(&disk);
        let error = bench.write(0, &[&[1; 512]]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(bench.read(0, &[512]).unwrap(), [0; 512], "and it goes on");
    }
}

#[test]
fn zeroes_the_range_and_nothing_else() {
    const SECTORS: u64 = 1000;
    let content = vec![0xaa; usize::try_from(SECTORS * SECTOR).unwrap()];
    // Each way, and the one that is left when the host has none.
    for (punch, zero_range) in [(true, true), (true, false), (false, true), (false, false)] {
        for unmap in [false, true] {
            for (offset, len) in [(512, 512), (1024, 300 * SECTOR), (0, SECTORS * SECTOR)] {
                let file = NamedTempFile::new().unwrap();
                fs::write(file.path(), &content).unwrap();
                let disk = DiskFile::open(file.path(), Access::default()).unwrap();
                disk.restrict(punch, zero_range);
                disk.write_zeroes(offset, len, unmap).unwrap();
                let mut expected = content.clone();
                let from = usize::try_from(offset).unwrap();
                expected[from..from + usize::try_from(len).unwrap()].fill(0);
                assert!(
                    fs::read(file.path()).unwrap() == expected,
                    "punch {punch}, zero_range {zero_range}, unmap {unmap}, {offset}+{len}"
                );
            }
        }
    }
}

#[test]
fn discard_gives_the_space_back() {
    const LEN: u64 = 4 << 20;
    for engine in engines() {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![0xaa; usize::try_from(LEN).unwrap()]).unwrap();
        let disk = disk(file.path(), engine, false);
        if !disk.info().discard {
            eprintln!("skipped: the file system of the temporary directory cannot punch holes");
            return;
        }
        let mut bench = Bench::new(&disk);
        bench.flush().unwrap();
        let blocks = || file.as_file().metadata().unwrap().blocks();
        let full = blocks();
        assert!(full * 512 >= LEN);

        let len = 2 << 20;
        bench.discard(1 << 20, len).unwrap();
        assert!((full - blocks()) * 512 >= len, "{full} to {}", blocks());
        bench.zero(0, 1 << 20, true).unwrap();
        assert!((full - blocks()) * 512 >= 3 << 20, "{full} to {}", blocks());
        assert_eq!(file.as_file().metadata().unwrap().len(), LEN);
        assert_eq!(bench.read(3 << 20, &[512]).unwrap(), [0xaa; 512]);

        // Zeroes that are to stay allocated do.
        let before = blocks();
        bench.zero(3 << 20, 1 << 20, false).unwrap();
        assert_eq!(blocks(), before);
    }
}

#[test]
fn asking_for_holes_changes_nothing() {
    let file = image(3);
    let before = file.as_file().metadata().unwrap();
    info(file.path(), false);
    let after = file.as_file().metadata().unwrap();
    assert_eq!(
        (before.len(), before.blocks()),
        (after.len(), after.blocks())
    );
    assert_eq!(fs::read(file.path()).unwrap()[1024..], [3; 512]);
}

#[test]
fn a_writer_is_alone_and_readers_share() {
    let file = image(1);
    let open = |read_only| {
        let options = Options {
            read_only,
            ..Options::default()
        };
        open(&[file.path()], &options)
    };
    let locked = |result: Result<Arc<dyn Disk>, ImageError>| {
        assert!(
            matches!(result, Err(ImageError::Locked { .. })),
            "{result:?}"
        );
    };
    let writer = open(false).unwrap();
    locked(open(false));
    locked(open(true));
    drop(writer);
    let readers = (open(true).unwrap(), open(true).unwrap());
    locked(open(false));
    drop(readers);
    open(false).unwrap();
}

#[test]
fn what_is_not_an_image_is_refused_untouched() {
    let directory = TempDir::new().unwrap();
    let of_len = |name: &str, len: usize| {
        let path = directory.path().join(name);
        fs::write(&path, vec![1; len]).unwrap();
        path
    };
    let cases = [
        (directory.path().join("none"), "no such file"),
        (directory.path().to_owned(), "is a directory"),
        ("/dev/null".into(), "neither a file nor a block device"),
        (of_len("empty", 0), "is empty"),
        (of_len("short", 511), "511 bytes is not a multiple of 512"),
        (of_len("odd", 1000), "truncate -s %512"),
        (of_len("file", 512).join("below"), "cannot be opened"),
    ];
    for (path, words) in cases {
        let before = fs::read(&path).ok();
        for read_only in [false, true] {
            let options = Options {
                read_only,
                ..Options::default()
            };
            let message = open(&[&path], &options).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
            assert!(
                message.starts_with(&path.display().to_string()),
                "{message}"
            );
            assert!(!message.contains('\n'), "{message}");
        }
        assert_eq!(fs::read(&path).ok(), before, "{}", path.display());
    }
}

/// Linux tells of a failed write-back once; whoever syncs later must not be told that all is well.
#[test]
fn what_a_sync_has_lost_stays_lost() {
    for engine in engines() {
        for (errno, lost) in [
            (libc::EIO, true),
            (libc::ENOSPC, true),
            (libc::EDQUOT, true),
            (libc::EINVAL, false),
        ] {
            let image = image(4);
            let file = DiskFile::of(image.reopen().unwrap(), 4 * SECTOR);
            file.sync_failed(&io::Error::from_raw_os_error(errno));
            let store = Raw::of(vec![file], Layout::Linear, false);
            let disk: Arc<dyn Disk> = Arc::new(StoredDisk::new(Arc::new(store), engine));
            let mut bench = Bench::new(&disk);
            for _ in 0..2 {
                let synced = bench.flush();
                assert_eq!(synced.is_err(), lost, "{synced:?}");
                // No error of the host's: it would not go away by being tried again.
                let errno = synced.err().and_then(|error| error.raw_os_error());
                assert_eq!(errno, None);
                let through = bench.write_as(512, &[&[7; 512]], true);
                assert_eq!(through.is_err(), lost, "{through:?}");
            }
            bench.write(512, &[&[9; 512]]).unwrap();
            assert_eq!(bench.read(512, &[512]).unwrap(), [9; 512]);
            assert_eq!(disk.flush().is_err(), lost);
        }
    }
}
