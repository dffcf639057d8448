//! Disks: which image each of them stands on, and that no two of them do on one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use devices::virtio::block::{self, Block, ImageError, Keep, Manner, Options};

use crate::config::{
    Cache, ConfigError, DiskConfig, Engine, Format, Layout, OnError, Overlay, VmConfig,
};
use crate::disk::DiskHandle;
use crate::error::BuildError;

/// All disks, the root file system first: opened, checked and locked. Nothing is changed yet.
pub(super) fn open(config: &VmConfig) -> Result<Vec<(Block, DiskHandle)>, BuildError> {
    let all: Vec<&DiskConfig> = config.rootfs.iter().chain(&config.disks).collect();
    for (index, disk) in all.iter().enumerate() {
        // Two writers of one file are also kept apart by its lock; this tells the user why.
        let others = || all.iter().take(index).flat_map(|other| other.files());
        let twice = disk.files().find(|(path, writes)| {
            others()
                .any(|(other, other_writes)| (*writes || other_writes) && same_file(path, other))
        });
        if let Some((path, _)) = twice {
            return Err(BuildError::ImageTwice(path.to_owned()));
        }
    }
    all.into_iter().map(open_one).collect()
}

fn open_one(disk: &DiskConfig) -> Result<(Block, DiskHandle), BuildError> {
    let limits = disk.limits().map_err(ConfigError::from)?;
    let images: Vec<&Path> = disk.images().collect();
    let image = block::open(&images, &options(disk)).map_err(|error| plus_sign(disk, error))?;
    let id = match &disk.serial {
        Some(serial) => serial.clone(),
        None => block::id_of(&disk.path),
    };
    let manner = Manner {
        on_error: match disk.on_error {
            OnError::Report => block::OnError::Report,
            OnError::Stop => block::OnError::Stop,
        },
        queues: disk.queues,
    };
    let block = Block::with_manner(image, &id, manner);
    block.rate_control().set(limits);
    let handle = DiskHandle::new(block.control(), disk);
    Ok((block, handle))
}

/// How its image is used.
pub(crate) fn options(disk: &DiskConfig) -> Options {
    Options {
        read_only: disk.read_only,
        engine: engine(disk.engine),
        cache: cache(disk.cache),
        overlay: disk.overlay.as_ref().map(|overlay| match overlay {
            Overlay::Memory => Keep::Memory,
            Overlay::File(file) => Keep::File(file.clone()),
        }),
        format: disk.format.map(|format| match format {
            Format::Raw => block::Format::Raw,
            Format::Qcow2 => block::Format::Qcow2,
        }),
        layout: match disk.layout {
            Layout::Linear => block::Layout::Linear,
            Layout::Stripe(size) => block::Layout::Stripe(size.as_bytes()),
        },
    }
}

/// A file whose name has a plus sign was taken for two.
fn plus_sign(disk: &DiskConfig, error: ImageError) -> BuildError {
    let names: Vec<_> = disk.images().map(|path| path.to_string_lossy()).collect();
    let name = names.join("+");
    if matches!(error, ImageError::Missing { .. }) && names.len() > 1 && Path::new(&name).exists() {
        return BuildError::PlusSign(name.into());
    }
    BuildError::Image(error)
}

fn engine(engine: Engine) -> block::Engine {
    match engine {
        Engine::Auto => block::Engine::Auto,
        Engine::Sync => block::Engine::Sync,
        Engine::IoUring => block::Engine::IoUring,
    }
}

fn cache(cache: Cache) -> block::Cache {
    match cache {
        Cache::Writeback => block::Cache::Writeback,
        Cache::None => block::Cache::None,
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}
