//! From what a user names to a disk: the only list of formats.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::Disk;
use super::engine::Engine;
use super::image::{Access, ImageError};
use super::layout::Layout;
use super::overlay::Overlay;
use super::qcow2::Qcow2;
use super::qcow2::header::MAGIC;
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
    /// What the image is; told by its name where nothing is said.
    pub format: Option<Format>,
    /// How several files make one disk.
    pub layout: Layout,
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk itself, byte for byte.
    Raw,
    /// QEMU's format.
    Qcow2,
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

/// Opens, checks and locks the image at `path`, or at several paths those that make one disk: exclusively if
/// it is written to, otherwise shared with other readers.
///
/// # Errors
/// See [`ImageError`]; nothing was changed.
pub fn open<P: AsRef<Path>>(paths: &[P], options: &Options) -> Result<Arc<dyn Disk>, ImageError> {
    let paths: Vec<PathBuf> = paths.iter().map(|path| path.as_ref().to_owned()).collect();
    let [path, ..] = paths.as_slice() else {
        return Err(ImageError::NoPath);
    };
    let engine = options.engine;
    engine.check().map_err(|source| ImageError::NoIoUring {
        path: path.to_owned(),
        source,
    })?;
    let direct = options.cache == Cache::None;
    let access = Access {
        read_only: options.read_only || options.overlay.is_some(),
        direct,
        any_size: false,
    };
    let store = open_image(&paths, options, access)?;
    let store = match &options.overlay {
        None => store,
        Some(Keep::Memory) => {
            let overlay = Overlay::in_memory(store).map_err(|source| ImageError::NoOverlay {
                path: path.to_owned(),
                source,
            })?;
            Box::new(overlay)
        }
        Some(Keep::File(file)) => Box::new(Overlay::in_file(store, &paths, file, direct)?),
    };
    Ok(Arc::new(StoredDisk::new(store.into(), engine)))
}

/// The image itself. Its contents tell its format only where a guest cannot have written them: a raw image
/// that became a qcow2 by what is in it could name any file of the host's as its backing file.
fn open_image(
    paths: &[PathBuf],
    options: &Options,
    access: Access,
) -> Result<Box<dyn Store>, ImageError> {
    let (path, several) = match paths {
        [path] => (path, false),
        [path, ..] => (path, true),
        [] => return Err(ImageError::NoPath),
    };
    let by_name = || match path.extension() {
        Some(extension) if extension == "qcow2" => Format::Qcow2,
        _ => Format::Raw,
    };
    let owned = || path.to_owned();
    match options.format.unwrap_or_else(by_name) {
        Format::Qcow2 if several => Err(ImageError::SeveralOfFormat { path: owned() }),
        Format::Qcow2 if options.engine == Engine::IoUring && options.overlay.is_none() => {
            Err(ImageError::EngineOfFormat { path: owned() })
        }
        Format::Qcow2 => {
            let access = Access {
                any_size: true,
                ..access
            };
            Ok(Box::new(Qcow2::open(path, access)?))
        }
        Format::Raw => {
            let raw = Raw::open(paths, options.layout, access)?;
            if options.format.is_none() && raw.begins_with(&MAGIC) {
                log::warn!(
                    "disk image {} begins like a qcow2 image, which a guest may have written, and is used as raw; say format=qcow2 if it is one",
                    path.display()
                );
            }
            Ok(Box::new(raw))
        }
    }
}
