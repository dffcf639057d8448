//! QEMU's own format, through the crate imago, with its backing files.
//!
//! A qcow2 image names other files and has the host open them, so it is used only where the user says that
//! it is one, or its name does; never because a guest wrote the right first bytes into a raw image. What
//! it names is opened here, not by imago: locked like every image, in a chain that ends, and of a format
//! that the image tells.
//!
//! imago's calls are done when they return, whatever the engine. Clusters are allocated and freed in
//! memory and written out at a flush, the counts before the references to them ([`ordered`]); what a killed
//! mvm had not flushed is at worst lost space.
//!
//! Should imago panic, that is the end of this image and not of the VM: what it had in memory is not
//! trusted any more, nor written, and each request fails.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};

use super::buffers::Buffers;
use super::disk::DiskInfo;
use super::file::DiskFile;
use super::image::{self, Access, ImageError};
use super::store::{Place, Span, Store};
use check::Fault;
use header::{Header, Qcow2Error};
use ordered::Ordered;

mod check;
mod counts;
pub(super) mod header;
mod ordered;
#[cfg(test)]
mod tests;

/// The longest chain of backing files.
const MAX_LAYERS: usize = 32;

/// A qcow2 image.
#[derive(Debug)]
pub(super) struct Qcow2 {
    /// The image, and behind it its backing files, all open and locked.
    layers: Vec<Layer>,
    info: DiskInfo,
    /// Of the format, 2 or 3.
    version: u32,
    /// Bytes.
    cluster: u64,
    /// Opened for writing by `begin`.
    image: OnceLock<Image>,
    /// imago has panicked.
    broken: AtomicBool,
}

// A discard must be alone, everything else is not: imago keeps its own state in order.
type Image = RwLock<FormatAccess<Ordered>>;

/// One file of a chain.
#[derive(Debug)]
struct Layer {
    path: PathBuf,
    file: Arc<DiskFile>,
    /// None for a raw image.
    header: Option<Header>,
}

impl Qcow2 {
    /// Opens, locks and checks the image at `path` and its backing files.
    pub(super) fn open(path: &Path, access: Access) -> Result<Self, ImageError> {
        let layers = chain(path, access)?;
        let [
            Layer {
                header: Some(header),
                ..
            },
            ..,
        ] = layers.as_slice()
        else {
            return Err(refused(path, Qcow2Error::Magic));
        };
        let info = DiskInfo {
            capacity: header.size,
            read_only: access.read_only,
            block_size: 4096,
            // Version 2 cannot say that a cluster is zero.
            discard: !access.read_only && header.version > 2,
        };
        let disk = Self {
            info,
            version: header.version,
            cluster: header.counts.cluster,
            layers,
            image: OnceLock::new(),
            broken: AtomicBool::new(false),
        };
        // Whoever only reads may have it at once. A writer has its tables read for now, since to open it
        // for writing may change its header.
        let image = disk.build(false)?;
        if access.read_only {
            let _ = disk.image.set(RwLock::new(image));
        }
        Ok(disk)
    }

    /// imago's view of the chain, from its end.
    fn build(&self, writable: bool) -> Result<FormatAccess<Ordered>, ImageError> {
        let mut below = None;
        for (depth, layer) in self.layers.iter().enumerate().rev() {
            let built = self.fenced(|| layer.build(below.take(), writable && depth == 0));
            below = Some(built.map_err(|source| ImageError::Io {
                path: layer.path.clone(),
                source,
            })?);
        }
        below.ok_or_else(|| refused(Path::new(""), Qcow2Error::Magic))
    }

    /// Has imago do something.
    fn call<T>(&self, call: impl FnOnce(&FormatAccess<Ordered>) -> io::Result<T>) -> io::Result<T> {
        let image = self.image.get().ok_or(ErrorKind::NotFound)?;
        let image = image.read().unwrap_or_else(PoisonError::into_inner);
        self.fenced(|| call(&image))
    }

    /// The same, with nothing else under way.
    fn call_alone<T>(
        &self,
        call: impl FnOnce(&mut FormatAccess<Ordered>) -> io::Result<T>,
    ) -> io::Result<T> {
        let image = self.image.get().ok_or(ErrorKind::NotFound)?;
        let mut image = image.write().unwrap_or_else(PoisonError::into_inner);
        self.fenced(|| call(&mut image))
    }

