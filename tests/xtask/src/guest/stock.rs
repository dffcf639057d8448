//! The stock guest: Debian's cloud kernel, unpacked and not installed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cache::{Recipe, keep};
use super::{Guests, Stock, bzimage, resource, rootfs};
use crate::cpio::Archive;
use crate::debian::{self, Package, Program};
use crate::progress::Step;
use crate::run;

/// The first of these that the machine's Debian has.
pub const PACKAGES: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];

/// Changed when this file makes something else of the same ingredients.
const VERSION: &str = "1";

pub fn prepare(guests: &Guests) -> Result<Stock> {
    let kernel = guests.package(&PACKAGES)?;
    let busybox = guests.package(&[rootfs::PACKAGE])?;
    let (init, guest_list, lab_list) = (
        resource("guest/initrd/init"),
        resource("guest/initrd/modules"),
        resource("lab/modules"),
    );
    let recipe = Recipe::new("stock")
        .with(VERSION)
        .with(&kernel.name)
        .with(&kernel.version)
        .with(&busybox.version)
        .with_files(&init)?
        .with_files(&guest_list)?
        .with_files(&lab_list)?;
    let entry = guests.cache.get_or_build(&recipe, |directory| {
        debian::require(&[Program("depmod", "kmod"), Program("xz", "xz-utils")])?;
        let step = Step::begin(format!("preparing Debian's kernel {}", kernel.version));
        let package = directory.join("package");
        fs::create_dir(&package)?;
        step.at("downloading");
        kernel.real()?.unpack(&package)?;

        let modules = Modules::of(&package)?;
        step.at("unpacking the kernel");
        let vmlinuz = package.join(format!("boot/vmlinuz-{}", modules.release));
        bzimage::extract_vmlinux(&vmlinuz, &directory.join("vmlinux"))?;
        keep(&vmlinuz, &directory.join("vmlinuz"))?;

        step.at("collecting modules");
        let tree = directory.join("initrd.tree");
        modules.collect(&guest_list, &tree)?;
        modules.collect(&lab_list, &directory.join("lab-modules"))?;
        step.at("packing the initrd");
        pack_initrd(&tree, busybox, &init, &directory.join("initrd.img"))?;
        fs::remove_dir_all(&tree)?;
        fs::remove_dir_all(&package)?;
        step.done();
        Ok(())
    })?;
    let lab_modules = entry.join("lab-modules");
    Ok(Stock {
        release: release(&lab_modules)?,
        vmlinuz: entry.join("vmlinuz"),
        vmlinux: entry.join("vmlinux"),
        initrd: entry.join("initrd.img"),
        lab_modules,
    })
}

/// The initramfs is not compressed: unpacking would cost the guest more than reading does.
fn pack_initrd(tree: &Path, busybox: &Package, init: &Path, to: &Path) -> Result<()> {
    let bin = tree.join("bin");
    fs::create_dir_all(&bin)?;
    rootfs::install_busybox(busybox, &bin)?;
    let mut archive = Archive::new(BufWriter::new(File::create(to)?));
    for name in ["dev", "proc", "sys", "root", "sbin"] {
        archive.directory(name)?;
    }
    archive.bytes("init", 0o755, &fs::read(init)?)?;
    // The kernel asks for modules by this name.
    archive.symlink("sbin/modprobe", "../bin/busybox")?;
    archive.tree("", tree)?;
    archive.finish()?;
    Ok(())
}

/// The release of the kernel whose modules are in a tree.
fn release(tree: &Path) -> Result<String> {
    let name = fs::read_dir(tree.join("lib/modules"))?
        .next()
        .context("a kernel without modules")??
        .file_name();
    name.into_string()
        .ok()
        .context("a kernel's release is not UTF-8")
}

/// The modules of an unpacked kernel package.
#[derive(Debug)]
struct Modules {
    /// The tree that holds `lib/modules`.
    root: PathBuf,
    /// `uname -r`.
    release: String,
}

impl Modules {
    fn of(root: &Path) -> Result<Self> {
        let modules = Self {
            root: root.to_owned(),
            release: release(root)?,
        };
        modules.index(root)?;
        Ok(modules)
    }

    /// Copies the modules that `list` names, and those they need, unpacked, with indexes for modprobe. Names that
    /// this kernel does not have are left out: another version may build them in.
    fn collect(&self, list: &Path, to: &Path) -> Result<()> {
        let text = fs::read_to_string(list)?;
        let names = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut paths = BTreeSet::new();
        for name in names {
            paths.extend(self.closure(name)?);
        }
        if paths.is_empty() {
            bail!(
                "none of the modules in {} are in this kernel",
                list.display()
            );
        }
        let base = self.root.join("lib/modules").join(&self.release);
        let new_base = to.join("lib/modules").join(&self.release);
        fs::create_dir_all(&new_base)?;
        for name in [
            "modules.builtin",
            "modules.builtin.modinfo",
            "modules.order",
        ] {
            fs::copy(base.join(name), new_base.join(name)).context(name)?;
        }
        for path in paths {
            let place = path
                .strip_prefix(&base)
                .context("a module lies outside its tree")?;
            copy_module(&path, &new_base.join(place))?;
        }
        self.index(to)
    }

    /// A module's file and those of the modules it needs.
    fn closure(&self, name: &str) -> Result<Vec<PathBuf>> {
        let modprobe = debian::find("modprobe").context("modprobe")?;
        let output = Command::new(modprobe)
            .arg("--dirname")
            .arg(&self.root)
            .args([
                "--set-version",
                &self.release,
                "--config",
                "/dev/null",
                "--show-depends",
                name,
            ])
            .stderr(Stdio::null())
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let files = text.lines().filter_map(|line| line.strip_prefix("insmod "));
        Ok(files
            .filter_map(|file| file.split_whitespace().next())
            .map(PathBuf::from)
            .collect())
    }

    fn index(&self, root: &Path) -> Result<()> {
        let depmod = debian::find("depmod").context("depmod")?;
        run::quiet(Command::new(depmod).arg("-b").arg(root).arg(&self.release))
    }
}

/// Copies a module, unpacked: a guest that boots in milliseconds has no time for xz.
fn copy_module(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    match from.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => {
            let status = Command::new("xz")
                .args(["-dc", "--"])
                .arg(from)
                .stdout(File::create(to.with_extension(""))?)
                .status()?;
            if !status.success() {
                bail!("cannot unpack {}", from.display());
            }
        }
        _ => {
            fs::copy(from, to)?;
        }
    }
    Ok(())
}
