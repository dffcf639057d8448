//! `cargo xtask guest`: the files that guests are booted from, made once and cached.

mod bzimage;
mod cache;
mod rootfs;
mod stock;
mod tiny;

use std::path::PathBuf;

use anyhow::{Context, Result};

pub use self::cache::Cache;
use crate::{debian, workspace};

/// Which guest files are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Debian's cloud kernel as it is shipped, an initrd with its modules, and a root file system.
    Stock,
    /// A small kernel built from Debian's source, and the same root file system.
    Tiny,
    /// Both.
    All,
}

/// A stock Debian kernel and what it boots with.
#[derive(Debug, Clone)]
pub struct Stock {
    /// The bzImage as Debian ships it.
    pub vmlinuz: PathBuf,
    /// The ELF kernel inside it.
    pub vmlinux: PathBuf,
    /// Its release, as `uname -r` gives it.
    pub release: String,
    /// An initramfs with its virtio modules, which mounts `root=`.
    pub initrd: PathBuf,
    /// The modules that the lab loads when this kernel is its own: a tree to be put at `/`.
    pub lab_modules: PathBuf,
}

/// The small kernel.
#[derive(Debug, Clone)]
pub struct Tiny {
    /// The ELF kernel, with a PVH note.
    pub vmlinux: PathBuf,
    /// The same kernel as a bzImage.
    pub bzimage: PathBuf,
}

/// Everything that can be prepared, with the cache it lives in.
#[derive(Debug)]
pub struct Guests {
    cache: Cache,
    packages: Vec<debian::Package>,
}

impl Guests {
    /// Looks up which packages the files would be made of.
    pub fn open() -> Result<Self> {
        let mut names = vec![rootfs::PACKAGE, rootfs::CHECKER, tiny::PACKAGE];
        names.extend(stock::PACKAGES);
        Ok(Self {
            cache: Cache::open()?,
            packages: debian::known(&names)?,
        })
    }

    /// The stock kernel's files.
    pub fn stock(&self) -> Result<Stock> {
        stock::prepare(self)
    }

    /// The small kernel's files: minutes, the first time.
    pub fn tiny(&self) -> Result<Tiny> {
        tiny::prepare(self)
    }

    /// The small kernel's files, if they have been made.
    pub fn tiny_if_built(&self) -> Result<Option<Tiny>> {
        tiny::if_built(self)
    }

    /// The root file system: an ext4 image, never to be written in place.
    pub fn rootfs(&self) -> Result<PathBuf> {
        rootfs::prepare(self)
    }

    /// The same root file system as compressed images, and their names.
    pub fn compressed(&self) -> Result<Vec<(&'static str, PathBuf)>> {
        let directory = rootfs::prepare_compressed(self)?;
        Ok(rootfs::COMPRESSED
            .map(|name| (name, directory.join(name)))
            .into())
    }

    /// A directory with busybox and a link for each of its applets.
    pub fn busybox(&self) -> Result<PathBuf> {
        rootfs::busybox(self)
    }

    /// The first of these packages that this Debian has.
    fn package(&self, names: &[&str]) -> Result<&debian::Package> {
        names
            .iter()
            .find_map(|name| self.packages.iter().find(|package| package.name == *name))
            .with_context(|| format!("this Debian has no package {}", names.join(" nor ")))
    }
}

/// Prepares what was asked for, or only finds it; names and paths, in the order they are printed.
pub fn prepare(kind: Kind, only_find: bool) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut guests = Guests::open()?;
    if only_find {
        guests.cache = guests.cache.without_building();
    }
    let mut paths = Vec::new();
    if kind != Kind::Tiny {
        let stock = guests.stock()?;
        paths.extend([
            ("vmlinuz", stock.vmlinuz),
            ("vmlinux", stock.vmlinux),
            ("initrd", stock.initrd),
        ]);
    }
    if kind != Kind::Stock {
        let tiny = guests.tiny()?;
        paths.extend([
            ("tiny-vmlinux", tiny.vmlinux),
            ("tiny-bzimage", tiny.bzimage),
        ]);
    }
    paths.push(("rootfs", guests.rootfs()?));
    Ok(paths)
}

/// A file of the recipes.
fn resource(path: &str) -> PathBuf {
    workspace::root().join("resources").join(path)
}
