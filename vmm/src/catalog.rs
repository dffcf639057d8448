//! From settings to devices: the only list of the kinds there are.
//!
//! A device that can be controlled while the VM runs leaves its control here, for the VM's handle. Runs
//! on the embedder's thread, before KVM is opened.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, BalloonControl, BalloonOptions};
use devices::virtio::block::Block;
use devices::virtio::block::raw::RawDisk;
use devices::virtio::rng::Rng;

use crate::config::{DiskConfig, VmConfig};
use crate::error::BuildError;

/// Devices in the order of their slots: the guest finds them in this order.
pub(crate) type Devices = Vec<Box<dyn VirtioDevice>>;

/// What can be changed of the devices while the VM runs.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    /// The memory balloon.
    pub balloon: Option<BalloonControl>,
}

/// Opens and checks everything the settings name. Disks come first, so that the root file system is the
/// first of all.
pub(crate) fn open(config: &VmConfig) -> Result<(Devices, Controls), BuildError> {
    let mut controls = Controls::default();
    let mut devices = open_disks(config)?;
    if !config.rng.off {
        devices.push(Box::new(Rng::default()));
    }
    if !config.balloon.off {
        let balloon = open_balloon(config)?;
        controls.balloon = Some(balloon.control());
        devices.push(Box::new(balloon));
    }
    Ok((devices, controls))
}

/// All disks, the root file system first: opened, checked and locked.
fn open_disks(config: &VmConfig) -> Result<Devices, BuildError> {
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
            let image = RawDisk::open(&disk.path, disk.read_only)?;
            let image = match &disk.serial {
                Some(serial) => image.with_id(serial.clone()),
                None => image,
            };
            Ok(Box::new(Block::new(Box::new(image))) as Box<dyn VirtioDevice>)
        })
        .collect()
}

fn open_balloon(config: &VmConfig) -> Result<Balloon, BuildError> {
    let settings = &config.balloon;
    Balloon::new(BalloonOptions {
        memory: config.mem.as_bytes(),
        target: settings.size.as_bytes(),
        deflate_on_oom: settings.deflate_on_oom,
        free_page_reporting: settings.free_page_reporting,
        stats_interval: settings.stats_interval.duration(),
    })
    .map_err(|source| BuildError::Device {
        what: "balloon",
        source,
    })
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}
