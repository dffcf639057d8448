//! Persistent memories: opened, and given their places in the guest's address space.

use std::sync::Arc;

use arch::x86_64::memory;
use devices::virtio::pmem::{Pmem, Window};

use crate::config::VmConfig;
use crate::error::BuildError;

/// A file and where in the guest's address space it goes.
#[derive(Debug, Clone)]
pub(crate) struct PlacedWindow {
    /// Guest physical address.
    pub start: u64,
    /// The file.
    pub window: Arc<Window>,
}

/// All of them, each behind the other, above all RAM.
pub(super) fn open(config: &VmConfig) -> Result<Vec<Pmem>, BuildError> {
    let mut next = memory::windows_start(config.mem.as_bytes());
    let mut all = Vec::new();
    for settings in &config.pmems {
        let pmem = Pmem::open(&settings.path, settings.read_only, next)?;
        next = memory::next_window(next, pmem.window().len());
        all.push(pmem);
    }
    Ok(all)
}

/// Where the window of `pmem` goes.
pub(super) fn place(pmem: &Pmem) -> PlacedWindow {
    PlacedWindow {
        start: pmem.start(),
        window: pmem.window(),
    }
}
