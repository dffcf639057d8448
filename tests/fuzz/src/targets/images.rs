//! Disk images as anybody may hand them over: qcow2, and the overlay's own format. What is opened is used, too.

use std::cell::OnceCell;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::mem::GuestSlice;
use devices::virtio::block::disk::{Disk, DiskOp, Tag};
use devices::virtio::block::{Engine, Format, Keep, Options, open};
use tempfile::TempDir;

use crate::target::Target;

const SECTOR: u64 = 512;
/// Bytes at an input's end that say what is done with the disk: operations of four bytes.
const OPERATIONS: usize = 32;
/// Sectors of the raw image below.
const BASE: u8 = 64;
/// The most bytes that one operation moves.
const MOST: u64 = 1 << 20;

/// A directory with the images of one thread.
struct Stage {
    directory: TempDir,
}

impl Stage {
    fn new() -> Self {
        let directory = TempDir::new().expect("cannot make a directory");
        let base: Vec<u8> = (0..BASE).flat_map(|sector| [sector; 512]).collect();
        fs::write(directory.path().join("base"), base).expect("cannot make an image");
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

thread_local! {
    static STAGE: OnceCell<Stage> = const { OnceCell::new() };
}

fn on_stage<T>(act: impl FnOnce(&Stage) -> T) -> T {
    STAGE.with(|stage| act(stage.get_or_init(Stage::new)))
}

/// Makes the file at `path` of these parts, each at its place, and of this length.
fn make(path: &Path, len: u64, parts: &[(u64, &[u8])]) {
    use std::os::unix::fs::FileExt;

    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("cannot make an image");
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at)
            .expect("cannot write an image");
    }
    file.set_len(len).expect("cannot write an image");
}

/// Opens the image and, if that goes well, does what the bytes say; errors are as good as anything.
fn exercise(image: &Path, options: &Options, operations: &[u8]) {
    let disk = match open(&[image], options) {
        Ok(disk) => disk,
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            return;
        }
    };
    if disk.begin().is_ok() {
        operate(&disk, operations);
    }
}

fn operate(disk: &Arc<dyn Disk>, operations: &[u8]) {
    let capacity = disk.info().capacity;
    let Ok(mut lane) = disk.lane(1) else { return };
    let mut run = |op: DiskOp<'_>| lane.submit(Tag(0), op);
    for operation in operations.as_chunks::<4>().0 {
        let [kind, place, len, byte] = *operation;
        // From the beginning, or around the end.
        let place = u64::from(place) * SECTOR;
        let offset = match kind & 0x80 {
            0 => place.min(capacity - SECTOR),
            _ => capacity - SECTOR - place.min(capacity - SECTOR),
        };
        let len = ((u64::from(len) + 1) * SECTOR)
            .min(capacity - offset)
            .min(MOST);
        let mut bytes = vec![byte; usize::try_from(len).expect("at most MOST")];
        let buffers = [GuestSlice::from(&mut bytes[..])];
        let through = kind & 0x40 != 0;
        let _ = match kind % 5 {
            0 => run(DiskOp::Read {
                offset,
                buffers: &buffers,
            }),
            1 => run(DiskOp::Write {
                offset,
                buffers: &buffers,
                through,
            }),
            2 => run(DiskOp::Discard { offset, len }),
            3 => run(DiskOp::WriteZeroes {
                offset,
                len,
                unmap: byte & 1 == 0,
                through,
            }),
            _ => run(DiskOp::Flush),
        };
    }
}

/// What is done with every seed.
const ALL_KINDS: [u8; OPERATIONS] = [
    0, 0, 255, 0, // read all of it
    1, 3, 4, 7, // write
    1, 40, 0, 8, 3, 1, 9, 0, // zeroes, gone
    3, 20, 9, 1, // zeroes, there
    2, 8, 30, 0, // discard
    4, 0, 0, 0, // flush
    0x80, 8, 8, 0, // read the end
];

/// An input's image and its operations.
fn split(data: &[u8]) -> (&[u8], &[u8]) {
    data.split_at(data.len().saturating_sub(OPERATIONS))
}

/// qcow2 images of clusters so small that all of their tables fit into an input: an image, then operations.
#[derive(Debug)]
pub struct Qcow2;

impl Target for Qcow2 {
    fn name(&self) -> &str {
        "qcow2"
    }

    fn about(&self) -> String {
        "qcow2 images: the header, the tables, and what a guest does with the disk".to_owned()
    }

