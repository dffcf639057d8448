//! A disk of a VM that runs: what [`DiskControl`] does to it, and another image in its place.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::virtio::block::{self, DiskControl, DiskControlError};
pub use devices::virtio::block::{
    BUCKETS, DiskState, DiskStatistics, Operation, OperationStatistics, ResizeError,
};
use thiserror::Error;

use crate::catalog;
use crate::config::{DiskConfig, Overlay};

/// Why a disk keeps its image.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SwapError {
    /// It is made of several images.
    #[error("a disk of several images keeps them")]
    Several,
    /// What its guest has written belongs to its image.
    #[error("a disk with an overlay in a file keeps its image, which the overlay belongs to")]
    Overlay,
    /// The new image cannot be used.
    #[error("disk image {0}")]
    Image(#[from] block::ImageError),
    /// The disk.
    #[error(transparent)]
    Control(#[from] DiskControlError),
}

/// A disk, under control. Cheap to clone, and of no use once the VM is over.
#[derive(Debug, Clone)]
pub struct DiskHandle {
    control: DiskControl,
    config: Arc<DiskConfig>,
}

impl DiskHandle {
    pub(crate) fn new(control: DiskControl, config: &DiskConfig) -> Self {
        let config = Arc::new(config.clone());
        Self { control, config }
    }

    /// What the VM was told of it when it was built.
    #[must_use]
    pub fn config(&self) -> &DiskConfig {
        &self.config
    }

    /// Puts the image at `path` in the place of the one that the disk stands on: opened in the same manner,
    /// checked and locked before anything changes. The guest is told that its disk may have another size;
    /// that there is other data on it is for whoever asks for this to have arranged. Requests that wait, or
    /// that the host has failed, go to the new image.
    ///
    /// # Errors
    /// The new image cannot be used so; the old one stays.
    pub fn swap(&self, path: &Path) -> Result<(), SwapError> {
        let config = &self.config;
        if !config.more.is_empty() {
            return Err(SwapError::Several);
        }
        if matches!(config.overlay, Some(Overlay::File(_))) {
            return Err(SwapError::Overlay);
        }
        let disk = block::open(&[PathBuf::from(path)], &catalog::disk_options(config))?;
        Ok(self.control.replace(disk)?)
    }
}

impl Deref for DiskHandle {
    type Target = DiskControl;

    fn deref(&self) -> &DiskControl {
        &self.control
    }
}