    /// The clusters that a range covers, as a range. The last of a disk may be a short one.
    fn whole_clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset + len;
        let last = if end == self.info.capacity {
            end
        } else {
            end - end % self.cluster
        };
        let first = offset.next_multiple_of(self.cluster);
        first..last.max(first)
    }

    /// Gives the space of clusters back that are about to be freed, which imago only counts as free. Clusters that
    /// a snapshot has too are not touched: they may not be written.
    fn punch(&self, image: &FormatAccess<Ordered>, range: &Range<u64>) -> io::Result<()> {
        let file = self.layers.first().map(|layer| &layer.file);
        let mut at = range.start;
        while at < range.end {
            let (mapping, len) = image.get_mapping(at, range.end - at)?;
            if let (
                Mapping::Raw {
                    offset,
                    writable: true,
                    ..
                },
                Some(file),
            ) = (mapping, file)
            {
                file.discard(offset, len)?;
            }
            if len == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            at += len;
        }
        Ok(())
    }

    /// Writes zeroes where there are none.
    fn clear_by_writing(&self, range: Range<u64>) -> io::Result<()> {
        const PIECE: u64 = 1 << 20;
        let mut at = range.start;
        while at < range.end {
            let len = PIECE.min(range.end - at);
            let (is_zero, len) = self.call(|image| {
                let (mapping, len) = image.get_mapping(at, len)?;
                Ok((matches!(mapping, Mapping::Zero { .. }), len))
            })?;
            if len == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if !is_zero {
                self.write_inside(at, Buffers::of_zeroes(len))?;
            }
            at += len;
        }
        Ok(())
    }

    /// Lets no panic out, and nothing in after one.
    fn fenced<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        const BROKEN: &str = "qcow2 code has failed on this image";
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::other(BROKEN));
        }
        // What a panic leaves half done is not looked at again.
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
            if !self.broken.swap(true, Ordering::AcqRel) {
                let path = self.layers.first().map(|layer| layer.path.as_path());
                log::error!(
                    "disk image {}: {BROKEN}; the guest gets I/O errors from now on: end it, and look at the image with `qemu-img check`",
                    path.unwrap_or(Path::new("")).display()
                );
            }
            Err(io::Error::other(BROKEN))
        })
    }
}

impl Layer {
    fn open(path: &Path, is_qcow2: bool, access: Access) -> Result<Self, ImageError> {
        let file = DiskFile::open(path, access)?;
        let header = match is_qcow2 {
            true => Some(read_header(path, &file)?),
            false => None,
        };
        if let Some(header) = &header {
            check::check(&file, header, !access.read_only).map_err(|fault| match fault {
                Fault::Image(error) => refused(path, error),
                Fault::Host(source) => ImageError::Io {
                    path: path.to_owned(),
                    source,
                },
            })?;
        }
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            header,
        })
    }

    fn build(
        &self,
        below: Option<FormatAccess<Ordered>>,
        writable: bool,
    ) -> io::Result<FormatAccess<Ordered>> {
        let file = match &self.header {
            Some(header) if writable => Ordered::new(&self.file, header)?,
            _ => Ordered::read_only(&self.file)?,
        };
        let deny = DenyImplicitOpenGate::default();
        match self.header {
            None => Ok(FormatAccess::new(
                Raw::builder(file).write(false).open(deny)?,
            )),
            Some(_) => Ok(FormatAccess::new(
                imago::qcow2::Qcow2::<Ordered>::builder(file)
                    .write(writable)
                    .backing(below)
                    .data_file(None)
                    .open(deny)?,
            )),
        }
    }
}

/// The image at `path` and what it is made of, nearest first.
fn chain(path: &Path, access: Access) -> Result<Vec<Layer>, ImageError> {
    let mut layers = vec![Layer::open(path, true, access)?];
    let mut seen = vec![identity(path)?];
    while let Some(Layer {
        path,
        header: Some(Header {
            backing: Some(backing),
            ..
        }),
        ..
    }) = layers.last()
    {
        // A name that is not absolute begins where its image is.
        let below = path.parent().unwrap_or(Path::new("")).join(&backing.name);
        let file = identity(&below)?;
        if seen.contains(&file) {
            return Err(refused(path, Qcow2Error::Chain("comes back to itself")));
        }
        if layers.len() == MAX_LAYERS {
            return Err(refused(path, Qcow2Error::Chain("is too long")));
        }
        seen.push(file);
        let access = Access {
            read_only: true,
            any_size: true,
            ..access
        };
        let layer = Layer::open(&below, backing.is_qcow2, access)?;
        layers.push(layer);
    }
    Ok(layers)
}

