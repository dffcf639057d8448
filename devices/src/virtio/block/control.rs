//! A disk's control: what can be done to it from any thread.

use std::sync::Arc;

use super::disk::Disk;
use super::image::ImageError;

/// Controls a disk. Cheap to clone, and of no use once the device is gone.
#[derive(Debug, Clone)]
pub struct DiskControl {
    disk: Arc<dyn Disk>,
}

impl DiskControl {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk }
    }

    /// Makes on disk what has to be there before the guest runs: everything else has been checked.
    ///
    /// # Errors
    /// Nothing can be stored.
    pub fn begin(&self) -> Result<(), ImageError> {
        self.disk.begin()
    }
}
