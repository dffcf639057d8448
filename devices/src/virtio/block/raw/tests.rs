//! Raw disks on real files.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tempfile::{NamedTempFile, TempDir};
use vm_memory::VolatileSlice;

use super::*;
use crate::virtio::block::disk::SECTOR;

/// An image of `sectors`, each byte its sector's number and one.
fn image(sectors: u8) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (1..=sectors).flat_map(|n| [n; 512]).collect();
    fs::write(file.path(), bytes).unwrap();
    file
}

fn open(file: &NamedTempFile) -> RawDisk {
    RawDisk::open(file.path(), false).unwrap()
}

fn run(disk: &mut RawDisk, op: DiskOp<'_>) -> io::Result<()> {
    match disk.submit(Tag(0), op) {
        Progress::Done(result) => result,
        Progress::Pending => panic!("a raw disk ends everything at once"),
    }
}

fn read(disk: &mut RawDisk, offset: u64, lens: &[usize]) -> io::Result<Vec<u8>> {
    let mut memory: Vec<Vec<u8>> = lens.iter().map(|len| vec![0xee; *len]).collect();
    let buffers: Vec<_> = memory
        .iter_mut()
        .map(|bytes| VolatileSlice::from(&mut bytes[..]))
        .collect();
    let op = DiskOp::Read {
        offset,
        buffers: &buffers,
    };
    run(disk, op)?;
    Ok(memory.concat())
}

fn write(disk: &mut RawDisk, offset: u64, parts: &[&[u8]], through: bool) -> io::Result<()> {
    let mut memory: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
    let buffers: Vec<_> = memory
        .iter_mut()
        .map(|bytes| VolatileSlice::from(&mut bytes[..]))
        .collect();
    let op = DiskOp::Write {
        offset,
        buffers: &buffers,
        through,
    };
    run(disk, op)
}

fn write_zeroes(disk: &mut RawDisk, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    let op = DiskOp::WriteZeroes {
        offset,
        len,
        unmap,
        through: false,
    };
    run(disk, op)
}

#[test]
fn tells_its_size_and_abilities() {
    let file = image(3);
    let info = open(&file).info();
    assert_eq!((info.capacity, info.read_only), (3 * SECTOR, false));
    assert!(info.block_size.is_power_of_two() && (512..=4096).contains(&info.block_size));
    let info = RawDisk::open(file.path(), true).unwrap().info();
    assert!(info.read_only && !info.discard);
}

#[test]
fn reads_and_writes_in_pieces() {
    let file = image(4);
    let mut disk = open(&file);
    let data = read(&mut disk, 512, &[1, 600, 423]).unwrap();
    assert_eq!(data, [[2; 512], [3; 512]].concat());
    write(&mut disk, 1024, &[&[7; 100], &[8; 412]], false).unwrap();
    write(&mut disk, 1536, &[&[9; 512]], true).unwrap();
    run(&mut disk, DiskOp::Flush).unwrap();
    assert_eq!(read(&mut disk, 0, &[]).unwrap(), []);

    let mut expected = [[1; 512], [2; 512], [8; 512], [9; 512]].concat();
    expected[1024..1124].fill(7);
    assert_eq!(fs::read(file.path()).unwrap(), expected);
}

#[test]
fn more_buffers_than_one_call_takes() {
    let file = image(200);
    let mut disk = open(&file);
    let data = read(&mut disk, 0, &[64; 1600]).unwrap();
    assert_eq!(data, fs::read(file.path()).unwrap());
    let parts: Vec<Vec<u8>> = (0..1600u32).map(|n| vec![n.to_le_bytes()[0]; 64]).collect();
    let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
    write(&mut disk, 0, &parts, false).unwrap();
    assert_eq!(fs::read(file.path()).unwrap(), parts.concat());
}