    fn run(&self, data: &[u8]) {
        let (image, operations) = split(data);
        on_stage(|stage| {
            let path = stage.path("image");
            make(&path, image.len() as u64, &[(0, image)]);
            let options = Options {
                engine: Engine::Sync,
                format: Some(Format::Qcow2),
                ..Options::default()
            };
            exercise(&path, &options, operations);
        });
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let mut seeds = Vec::new();
        for (version, backing, bits) in [
            (3, false, 4),
            (3, true, 4),
            (2, false, 4),
            (2, true, 4),
            (3, false, 0),
            (3, false, 6),
        ] {
            let image = qcow2(version, backing, bits);
            seeds.push([&image[..], &ALL_KINDS].concat());
            seeds.push([&image[..], &[0; OPERATIONS]].concat());
        }
        seeds
    }
}

/// An image of 32 KiB in clusters of 512 bytes: header, refcount table, refcount block, L1 table, L2 table,
/// data, a compressed cluster.
fn qcow2(version: u32, backing: bool, refcount_order: u32) -> Vec<u8> {
    const COPIED: u64 = 1 << 63;
    let mut image = vec![0; 7 * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    for (at, word) in [
        (4, version),
        (20, 9),
        (36, 1),
        (56, 1),
        (96, refcount_order),
        (100, 104),
    ] {
        put(at, &u32::to_be_bytes(word));
    }
    for (at, long) in [(24, 32 << 10), (40, 3 * 512), (48, 512)] {
        put(at, &u64::to_be_bytes(long));
    }
    if backing {
        let extensions = if version == 2 { 72 } else { 104 };
        put(8, &u64::to_be_bytes(400));
        put(16, &u32::to_be_bytes(4));
        put(400, b"base");
        put(extensions, &0xe279_2aca_u32.to_be_bytes());
        put(extensions + 4, &u32::to_be_bytes(3));
        put(extensions + 8, b"raw");
    }
    put(512, &u64::to_be_bytes(2 * 512));
    match refcount_order {
        0 => put(1024, &[0b0111_1111]),
        6 => (0..7).for_each(|cluster| put(1024 + cluster * 8 + 7, &[1])),
        _ => (0..7).for_each(|cluster| put(1024 + cluster * 2 + 1, &[1])),
    }
    put(3 * 512, &u64::to_be_bytes(COPIED | (4 * 512)));
    put(4 * 512, &u64::to_be_bytes(COPIED | (5 * 512)));
    put(4 * 512 + 24, &u64::to_be_bytes((1 << 62) | (6 * 512)));
    put(5 * 512, &[0xaa; 512]);
    // A deflate stream of one block as it is, of 512 bytes as far as they are there.
    put(6 * 512, &[1, 0, 2, 0xff, 0xfd]);
    image
}

/// Overlays: a header of 512 bytes and a page of the map, operations, and a byte that says what of it gets the
/// checksums it needs.
#[derive(Debug)]
pub struct Overlay;

/// Bytes of the file, most of them a hole.
const OVERLAY_LEN: u64 = 1 << 20;
const PAGE: usize = 4096;

impl Target for Overlay {
    fn name(&self) -> &str {
        "overlay"
    }

    fn about(&self) -> String {
        "overlay files: the header, the map, and what a guest does with the disk".to_owned()
    }

    fn run(&self, data: &[u8]) {
        let (sealed, data) = data.split_last().unwrap_or((&0, &[]));
        let (file, operations) = split(data);
        let mut file = file.to_vec();
        for (number, sector) in file.as_chunks_mut::<512>().0.iter_mut().enumerate() {
            if sealed & (1 << number.min(7)) != 0 {
                let crc = crc32fast::hash(&sector[..508]);
                sector[508..].copy_from_slice(&crc.to_le_bytes());
            }
        }
        let (header, map) = file.split_at(file.len().min(512));
        on_stage(|stage| {
            let path = stage.path("overlay");
            make(&path, OVERLAY_LEN, &[(0, header), (PAGE as u64, map)]);
            exercise(&stage.path("base"), &over(&path), operations);
        });
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let file = on_stage(|stage| {
            let path = stage.path("seed");
            let _ = fs::remove_file(&path);
            exercise(&stage.path("base"), &over(&path), &ALL_KINDS);
            fs::read(path).expect("an overlay has been made")
        });
        let input = |map: usize, operations: &[u8], sealed: u8| {
            [&file[..512], &file[PAGE..PAGE + map], operations, &[sealed]].concat()
        };
        vec![
            input(512, &ALL_KINDS, 0),
            input(3072, &ALL_KINDS, 0xff),
            input(512, &[0; OPERATIONS], 0xff),
            input(0, &ALL_KINDS, 1),
        ]
    }
}

fn over(path: &Path) -> Options {
    Options {
        engine: Engine::Sync,
        overlay: Some(Keep::File(path.to_owned())),
        ..Options::default()
    }
}
