//! The root file system: busybox, `probe` and the scripts of `resources/guest/rootfs` on an ext4 image, made without root
//! and byte for byte the same each time.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cache::{Recipe, keep};
use super::{Guests, resource};
use crate::debian::{self, Package, Program};
use crate::progress::Step;
use crate::{run, workspace};

/// Where busybox comes from: it is unpacked, not installed, for it would push out a `busybox` that is.
pub const PACKAGE: &str = "busybox-static";

/// Where its program to check file systems comes from: linked statically, as the other programs there are.
pub const CHECKER: &str = "e2fsck-static";

/// Changed when this file makes something else of the same ingredients.
const VERSION: &str = "2";
/// Room for the tests to write in, and small enough to be copied for each of them.
const SIZE: &str = "24M";
/// Any fixed value does: what counts is that it is the same each time.
const UUID: &str = "6d766d00-0000-4000-8000-000000000001";
/// When the image says it was made: 2026-01-01.
const TIME: &str = "1767225600";

const MKFS: Program = Program("mkfs.ext4", "e2fsprogs");

/// The images of [`prepare_compressed`].
pub const COMPRESSED: [&str; 2] = ["rootfs.squashfs", "rootfs.erofs"];

pub fn prepare(guests: &Guests) -> Result<PathBuf> {
    let entry = build(guests, "rootfs", SIZE, |tree, directory| {
        debian::require(&[MKFS])?;
        let image = directory.join("unfinished.ext4");
        make_image(tree, &image)?;
        keep(&image, &directory.join("rootfs.ext4"))
    })?;
    Ok(entry.join("rootfs.ext4"))
}

/// A directory with the same files in images that are compressed and only read.
pub fn prepare_compressed(guests: &Guests) -> Result<PathBuf> {
    // What the small kernel can unpack.
    let [squashfs, erofs] = COMPRESSED;
    build(guests, "compressed", "lz4", |tree, directory| {
        debian::require(&[
            Program("mksquashfs", "squashfs-tools"),
            Program("mkfs.erofs", "erofs-utils"),
        ])?;
        let mut command = Command::new("mksquashfs");
        command.arg(tree).arg(directory.join(squashfs));
        command.args([
            "-comp",
            "lz4",
            "-all-root",
            "-all-time",
            TIME,
            "-mkfs-time",
            TIME,
        ]);
        run::quiet(&mut command).context("cannot make the squashfs image")?;
        let mut command = Command::new("mkfs.erofs");
        command.args(["-zlz4", "-T", TIME, "--all-root", "-U", UUID]);
        command.arg(directory.join(erofs)).arg(tree);
        run::quiet(&mut command).context("cannot make the EROFS image")
    })
}

/// Makes images of the guest's files, in the cache, of which `make` gets the files and the entry.
fn build(
    guests: &Guests,
    name: &'static str,
    how: &str,
    make: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let busybox = guests.package(&[PACKAGE])?;
    let checker = guests.package(&[CHECKER])?;
    let scripts = resource("guest/rootfs");
    let probe = workspace::root().join("tests/probe");
    let recipe = Recipe::new(name)
        .with(VERSION)
        .with(how)
        .with(&busybox.version)
        .with(&checker.version)
        .with_files(&scripts)?
        .with_files(&probe)?;
    guests.cache.get_or_build(&recipe, |directory| {
        let probe = workspace::release("probe")?;
        let step = Step::begin(format!("making the guest's root file system ({name})"));
        let tree = directory.join("tree");
        populate(&tree, busybox, &scripts)?;
        install(&probe, &tree.join("test/probe"))?;
        install_from(checker, "sbin/e2fsck.static", &tree.join("sbin/e2fsck"))?;
        make(&tree, directory)?;
        fs::remove_dir_all(&tree)?;
        step.done();
        Ok(())
    })
}