/// What makes two paths one file.
fn identity(path: &Path) -> Result<(u64, u64), ImageError> {
    let metadata = path.metadata();
    let metadata = metadata.map_err(|source| image::refusal(path, true, source))?;
    Ok((metadata.dev(), metadata.ino()))
}

fn read_header(path: &Path, file: &DiskFile) -> Result<Header, ImageError> {
    let read = |len: usize| {
        let len = usize::try_from(file.len()).map_or(len, |all| len.min(all));
        let mut bytes = vec![0; len];
        file.read(0, Buffers::of_bytes(&mut bytes))
            .map_err(|source| ImageError::Io {
                path: path.to_owned(),
                source,
            })?;
        Ok(bytes)
    };
    let check = |error| refused(path, error);
    let start = read(512)?;
    let head = read(header::head_len(&start).map_err(check)?)?;
    Header::parse(&head, file.len()).map_err(check)
}

fn refused(path: &Path, source: Qcow2Error) -> ImageError {
    ImageError::Qcow2 {
        path: path.to_owned(),
        source,
    }
}

impl Store for Qcow2 {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn begin(&self) -> Result<(), ImageError> {
        if self.image.get().is_none() {
            let _ = self.image.set(RwLock::new(self.build(true)?));
        }
        Ok(())
    }

    fn file_count(&self) -> usize {
        0
    }

    fn file(&self, _index: usize) -> Option<&DiskFile> {
        None
    }

    fn read(&self, offset: u64, len: u64, spans: &mut Vec<Span>) {
        spans.push(Span {
            place: Place::Inside,
            offset,
            len,
        });
    }

    fn write(&self, offset: u64, len: u64, spans: &mut Vec<Span>) -> io::Result<()> {
        self.read(offset, len, spans);
        Ok(())
    }

    fn read_inside(&self, offset: u64, buffers: Buffers<'_>) -> io::Result<()> {
        let slices: Vec<_> = buffers.slices().collect();
        let (vector, _guard) = IoVectorMut::from_volatile_slice(&slices);
        self.call(|image| image.readv(vector, offset))
    }

    fn write_inside(&self, offset: u64, buffers: Buffers<'_>) -> io::Result<()> {
        let slices: Vec<_> = buffers.slices().collect();
        let (vector, _guard) = IoVector::from_volatile_slice(&slices);
        self.call(|image| image.writev(vector, offset))
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let whole = self.whole_clusters(offset, len);
        if whole.is_empty() {
            return Ok(());
        }
        self.call_alone(|image| {
            self.punch(image, &whole)?;
            image.discard_to_any(whole.start, whole.end - whole.start)
        })
    }

    // Only whole clusters are left to imago: of ranges of less, 0.2.6 computes with numbers below zero.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let end = offset + len;
        let mut whole = self.whole_clusters(offset, len);
        if self.version < 3 || whole.is_empty() {
            // Version 2 has no word for zeroes: they are data like any other.
            whole = end..end;
        }
        self.clear_by_writing(offset..whole.start)?;
        self.clear_by_writing(whole.end..end)?;
        let (start, len) = (whole.start, whole.end - whole.start);
        if len == 0 {
            Ok(())
        } else if unmap {
            self.call_alone(|image| {
                self.punch(image, &whole)?;
                image.discard_to_zero(start, len)
            })
        } else {
            self.call(|image| image.write_zeroes(start, len))
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.call(|image| {
            image.flush()?;
            image.sync()
        })
    }

    fn flushed_by_sync(&self) -> Option<usize> {
        None
    }
}

/// A guest that ends without a flush has its last writes all the same.
impl Drop for Qcow2 {
    fn drop(&mut self) {
        if self.broken.load(Ordering::Acquire) {
            // imago would write what it has in memory. Its memory and its descriptors are the price.
            std::mem::forget(self.image.take());
            return;
        }
        if !self.info.read_only
            && self.image.get().is_some()
            && let Err(error) = self.flush()
        {
            log::warn!("qcow2 image: what was written last is lost: {error}");
        }
        let image = self.image.take();
        // A panic is told there.
        let _ = self.fenced(|| {
            drop(image);
            Ok(())
        });
    }
}
