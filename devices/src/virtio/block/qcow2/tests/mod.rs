//! qcow2 images: what is written is read, also by QEMU where it is there; what is odd is refused.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use imago::FormatCreateBuilder;
use imago::file::File;
use tempfile::TempDir;

use super::Qcow2;
use crate::virtio::block::buffers::Buffers;
use crate::virtio::block::disk::{Disk, SECTOR};
use crate::virtio::block::image::{Access, ImageError};
use crate::virtio::block::store::Store;
use crate::virtio::block::tests::bench::Bench;
use crate::virtio::block::{Cache, Engine, Format, Keep, Options, open};

mod crash;
mod header;
mod malformed;

const CLUSTER: u64 = 4096;

/// A directory with images in it.
#[derive(Debug)]
struct Stage(TempDir);

impl Stage {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A new image of small clusters, with a backing file of that name and format.
    fn create(&self, name: &str, size: u64, backing: Option<(&str, &str)>) -> PathBuf {
        let path = self.path(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        let mut builder = imago::qcow2::Qcow2::<File>::create_builder(file.try_into().unwrap())
            .cluster_size(usize::try_from(CLUSTER).unwrap())
            .size(size);
        if let Some((name, format)) = backing {
            builder = builder.backing(name.to_owned(), format.to_owned());
        }
        builder.create().unwrap();
        path
    }

    /// A raw image of so many sectors, each full of its number and one.
    fn raw(&self, name: &str, sectors: u64) -> PathBuf {
        let path = self.path(name);
        let bytes: Vec<u8> = (1..=sectors)
            .flat_map(|sector| [sector.to_le_bytes()[0]; 512])
            .collect();
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn try_disk(path: &Path) -> Result<Arc<dyn Disk>, ImageError> {
    open(&[path], &Options::default())
}

fn disk(path: &Path) -> Arc<dyn Disk> {
    try_disk(path).unwrap()
}

fn refusal(path: &Path) -> String {
    let before = fs::read(path).unwrap();
    let message = try_disk(path).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    assert!(
        fs::read(path).unwrap() == before,
        "{message}: it was changed"
    );
    message
}

/// Whether `qemu-img check` finds the image in order; says so where there is no qemu-img.
fn checks(path: &Path) {
    match Command::new("qemu-img").arg("check").arg(path).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => eprintln!("skipped: `qemu-img check`: {error}"),
    }
}

/// Runs qemu-img, if it is there.
fn qemu_img(arguments: &[&str], paths: &[&Path]) -> bool {
    let command = Command::new("qemu-img")
        .args(arguments)
        .args(paths)
        .output();
    match command {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            true
        }
        Err(error) => {
            eprintln!("skipped: qemu-img {arguments:?}: {error}");
            false
        }
    }
}

#[test]
fn what_is_written_is_found_again() {
    let stage = Stage::new();
    let path = stage.create("a.qcow2", 1 << 20, None);
    let mut bench = Bench::new(&disk(&path));
    assert_eq!(bench.read(0, &[1 << 20]).unwrap(), vec![0; 1 << 20]);
    bench.write(512, &[&[1; 512], &[2; 8192]]).unwrap();
    bench.write_as((1 << 20) - 512, &[&[3; 512]], true).unwrap();
    bench.zero(1024, 512, true).unwrap();
    bench.flush().unwrap();
    checks(&path);
    let mut expected = vec![0; 1 << 20];
    expected[512..1024].fill(1);
    expected[1536..1024 + 8192].fill(2);
    expected[(1 << 20) - 512..].fill(3);
    assert_eq!(
        bench.read(0, &[100, 412, (1 << 20) - 512]).unwrap(),
        expected
    );
    bench.discard(4096, 4096).unwrap();
    expected[4096..8192].fill(0);
    drop(bench);
    let mut bench = Bench::new(&disk(&path));
    assert_eq!(bench.read(0, &[1 << 20]).unwrap(), expected);
    drop(bench);
    checks(&path);
    let raw = stage.path("raw");
    if qemu_img(&["convert", "-O", "raw"], &[&path, &raw]) {
        assert_eq!(fs::read(raw).unwrap(), expected);
    }
}

#[test]
fn discards_and_zeroes_give_space_back_and_take_none() {
    use std::os::unix::fs::MetadataExt;

    let stage = Stage::new();
    let path = stage.create("a.qcow2", 4 << 20, None);
    let allocated = || fs::metadata(&path).unwrap().blocks() * 512;
    let mut bench = Bench::new(&disk(&path));
    let empty = allocated();
    bench.zero(0, 4 << 20, false).unwrap();
    bench.zero(512, 1024, true).unwrap();
    bench.flush().unwrap();
    assert!(allocated() < empty + (64 << 10), "zeroes take space");
    for way in 0..2 {
        bench.write(0, &[&[1; 2 << 20]]).unwrap();
        bench.flush().unwrap();
        assert!(allocated() > 2 << 20);
        // Not all of it: the ends stay.
        match way {
            0 => bench.discard(512, (2 << 20) - 1024).unwrap(),
            _ => bench.zero(512, (2 << 20) - 1024, true).unwrap(),
        }
        bench.flush().unwrap();
        assert!(
            allocated() < 1 << 20,
            "{} bytes are still there",
            allocated()
        );
        let found = bench.read(0, &[2 << 20]).unwrap();
        assert!(found[..512] == [1; 512] && found[(2 << 20) - 512..] == [1; 512]);
        if way == 1 {
            assert!(found[512..(2 << 20) - 512].iter().all(|byte| *byte == 0));
        }
    }
    drop(bench);
    checks(&path);
}

#[test]
fn a_disk_changes_nothing_before_it_begins() {
    let stage = Stage::new();
    let path = stage.create("a.qcow2", 1 << 20, None);
    let before = fs::read(&path).unwrap();
    let disk = disk(&path);
    assert_eq!(disk.info().capacity, 1 << 20);
    drop(disk);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_panic_within_is_the_end_of_the_image_and_of_nothing_else() {
    let stage = Stage::new();
    let path = stage.create("a.qcow2", 1 << 20, None);
    let image = Qcow2::open(
        &path,
        Access {
            any_size: true,
            ..Access::default()
        },
    )
    .unwrap();
    image.begin().unwrap();
    image
        .write_inside(0, Buffers::of_bytes(&mut [1; 512]))
        .unwrap();
    let before = fs::read(&path).unwrap();
    let panicked = image.call::<()>(|_| panic!("as a defect of imago would"));
    assert!(panicked.is_err());
    let mut bytes = [0; 512];
    for result in [
        image.read_inside(0, Buffers::of_bytes(&mut bytes)),
        image.write_inside(0, Buffers::of_bytes(&mut bytes)),
        image.discard(0, CLUSTER),
        image.write_zeroes(0, CLUSTER, true),
        image.flush(),
        // Nothing is called any more.
        image.call_alone(|_| panic!()),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("has failed"), "{error}");
    }
    drop(image);
    // What was in memory has not been written.
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn a_chain_is_read_through_and_only_its_first_is_written() {
    let stage = Stage::new();
    let base = stage.raw("base.img", 64);
    let middle = stage.create("middle.qcow2", 128 * SECTOR, Some(("base.img", "raw")));
    let top = stage.create("top.qcow2", 128 * SECTOR, Some(("middle.qcow2", "qcow2")));
    let mut bench = Bench::new(&disk(&middle));
    bench.write(8 * SECTOR, &[&[0xaa; 512]]).unwrap();
    drop(bench);
    let before = (fs::read(&base).unwrap(), fs::read(&middle).unwrap());
    let mut expected = before.0.clone();
    expected[4096..4608].fill(0xaa);
    // The base ends here, and the disk goes on.
    expected.resize(128 * 512, 0);
    let mut bench = Bench::new(&disk(&top));
    assert_eq!(bench.read(0, &[128 * 512]).unwrap(), expected);
    bench.write(0, &[&[0xbb; 512]]).unwrap();
    bench.zero(16 * SECTOR, 8 * SECTOR, true).unwrap();
    bench.write(100 * SECTOR, &[&[0xcc; 512]]).unwrap();
    expected[..512].fill(0xbb);
    expected[8192..8192 + 4096].fill(0);
    expected[100 * 512..101 * 512].fill(0xcc);
    drop(bench);
    let mut bench = Bench::new(&disk(&top));
    assert_eq!(bench.read(0, &[128 * 512]).unwrap(), expected);
    assert_eq!(
        (fs::read(&base).unwrap(), fs::read(&middle).unwrap()),
        before
    );
    // Whoever reads may share the base, and nobody may write it.
    let locked = try_disk(&base).unwrap_err();
    assert!(matches!(locked, ImageError::Locked { .. }), "{locked}");
    drop(bench);
    checks(&top);
}

#[test]
fn an_overlay_may_lie_over_it() {
    let stage = Stage::new();
    let path = stage.create("a.qcow2", 64 * SECTOR, None);
    let mut bench = Bench::new(&disk(&path));
    bench.write(0, &[&[1; 512 * 64]]).unwrap();
    drop(bench);
    let before = fs::read(&path).unwrap();
    for engine in [Engine::Sync, Engine::Auto] {
        let options = Options {
            engine,
            overlay: Some(Keep::File(stage.path("top"))),
            ..Options::default()
        };
        let mut bench = Bench::new(&open(&[&path], &options).unwrap());
        bench.write(512, &[&[2; 512]]).unwrap();
        let mut expected = vec![1; 64 * 512];
        expected[512..1024].fill(2);
        assert_eq!(bench.read(0, &[64 * 512]).unwrap(), expected);
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn around_the_page_cache() {
    let stage = Stage::new();
    let ours = stage.create("a.qcow2", 1 << 20, None);
    // QEMU's end with the only entry of their table, amid a block.
    let qemus = stage.path("b.qcow2");
    let made = qemu_img(&["create", "-q", "-f", "qcow2"], &[&qemus, Path::new("4M")]);
    let options = Options {
        cache: Cache::None,
        ..Options::default()
    };
    for path in [Some(ours), made.then_some(qemus)].into_iter().flatten() {
        let opened = match open(&[&path], &options) {
            Err(ImageError::NoDirect { .. }) => {
                return eprintln!("skipped: the temporary directory has no O_DIRECT");
            }
            opened => opened.unwrap(),
        };
        let mut bench = Bench::new(&opened);
        bench
            .write(512, &[&[1; 100], &[2; 412], &[3; 5120]])
            .unwrap();
        bench.flush().unwrap();
        let expected = [vec![0; 512], vec![1; 100], vec![2; 412], vec![3; 5120]].concat();
        assert_eq!(bench.read(0, &[7, 6137]).unwrap(), expected);
        drop((bench, opened));
        checks(&path);
    }
}

#[test]
fn qemus_own_images_are_understood() {
    let stage = Stage::new();
    let raw = stage.raw("raw", 256);
    let expected = fs::read(&raw).unwrap();
    let image = stage.path("image.qcow2");
    for options in [
        &["convert", "-O", "qcow2", "-c"][..],
        &["convert", "-O", "qcow2", "-o", "compat=0.10"],
        &[
            "convert",
            "-O",
            "qcow2",
            "-o",
            "cluster_size=512,refcount_bits=1",
        ],
        &[
            "convert",
            "-O",
            "qcow2",
            "-o",
            "cluster_size=2M,preallocation=full",
        ],
        &["convert", "-O", "qcow2", "-o", "lazy_refcounts=on"],
    ] {
        if !qemu_img(options, &[&raw, &image]) {
            return;
        }
        let mut bench = Bench::new(&disk(&image));
        let mut expected = expected.clone();
        assert_eq!(
            bench.read(0, &[256 * 512]).unwrap(),
            expected,
            "{options:?}"
        );
        // Zeroes and discards also where the format has no word for them.
        bench.write(512, &[&[0xaa; 512]]).unwrap();
        bench.zero(1024, 64 * 512, true).unwrap();
        bench.zero(66 * 512, 512, false).unwrap();
        expected[512..1024].fill(0xaa);
        expected[1024..67 * 512].fill(0);
        assert_eq!(
            bench.read(0, &[256 * 512]).unwrap(),
            expected,
            "{options:?}"
        );
        drop(bench);
        checks(&image);
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn what_a_snapshot_holds_stays() {
    let stage = Stage::new();
    let (raw, image) = (stage.raw("raw", 256), stage.path("image.qcow2"));
    if !qemu_img(
        &["convert", "-O", "qcow2", "-o", "cluster_size=4k"],
        &[&raw, &image],
    ) || !qemu_img(&["snapshot", "-c", "before"], &[&image])
    {
        return;
    }
    let mut bench = Bench::new(&disk(&image));
    bench.write(0, &[&[0xaa; 512]]).unwrap();
    bench.zero(8192, 8192, true).unwrap();
    bench.discard(32768, 8192).unwrap();
    drop(bench);
    checks(&image);
    let back = stage.path("back");
    assert!(qemu_img(
        &["convert", "-O", "raw", "-l", "before"],
        &[&image, &back]
    ));
    assert_eq!(fs::read(back).unwrap(), fs::read(raw).unwrap());
}

#[test]
fn its_contents_alone_make_no_image_a_qcow2() {
    let stage = Stage::new();
    let image = stage.create("a.qcow2", 1 << 20, None);
    let path = stage.path("disk.img");
    fs::copy(&image, &path).unwrap();
    let raw = disk(&path).info().capacity;
    assert_eq!(raw, fs::metadata(&path).unwrap().len());
    let format = |format| Options {
        format: Some(format),
        ..Options::default()
    };
    let raw = open(&[&path], &format(Format::Raw))
        .unwrap()
        .info()
        .capacity;
    assert_eq!(raw, fs::metadata(&path).unwrap().len());
    let qcow2 = open(&[&path], &format(Format::Qcow2))
        .unwrap()
        .info()
        .capacity;
    assert_eq!(qcow2, 1 << 20);
    // The name says qcow2, and the option wins.
    let raw = open(&[&image], &format(Format::Raw))
        .unwrap()
        .info()
        .capacity;
    assert_eq!(raw, fs::metadata(&image).unwrap().len());

    let path = stage.raw("raw.qcow2", 8);
    assert!(refusal(&path).contains("is not a qcow2 image"));
    let options = Options {
        engine: Engine::IoUring,
        ..Options::default()
    };
    if Engine::IoUring.check().is_ok() {
        let message = open(&[&image], &options).unwrap_err().to_string();
        assert!(message.contains("leave out engine=io_uring"), "{message}");
    }
}

#[test]
fn chains_that_do_not_end_or_lead_elsewhere_are_refused() {
    let stage = Stage::new();
    let made = |name: &str, backing: &str, format: &str| {
        stage.create(name, 1 << 20, Some((backing, format)))
    };
    let own = made("own.qcow2", "own.qcow2", "qcow2");
    assert!(refusal(&own).contains("comes back to itself"));
    let first = made("first.qcow2", "second.qcow2", "qcow2");
    made("second.qcow2", "./first.qcow2", "qcow2");
    assert!(refusal(&first).contains("comes back to itself"));
    for number in 0..40 {
        made(
            &format!("{number}.qcow2"),
            &format!("{}.qcow2", number + 1),
            "qcow2",
        );
    }
    assert!(refusal(&stage.path("0.qcow2")).contains("is too long"));
    for (backing, format, words) in [
        ("none.img", "raw", "none.img"),
        ("nbd://host/disk", "raw", "reads files only"),
        ("json:{}", "raw", "reads files only"),
        ("a.vmdk", "vmdk", "the format 'vmdk'"),
        ("a\nb", "raw", "makes no sense"),
        ("..", "raw", "is a directory"),
    ] {
        let path = made("odd.qcow2", backing, format);
        let message = refusal(&path);
        assert!(message.contains(words), "{message}");
    }
}
