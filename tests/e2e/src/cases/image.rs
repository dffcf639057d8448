//! Disk images of other kinds than one plain file: qcow2, several files as one, compressed file systems, a block
//! device of the host's.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use sha2::{Digest, Sha256};

use super::tests;
use crate::context::{Context, Kernel, Skip};
use crate::host::{Loop, host};

tests! { "image":
    LONG qcow2_root_killed_and_found_again,
    LONG raw_stays_raw,
    LONG several_files_as_one_disk,
    LONG squashfs_root,
    LONG erofs_root,
    LONG discard_gives_space_back,
}

const MIB: u64 = 1 << 20;

/// Runs qemu-img with words, and then a path.
pub fn qemu_img(words: &str, path: &Path) -> Result<String> {
    let words = words.split_whitespace().map(OsStr::new);
    host("qemu-img", words.chain([path.as_os_str()]))
}

/// Makes an image without anything in it.
pub fn empty_qcow2(path: &Path, bytes: u64) -> Result<()> {
    let bytes = bytes.to_string();
    let create = ["create", "-q", "-f", "qcow2"].map(OsStr::new);
    let image = [path.as_os_str(), OsStr::new(&bytes)];
    host("qemu-img", create.into_iter().chain(image))?;
    Ok(())
}

/// The checksum of a file in the file system of an image.
fn digest_inside(context: &Context, image: &Path, file: &str) -> Result<String> {
    if !rustix::process::geteuid().is_root() {
        return Err(Skip("only root mounts images".to_owned()).into());
    }
    let at = context.path("mounted");
    fs::create_dir_all(&at)?;
    let device = Loop::over(image)?;
    mount(device.0.as_str(), &at, "ext4", MountFlags::empty(), None)
        .with_context(|| format!("cannot mount {} on {}", image.display(), device.0))?;
    let bytes = fs::read(at.join(file));
    unmount(&at, UnmountFlags::empty())?;
    let digest = Sha256::digest(bytes?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What the guest wrote and synced before mvm was killed is in the image, and the image in order; and it goes on.
fn qcow2_root_killed_and_found_again(context: &Context) -> Result<()> {
    let base = context.rootfs()?;
    let before = Sha256::digest(fs::read(&base)?);
    let root = context.path("root.qcow2");
    qemu_img("create -q -f qcow2 -F raw -b rootfs.ext4", &root)?;
    let mut vm = context
        .boot(Kernel::TinyElf)?
        .arg("--rootfs")
        .arg(&root)
        .spawn()?;
    vm.wait_for("powers off")?;
    vm.type_in("/test/disk-write; echo it has been 'sync'ed\n")?;
    vm.wait_for("it has been synced")?;
    vm.signal(Signal::KILL)?;
    let killed = vm.wait()?;
    let wrote = killed.value("wrote")?;
    let wrote = wrote.split_whitespace().next().unwrap_or_default();

    // Space may be lost, and is found.
    qemu_img("check -q -r leaks", &root)?;
    let raw = context.path("converted");
    host(
        "qemu-img",
        [
            OsStr::new("convert"),
            OsStr::new("-Oraw"),
            root.as_os_str(),
            raw.as_os_str(),
        ],
    )?;
    ensure!(digest_inside(context, &raw, "data/blob")? == wrote);
    fs::remove_file(&raw)?;

    let second = context
        .script(Kernel::TinyElf, &root, "disk-check")?
        .exits_with(0)?;
    second.says("/data/blob: OK")?;
    // Of a guest that ended by itself nothing is left.
    qemu_img("check -q", &root)?;
    ensure!(
        Sha256::digest(fs::read(&base)?) == before,
        "the base was written"
    );
    // A base that has been changed behind its back is nothing that can be seen; one that is gone is.
    fs::rename(&base, context.path("elsewhere"))?;
    let refused = context
        .script(Kernel::TinyElf, &root, "poweroff")?
        .exits_with(125)?;
    ensure!(
        refused.stderr.contains("rootfs.ext4: no such file")
            && refused.stderr.trim().lines().count() == 1,
        "{}",
        refused.stderr
    );
    Ok(())
}

/// Whatever a guest writes to a raw image, it is one the next time.
fn raw_stays_raw(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let disk = context.image("disk.img", MIB)?;
    let run = || {
        context
            .script(Kernel::TinyElf, &rootfs, "disk-header,vdb")?
            .disk(&disk, "")
            .exits_with(0)
    };
    let first = run()?;
    first.says("begins: 0000000000000000")?;
    first.says("written")?;
    let second = run()?;
    second.says("begins: 514649fb00000003")?;
    ensure!(second.stderr.contains("used as raw"), "{}", second.stderr);
    Ok(())
}

/// Where each piece of a disk is: the number of a file, and the place in it.
fn pieces(files: &[PathBuf], stripe: Option<u64>) -> Result<Vec<(usize, u64, u64)>> {
    let mut pieces = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let len = fs::metadata(file)?.len();
        let piece = stripe.unwrap_or(len);
        pieces.extend((0..len / piece).map(|row| (number, row * piece, piece)));
    }
    // A row of stripes is one of each file.
    pieces.sort_by_key(|(number, at, _)| (stripe.map(|_| *at), *number));
    Ok(pieces)
}

/// Lays `disk` out on some files, or gets it back from them.
fn lay_out(disk: &File, files: &[PathBuf], stripe: Option<u64>, back: bool) -> Result<()> {
    let mut at = 0;
    for (number, place, len) in pieces(files, stripe)? {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&files[number])?;
        let mut bytes = vec![0; usize::try_from(len)?];
        let (from, to) = if back {
            ((&file, place), (disk, at))
        } else {
            ((disk, at), (&file, place))
        };
        from.0.read_exact_at(&mut bytes, from.1)?;
        to.0.write_all_at(&bytes, to.1)?;
        at += len;
    }
    Ok(())
}