/// Busybox as an entry of its own: the lab and the initrds are made of it too.
pub fn busybox(guests: &Guests) -> Result<PathBuf> {
    let package = guests.package(&[PACKAGE])?;
    let recipe = Recipe::new("busybox").with(VERSION).with(&package.version);
    guests
        .cache
        .get_or_build(&recipe, |directory| install_busybox(package, directory))
}

fn populate(tree: &Path, busybox: &Package, scripts: &Path) -> Result<()> {
    for name in [
        "bin",
        "sbin",
        "etc/udhcpc",
        "root",
        "tmp",
        "run",
        "dev",
        "proc",
        "sys",
        "mnt",
        "lib/modules",
        "test",
    ] {
        fs::create_dir_all(tree.join(name))?;
    }
    install_busybox(busybox, &tree.join("bin"))?;
    for (name, place) in [
        ("init", "sbin/init"),
        ("stop-machine", "bin/stop-machine"),
        ("power-button", "bin/power-button"),
        ("network-up", "bin/network-up"),
        ("udhcpc", "etc/udhcpc/default.script"),
    ] {
        install(&scripts.join(name), &tree.join(place))?;
    }
    for script in fs::read_dir(scripts.join("test"))? {
        let script = script?;
        install(&script.path(), &tree.join("test").join(script.file_name()))?;
    }
    fs::write(tree.join("etc/passwd"), "root::0:0:root:/root:/bin/sh\n")?;
    fs::write(tree.join("etc/group"), "root:x:0:\n")?;
    fs::write(tree.join("etc/profile"), "PS1='mvm:\\w# '\n")?;
    Ok(())
}

fn install(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    // Whatever the checkout's umask was.
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A program of a package, which has it in `/place` or in `/usr/place`.
fn install_from(package: &Package, place: &str, to: &Path) -> Result<()> {
    let unpacked = to.with_extension("unpacked");
    fs::create_dir_all(&unpacked)?;
    package.unpack(&unpacked)?;
    let program = [unpacked.join(place), unpacked.join("usr").join(place)]
        .into_iter()
        .find(|program| program.is_file())
        .with_context(|| format!("the package {} holds no {place}", package.name))?;
    fs::rename(program, to)?;
    fs::remove_dir_all(&unpacked)?;
    Ok(())
}

/// Busybox and a link for each of its applets, in `bin`.
pub fn install_busybox(package: &Package, bin: &Path) -> Result<()> {
    fs::create_dir_all(bin)?;
    let busybox = bin.join("busybox");
    install_from(package, "bin/busybox", &busybox)?;
    let applets = Command::new(&busybox)
        .arg("--list")
        .output()
        .context("busybox --list")?;
    for applet in String::from_utf8(applets.stdout)?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        symlink("busybox", bin.join(applet))?;
    }
    Ok(())
}

fn make_image(tree: &Path, image: &Path) -> Result<()> {
    let options = format!("hash_seed={UUID},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1");
    let mkfs = debian::find(MKFS.0).context("mkfs.ext4")?;
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(mkfs)
    } else {
        // Files keep the owner's number; in a user namespace of its own that is 0.
        let mut command = Command::new("unshare");
        command.arg("-r").arg(mkfs);
        command
    };
    command
        // Of a page, as a file system with DAX must have them.
        .args(["-b", "4096"])
        .args(["-q", "-F", "-L", "mvm", "-U", UUID, "-E", &options, "-d"])
        .args([tree, image])
        .arg(SIZE)
        .env("E2FSPROGS_FAKE_TIME", TIME);
    set_times(tree)?;
    run::quiet(&mut command).context("cannot make the ext4 image")
}

/// Times are part of the image, so they are the same each time too.
fn set_times(path: &Path) -> Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

    if path.is_dir() && !path.is_symlink() {
        for child in fs::read_dir(path)? {
            set_times(&child?.path())?;
        }
    }
    let time = Timespec {
        tv_sec: TIME.parse()?,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
