//! From what a user names to a disk: the only list of formats.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::Disk;
use super::engine::Engine;
use super::image::{Access, ImageError};
use super::overlay::Overlay;
use super::raw::Raw;
use super::store::{Store, StoredDisk};

/// How an image is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The guest may not write it, and others may read it.
    pub read_only: bool,
    /// Who moves the data.
    pub engine: Engine,
    /// Whether the host's page cache is used.
    pub cache: Cache,
    /// What the guest writes goes there, and the image stays as it is.
    pub overlay: Option<Keep>,
}

/// Whether the host's page cache stands between the guest and the disk. Either way a guest that flushes
/// has its data on stable storage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cache {
    /// It does: what was written is read from memory, also by other VMs.
    #[default]
    Writeback,
    /// It does not (O_DIRECT): memory is spent once, in the guest.
    None,
}

/// Where an overlay is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// In memory, until the disk is gone.
    Memory,
    /// In a sparse file, which is made if it does not exist, and can be used again with the same image.
    File(PathBuf),
}

/// Opens, checks and locks the image at `path`: exclusively if it is written to, otherwise shared with
/// other readers.
///
/// # Errors
/// See [`ImageError`]; nothing was changed.
pub fn open(path: &Path, options: &Options) -> Result<Arc<dyn Disk>, ImageError> {
    let engine = options.engine;
    engine.check().map_err(|source| ImageError::NoIoUring {
        path: path.to_owned(),
        source,
    })?;
    let direct = options.cache == Cache::None;
    let access = Access {
        read_only: options.read_only || options.overlay.is_some(),
        direct,
    };
    let store: Box<dyn Store> = Box::new(Raw::open(path, access)?);
    let store = match &options.overlay {
        None => store,
        Some(Keep::Memory) => {
            let overlay = Overlay::in_memory(store).map_err(|source| ImageError::NoOverlay {
                path: path.to_owned(),
                source,
            })?;
            Box::new(overlay)
        }
        Some(Keep::File(file)) => Box::new(Overlay::in_file(store, path, file, direct)?),
    };
    Ok(Arc::new(StoredDisk::new(store.into(), engine)))
}
