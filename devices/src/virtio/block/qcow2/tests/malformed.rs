//! Tables: what is wrong with them is told when the image is opened, or is an I/O error.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{CLUSTER, Stage, disk, refusal, try_disk};
use crate::virtio::block::disk::SECTOR;
use crate::virtio::block::tests::bench::Bench;
use crate::virtio::block::{Options, open};

/// An image with two L2 tables and some data, and where what is in it.
struct Subject {
    stage: Stage,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Subject {
    fn new() -> Self {
        let stage = Stage::new();
        let path = stage.create("a.qcow2", 4 << 20, None);
        let mut bench = Bench::new(&disk(&path));
        bench.write(0, &[&[1; 8192]]).unwrap();
        bench.write(2 << 20, &[&[2; 4096]]).unwrap();
        drop(bench);
        let bytes = fs::read(&path).unwrap();
        Self { stage, path, bytes }
    }

    /// The number at `at`, big-endian.
    fn long(&self, at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn set(&mut self, at: u64, value: u64) {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// The place an entry names.
    fn offset(&self, at: u64) -> u64 {
        self.long(at) & 0x00ff_ffff_ffff_fe00
    }

    fn l1(&self) -> u64 {
        self.long(40)
    }

    fn refs(&self) -> u64 {
        self.long(48)
    }

    fn l2(&self) -> u64 {
        self.offset(self.l1())
    }

    /// Counts the cluster at `at` as free.
    fn free(&mut self, at: u64) {
        let place = self.offset(self.refs()) + at / CLUSTER * 2;
        let place = usize::try_from(place).unwrap();
        self.bytes[place..place + 2].fill(0);
    }

    fn end(&self) -> u64 {
        self.bytes.len() as u64
    }
}

const COPIED: u64 = 1 << 63;

#[test]
fn each_malformed_table_is_refused_for_what_it_is() {
    type Damage = fn(&mut Subject);
    let cases: [(&str, Damage, &str); 23] = [
        ("nothing", |_| {}, ""),
        (
            "L2 table behind the end",
            |s| s.set(s.l1(), COPIED | s.end()),
            "what is not in it",
        ),
        (
            "L2 table far away",
            |s| s.set(s.l1(), COPIED | 1 << 55),
            "what is not in it",
        ),
        (
            "L2 table amid a cluster",
            |s| s.set(s.l1(), COPIED | (s.l2() + 512)),
            "no cluster",
        ),
        (
            "L2 table on the L1 table",
            |s| s.set(s.l1(), COPIED | s.l1()),
            "lie on each other",
        ),
        (
            "L2 table on the refcount table",
            |s| s.set(s.l1(), COPIED | s.refs()),
            "lie on each other",
        ),
        (
            "two L2 tables in one",
            |s| s.set(s.l1() + 8, s.long(s.l1())),
            "lie on each other",
        ),
        (
            "refcount block behind the end",
            |s| s.set(s.refs(), s.end()),
            "what is not in it",
        ),
        (
            "refcount block beyond all",
            |s| s.set(s.refs(), 1 << 60),
            "no cluster",
        ),
        (
            "refcount block amid a cluster",
            |s| s.set(s.refs(), s.offset(s.refs()) + 512),
            "no cluster",
        ),
        (
            "refcount block on the L1 table",
            |s| s.set(s.refs(), s.l1()),
            "lie on each other",
        ),
        (
            "two refcount blocks in one",
            |s| s.set(s.refs() + 8, s.long(s.refs())),
            "lie on each other",
        ),
        (
            "no refcount block",
            |s| s.set(s.refs(), 0),
            "as free what is in use",
        ),
        ("header free", |s| s.free(0), "as free what is in use"),
        (
            "L1 table free",
            |s| s.free(s.l1()),
            "as free what is in use",
        ),
        (
            "L2 table free",
            |s| s.free(s.l2()),
            "as free what is in use",
        ),
        (
            "data free",
            |s| s.free(s.offset(s.l2())),
            "as free what is in use",
        ),
        (
            "data on the header",
            |s| s.set(s.l2(), COPIED | 1 << 9),
            "no cluster",
        ),
        (
            "data on the L1 table",
            |s| s.set(s.l2(), COPIED | s.l1()),
            "data lie on its tables",
        ),
        (
            "data on their L2 table",
            |s| s.set(s.l2(), COPIED | s.l2()),
            "data lie on its tables",
        ),
        (
            "data behind the end",
            |s| s.set(s.l2(), COPIED | s.end()),
            "what is not in it",
        ),
        (
            "compressed behind the end",
            |s| s.set(s.l2(), 1 << 62 | s.end()),
            "what is not in it",
        ),
        (
            "compressed on the L1 table",
            |s| s.set(s.l2(), 1 << 62 | s.l1()),
            "data lie on its tables",
        ),
    ];
    for (name, damage, words) in cases {
        let mut subject = Subject::new();
        damage(&mut subject);
        fs::write(&subject.path, &subject.bytes).unwrap();
        if words.is_empty() {
            try_disk(&subject.path).unwrap();
        } else {
            let message = refusal(&subject.path);
            assert!(message.contains(words), "{name}: {message}");
        }
        // As a backing file it is not written, and may lie as it likes; what is not there is missed all the same.
        let top = subject
            .stage
            .create("top.qcow2", 4 << 20, Some(("a.qcow2", "qcow2")));
        match try_disk(&top) {
            Ok(disk) => {
                let _ = Bench::new(&disk).read(0, &[4 << 20]);
            }
            Err(error) => assert!(error.to_string().contains("is damaged"), "{name}: {error}"),
        }
    }
}

#[test]
fn wherever_it_is_cut_off_it_is_refused_or_whole() {
    let subject = Subject::new();
    let expected = {
        let mut bench = Bench::new(&disk(&subject.path));
        bench.read(0, &[4 << 20]).unwrap()
    };
    let mut refused = 0;
    for len in (0..subject.end()).step_by(512) {
        fs::write(
            &subject.path,
            &subject.bytes[..usize::try_from(len).unwrap()],
        )
        .unwrap();
        match try_disk(&subject.path) {
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "{error}");
                refused += 1;
            }
            // Cut off within its last cluster, which reads as zeroes from there on.
            Ok(disk) => {
                assert!(subject.end() - len < CLUSTER, "{len}");
                let found = Bench::new(&disk).read(0, &[4 << 20]).unwrap();
                let differ = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
                assert!(differ < 4096, "{len}: {differ}");
            }
        }
    }
    assert!(refused > 16);
}

/// Tables as large as they may be in a file of terabytes, all holes: nothing takes its time or its memory.
#[test]
fn bombs_of_holes_do_not_go_off() {
    let stage = Stage::new();
    let path = stage.path("bomb.qcow2");
    let mut head = super::header::header();
    // 2 MiB clusters, 32 MiB of L1 table, 8 MiB of refcount table.
    super::header::word(&mut head, 20, 21);
    super::header::long(&mut head, 24, 1 << 61);
    super::header::word(&mut head, 36, 1 << 22);
    super::header::long(&mut head, 40, 64 << 20);
    super::header::long(&mut head, 48, 2 << 20);
    super::header::word(&mut head, 56, 4);
    fs::write(&path, &head).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    if let Err(error) = file.set_len(15 << 40) {
        return eprintln!("skipped: no file of so many holes here: {error}");
    }
    let message = try_disk(&path).unwrap_err().to_string();
    assert!(message.contains("as free what is in use"), "{message}");
    // An L2 table in each hole.
    let entries: Vec<u8> = (0..1u64 << 22)
        .flat_map(|number| (COPIED | (((number + 64) % (6 << 20)) << 21)).to_be_bytes())
        .collect();
    std::os::unix::fs::FileExt::write_all_at(&file, &entries, 64 << 20).unwrap();
    let read_only = Options {
        read_only: true,
        ..Options::default()
    };
    let disk = open(&[&path], &read_only).unwrap();
    let mut bench = Bench::new(&disk);
    for at in [0, 1 << 40, (1 << 61) - 4096] {
        assert_eq!(bench.read(at, &[4096]).unwrap(), vec![0; 4096]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Whatever is wrong with the tables is an error or another content; imago gets what passes the header.
    #[test]
    fn no_table_is_too_odd(
        damage in vec((0..64usize, 0..512usize, any::<u8>()), 1..16),
        writes in vec((0..256u64, 1..32u64, any::<u8>()), 0..8),
    ) {
        let stage = Stage::new();
        let path = stage.create("a.qcow2", 1 << 20, None);
        let mut bench = Bench::new(&disk(&path));
        bench.write(0, &[&[1; 1 << 16]]).unwrap();
        bench.write(1 << 19, &[&[2; 1 << 14]]).unwrap();
        drop(bench);
        let mut bytes = fs::read(&path).unwrap();
        for (cluster, at, byte) in damage {
            // The beginning of each cluster: that is where tables have their entries.
            let at = cluster * 4096 + at;
            if at >= 512 && let Some(to) = bytes.get_mut(at) {
                *to = byte;
            }
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(disk) = try_disk(&path)
            && disk.begin().is_ok()
        {
            let mut bench = Bench::new(&disk);
            let _ = bench.read(0, &[1 << 20]);
            for (sector, sectors, byte) in writes {
                let data = vec![byte; usize::try_from(sectors * SECTOR).unwrap()];
                let _ = bench.write(sector * SECTOR, &[&data]);
                let _ = bench.zero(sector * SECTOR, sectors * SECTOR, byte & 1 == 0);
                let _ = bench.discard((sector ^ 64) * SECTOR, sectors * SECTOR);
            }
            let _ = bench.flush();
        }
        // It may have become long, of holes; but nothing is written that nobody asked for.
        prop_assert!(fs::metadata(&path).unwrap().blocks() * 512 < 1 << 26);
    }
}