/// A file system on several files is whole, and what is written there is found where it belongs.
fn several_files_as_one_disk(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let image = |name, bytes| context.image(name, bytes);
    let linear = [
        image("l1.img", 10 * MIB)?,
        image("l2.img", 3 * MIB + MIB / 2)?,
        image("l3.img", 10 * MIB + MIB / 2)?,
    ];
    let striped = [image("s1.img", 12 * MIB)?, image("s2.img", 12 * MIB)?];
    let disks = [
        (&linear[..], None, ""),
        (&striped[..], Some(64 << 10), ",layout=stripe:64K"),
    ];
    let original = File::open(&rootfs)?;
    let mut mvm = context.script(Kernel::TinyElf, &rootfs, "disk-fs,vdb,vdc")?;
    for (files, stripe, options) in disks {
        lay_out(&original, files, stripe, false)?;
        let names: Vec<&OsStr> = files.iter().map(|file| file.as_os_str()).collect();
        mvm = mvm.disk(Path::new(&names.join(OsStr::new("+"))), options);
    }
    let outcome = mvm.exits_with(0)?;
    for ((files, stripe, _), name) in disks.into_iter().zip(["vdb", "vdc"]) {
        outcome.says(&format!("fs {name} is whole"))?;
        let disk = context.image("disk", 24 * MIB)?;
        let disk = OpenOptions::new().write(true).open(&disk)?;
        lay_out(&disk, files, stripe, true)?;
        let digest = digest_inside(context, &context.path("disk"), "blob")?;
        ensure!(digest == outcome.value(&format!("fs {name}"))?, "{name}");
    }
    Ok(())
}

fn compressed_root(context: &Context, name: &str) -> Result<()> {
    let image = context.guest(name);
    let before = Sha256::digest(fs::read(&image)?);
    let mut rootfs = image.clone().into_os_string();
    rootfs.push(",ro");
    let outcome = context
        .script(Kernel::TinyElf, Path::new(&rootfs), "read-only")?
        .exits_with(0)?;
    outcome.says("disk read-only: 1")?;
    outcome.says("Read-only file system")?;
    outcome.says("readable")?;
    ensure!(Sha256::digest(fs::read(&image)?) == before);
    Ok(())
}

fn squashfs_root(context: &Context) -> Result<()> {
    compressed_root(context, "rootfs.squashfs")
}

fn erofs_root(context: &Context) -> Result<()> {
    compressed_root(context, "rootfs.erofs")
}

/// A disk of each kind is filled and discarded: on the host nothing of it is left, and the guest reads zeroes.
fn discard_gives_space_back(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let raw = context.image("raw.img", 4 * MIB)?;
    let (base, overlay) = (context.image("base.img", 4 * MIB)?, context.path("overlay"));
    let qcow2 = context.path("disk.qcow2");
    empty_qcow2(&qcow2, 4 * MIB)?;
    let parts = [
        context.image("s1.img", 2 * MIB)?,
        context.image("s2.img", 2 * MIB)?,
    ];
    let backing = context.image("device", 4 * MIB)?;
    let device = Loop::over(&backing)?;
    let mut with_overlay = OsString::from(",overlay=");
    with_overlay.push(&overlay);
    let joined = [parts[0].as_os_str(), parts[1].as_os_str()].join(OsStr::new("+"));
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "discard-all,vdb,vdc,vdd,vde,vdf")?
        .disk(&raw, "")
        .disk(&base, &with_overlay.to_string_lossy())
        .disk(&qcow2, "")
        .disk(Path::new(&joined), ",layout=stripe:64K")
        .disk(Path::new(&device.0), "")
        .exits_with(0)?;
    drop(device);
    for disk in ["vdb", "vdc", "vdd", "vde", "vdf"] {
        outcome.says(&format!("{disk} discarded"))?;
        let left = outcome.value(&format!("{disk} bytes left"))?;
        ensure!(
            left == "0",
            "{disk}: discarded sectors do not read as zeroes"
        );
    }
    for file in [
        &raw, &base, &overlay, &qcow2, &parts[0], &parts[1], &backing,
    ] {
        let allocated = fs::metadata(file)?.blocks() * 512;
        ensure!(
            allocated < MIB,
            "{}: {allocated} bytes are still there",
            file.display()
        );
    }
    qemu_img("check -q", &qcow2)?;
    Ok(())
}
