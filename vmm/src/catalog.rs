//! From settings to devices: the only list of the kinds there are.
//!
//! A device that can be controlled while the VM runs leaves its control here, for the VM's handle. Runs
//! on the embedder's thread, before KVM is opened.

mod disk;
mod net;
mod pmem;
mod share;

use devices::rate::RateControl;
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, BalloonControl, BalloonOptions};
use devices::virtio::console::ConsoleControl;
use devices::virtio::net::NetControl;
use devices::virtio::rng::Rng;

pub(crate) use self::pmem::PlacedWindow;
use crate::config::{ConfigError, VmConfig, VsockConfig};
use crate::disk::DiskHandle;
use crate::error::BuildError;
use crate::net::Starting;
use crate::vsock::{self, Vsock};
pub(crate) use disk::options as disk_options;
pub use share::ShareOpenError;

/// Devices in the order of their slots: the guest finds them in this order.
pub(crate) type Devices = Vec<Box<dyn VirtioDevice>>;

/// What is in the guest's address space beside RAM and registers.
pub(crate) type Windows = Vec<PlacedWindow>;

/// What can be changed of the devices while the VM runs.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    /// The memory balloon.
    pub balloon: Option<BalloonControl>,
    /// The virtio-console.
    pub console: Option<ConsoleControl>,
    /// The vsock.
    pub vsock: Option<Vsock>,
    /// The disks, the root file system first.
    pub disks: Vec<DiskHandle>,
    /// The network cards, in the order of the settings.
    pub nets: Vec<NetControl>,
    /// The limits on each disk, the root file system first.
    pub disk_rates: Vec<RateControl>,
    /// The limits on each network card.
    pub net_rates: Vec<RateControl>,
    /// The limits on the source of entropy.
    pub rng_rate: Option<RateControl>,
}

/// What the settings come to.
pub(crate) struct Opened {
    pub devices: Devices,
    pub controls: Controls,
    pub windows: Windows,
    /// Helper processes that have been begun, to be waited for before the guest runs.
    pub helpers: Vec<Starting>,
}

/// Opens and checks everything the settings name. Disks come first, so that the root file system is the
/// first of all.
pub(crate) fn open(config: &VmConfig) -> Result<Opened, BuildError> {
    let mut controls = Controls::default();
    // Helpers start while the rest is opened.
    let (cards, helpers) = net::open(config)?;
    let mut devices = Devices::new();
    for (disk, handle) in disk::open(config)? {
        controls.disks.push(handle);
        controls.disk_rates.push(disk.rate_control());
        devices.push(Box::new(disk));
    }
    let mut windows = Windows::new();
    for pmem in pmem::open(config)? {
        windows.push(pmem::place(&pmem));
        devices.push(Box::new(pmem));
    }
    if !config.rng.off {
        let rng = Rng::default();
        let rate = rng.rate_control();
        rate.set(config.rng.limits().map_err(ConfigError::from)?);
        controls.rng_rate = Some(rate);
        devices.push(Box::new(rng));
    }
    if !config.balloon.off {
        let balloon = open_balloon(config)?;
        controls.balloon = Some(balloon.control());
        devices.push(Box::new(balloon));
    }
    // A command is reached by the vsock; where the user has none, it gets one of its own.
    let own = config.command.as_ref().map(|_| VsockConfig::private());
    if let Some(settings) = config.vsock.as_ref().or(own.as_ref()) {
        let (device, vsock) = vsock::open(settings)?;
        controls.vsock = Some(vsock);
        devices.push(Box::new(device));
    }
    for card in cards {
        controls.nets.push(card.control());
        controls.net_rates.push(card.rate_control());
        devices.push(Box::new(card));
    }
    for share in share::open(config)? {
        devices.push(Box::new(share));
    }
    Ok(Opened {
        devices,
        controls,
        windows,
        helpers,
    })
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