#[test]
fn an_image_cut_off_under_way_is_an_error_and_not_zeroes() {
    let file = image(4);
    let mut disk = open(&file);
    file.as_file().set_len(1000).unwrap();
    let error = read(&mut disk, 512, &[1024]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn writes_to_a_read_only_disk_fail() {
    let file = image(1);
    let mut disk = RawDisk::open(file.path(), true).unwrap();
    write(&mut disk, 0, &[&[0; 512]], false).unwrap_err();
    write_zeroes(&mut disk, 0, 512, false).unwrap_err();
    assert_eq!(fs::read(file.path()).unwrap(), [1; 512]);
}

/// The null device takes every write and refuses fdatasync, which makes a sync visible.
#[test]
fn through_and_flush_reach_fdatasync() {
    let mut disk = RawDisk {
        file: File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap(),
        info: open(&image(1)).info(),
        id: String::new(),
        punch: false,
        zero_range: false,
    };
    let refused = |result: io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    };
    write(&mut disk, 0, &[&[1; 512]], false).unwrap();
    refused(write(&mut disk, 0, &[&[1; 512]], true));
    refused(run(&mut disk, DiskOp::Flush));
    write_zeroes(&mut disk, 0, 512, false).unwrap();
    let op = DiskOp::WriteZeroes {
        offset: 0,
        len: 512,
        unmap: false,
        through: true,
    };
    refused(run(&mut disk, op));
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
                let mut disk = open(&file);
                disk.punch &= punch;
                disk.zero_range &= zero_range;
                write_zeroes(&mut disk, offset, len, unmap).unwrap();
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
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), vec![0xaa; usize::try_from(LEN).unwrap()]).unwrap();
    let mut disk = open(&file);
    if !disk.info().discard {
        eprintln!("skipped: the file system of the temporary directory cannot punch holes");
        return;
    }
    run(&mut disk, DiskOp::Flush).unwrap();
    let blocks = || file.as_file().metadata().unwrap().blocks();
    let full = blocks();
    assert!(full * 512 >= LEN);

    let (offset, len) = (1 << 20, 2 << 20);
    run(&mut disk, DiskOp::Discard { offset, len }).unwrap();
    assert!((full - blocks()) * 512 >= len, "{full} to {}", blocks());
    write_zeroes(&mut disk, 0, 1 << 20, true).unwrap();
    assert!((full - blocks()) * 512 >= 3 << 20, "{full} to {}", blocks());
    assert_eq!(file.as_file().metadata().unwrap().len(), LEN);
    let data = read(&mut disk, 3 << 20, &[512]).unwrap();
    assert_eq!(data, [0xaa; 512]);

    // Zeroes that are to stay allocated do.
    let before = blocks();
    write_zeroes(&mut disk, 3 << 20, 1 << 20, false).unwrap();
    assert_eq!(blocks(), before);
}

#[test]
fn asking_for_holes_changes_nothing() {
    let file = image(3);
    let before = file.as_file().metadata().unwrap();
    open(&file);
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
    let open = |read_only| RawDisk::open(file.path(), read_only);
    let locked = |result: Result<RawDisk, ImageError>| {
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
fn is_named_after_its_file() {
    for (path, id) in [
        ("disk.img", "disk.img"),
        ("/a/b/root image.ext4", "root_image.ext4"),
        ("/a/exactly-twenty-b.ext", "exactly-twenty-b.ext"),
        ("/a/b/", "b"),
        ("/", "_"),
        ("\u{e9}.img", "__.img"),
    ] {
        assert_eq!(default_id(Path::new(path)), id, "{path}");
    }
    let long = |n| default_id(Path::new(&format!("/images/debian-13-cloud-amd64-{n}.raw")));
    assert_eq!(long(1), long(1));
    assert_ne!(long(1), long(2));
    assert_eq!(long(1).len(), ID_BYTES);
    assert!(long(1).starts_with("debian-13-c-"), "{}", long(1));

    let file = image(1);
    assert_eq!(open(&file).with_id("serial-1").id(), "serial-1");
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
            let message = RawDisk::open(&path, read_only).unwrap_err().to_string();
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
