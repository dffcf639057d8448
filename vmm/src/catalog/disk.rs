//! Disks: which image each of them stands on, and that no two of them do on one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use devices::virtio::VirtioDevice;
use devices::virtio::block::{self, Block, raw};

use super::Devices;
use crate::config::{Cache, DiskConfig, Engine, VmConfig};
use crate::error::BuildError;

/// All disks, the root file system first: opened, checked and locked.
pub(super) fn open(config: &VmConfig) -> Result<Devices, BuildError> {
    let all: Vec<&DiskConfig> = config.rootfs.iter().chain(&config.disks).collect();
    for (index, disk) in all.iter().enumerate() {
        // Two writers of one file are also kept apart by its lock; this tells the user why.
        let twice = |other: &&&DiskConfig| {
            !(disk.read_only && other.read_only) && same_file(&disk.path, &other.path)
        };
        if all.iter().take(index).any(|other| twice(&other)) {
            return Err(BuildError::ImageTwice(disk.path.clone()));
        }
    }
    all.into_iter()
        .map(|disk| {
            let options = raw::Options {
                read_only: disk.read_only,
                engine: engine(disk.engine),
                cache: cache(disk.cache),
            };
            let image = raw::open(&disk.path, options)?;
            let id = match &disk.serial {
                Some(serial) => serial.clone(),
                None => block::id_of(&disk.path),
            };
            Ok(Box::new(Block::new(image, &id)) as Box<dyn VirtioDevice>)
        })
        .collect()
}

fn engine(engine: Engine) -> block::Engine {
    match engine {
        Engine::Auto => block::Engine::Auto,
        Engine::Sync => block::Engine::Sync,
        Engine::IoUring => block::Engine::IoUring,
    }
}

fn cache(cache: Cache) -> raw::Cache {
    match cache {
        Cache::Writeback => raw::Cache::Writeback,
        Cache::None => raw::Cache::None,
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}
