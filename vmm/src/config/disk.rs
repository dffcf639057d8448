//! What a disk is made of, and its command-line form `PATH[,ro][,key=value]…`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use devices::rate::Limits;
use devices::virtio::block::MAX_BLOCK_QUEUES;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::list::{Choice, ListError, OptionList, escape, split_at};
use super::rate::{RateError, RateLimit};
pub use layout::{Layout, LayoutError};

mod layout;

/// Virtio 1.2 §5.2.6, VIRTIO_BLK_T_GET_ID: the id string is at most 20 bytes.
pub const SERIAL_MAX: usize = 20;

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskConfig {
    /// The image file or block device.
    pub path: PathBuf,
    /// Further ones that make one disk with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<PathBuf>,
    /// How they do.
    #[serde(default, skip_serializing_if = "is_default")]
    pub layout: Layout,
    /// The guest may not write it; other VMs may read it at the same time.
    #[serde(default, rename = "ro", skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The serial number the guest sees, at most [`SERIAL_MAX`] bytes; by default made from the file's
    /// name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Who moves the data.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: Engine,
    /// Whether the host's page cache is used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: Cache,
    /// What the guest writes goes there, and the image stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
    /// What the image is; by default qcow2 where its name ends so, and raw otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// What is done about requests that the host fails.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_error: OnError,
    /// How many queues the guest can fill at once.
    #[serde(default = "one_queue", skip_serializing_if = "is_one_queue")]
    pub queues: u16,
    /// How much it reads and writes at most.
    #[serde(flatten)]
    pub rate: RateLimit,
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The disk itself, byte for byte.
    Raw,
    /// QEMU's format.
    Qcow2,
}

impl Choice for Format {
    const NAMES: &'static [(&'static str, Self)] = &[("raw", Self::Raw), ("qcow2", Self::Qcow2)];
}

fn one_queue() -> u16 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one_queue(queues: &u16) -> bool {
    *queues == 1
}

/// What is done about requests that the host fails: it has no room left, or its own disk breaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The guest gets an I/O error.
    #[default]
    Report,
    /// The VM is paused, and they are tried again when it is resumed.
    Stop,
}

impl Choice for OnError {
    const NAMES: &'static [(&'static str, Self)] =
        &[("report", Self::Report), ("stop", Self::Stop)];
}

/// Where what the guest writes is kept, apart from the image. In a table it is `overlay = true` or
/// `overlay = "FILE"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OverlayForm", into = "OverlayForm")]
pub enum Overlay {
    /// In memory, as long as the VM lives.
    Memory,
    /// In a file, which is made if it does not exist.
    File(PathBuf),
}

/// An overlay in a table.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum OverlayForm {
    Switch(bool),
    File(PathBuf),
}

impl TryFrom<OverlayForm> for Overlay {
    type Error = &'static str;

    fn try_from(form: OverlayForm) -> Result<Self, Self::Error> {
        match form {
            OverlayForm::Switch(true) => Ok(Self::Memory),
            OverlayForm::Switch(false) => Err("overlay is true or a file; leave it out for none"),
            OverlayForm::File(file) => Ok(Self::File(file)),
        }
    }
}

impl From<Overlay> for OverlayForm {
    fn from(overlay: Overlay) -> Self {
        match overlay {
            Overlay::Memory => Self::Switch(true),
            Overlay::File(file) => Self::File(file),
        }
    }
}

/// Whether a setting is what it is where nothing is said.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Who moves a disk's data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// io_uring where the host's kernel has it.
    #[default]
    Auto,
    /// One system call after the other.
    Sync,
    /// io_uring.
    IoUring,
}

impl Choice for Engine {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("sync", Self::Sync),
        ("io_uring", Self::IoUring),
    ];
}

/// Whether the host's page cache stands between the guest and the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// It does.
    #[default]
    Writeback,
    /// It does not (O_DIRECT).
    None,
}

impl Choice for Cache {
    const NAMES: &'static [(&'static str, Self)] =
        &[("writeback", Self::Writeback), ("none", Self::None)];
}

/// Why a disk is not one.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskError {
    /// The list itself is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// The path is an empty string.
    #[error("the disk's path is empty; name an image file or a block device")]
    EmptyPath,
    /// No path on one side of a plus sign.
    #[error("a part of '{0}' is empty; write a plus sign that belongs to a path twice")]
    EmptyPart(String),
    /// A layout of one file.
    #[error("disk {0} is of one file, and a layout is for several; write them as a.img+b.img")]
    LayoutOfOne(String),
    /// A layout that is none.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The overlay's path is an empty string.
    #[error(
        "the overlay of disk {0} has no name; write overlay=FILE, or overlay to keep it in memory"
    )]
    EmptyOverlay(String),
    /// Nothing is written to a disk that is read-only.
    #[error(
        "disk {0} cannot be 'ro' and have an overlay, which is for what the guest writes; leave one out"
    )]
    ReadOnlyOverlay(String),
    /// No number of queues.
    #[error("queues={0} is not a number from 1 to {MAX_BLOCK_QUEUES}")]
    Queues(String),
    /// A limit of its rate.
    #[error("disk {path}: {source}")]
    Rate {
        /// Which disk.
        path: String,
        /// What is wrong with it.
        source: RateError,
    },
    /// A serial number of no bytes, or of too many.
    #[error("serial '{serial}' of disk {path} is {len} bytes; it can have 1 to {SERIAL_MAX}")]
    SerialLength {
        /// What was asked for.
        serial: String,
        /// Its length in bytes.
        len: usize,
        /// Which disk.
        path: String,
    },
    /// A serial number that would not survive the guest's `/sys` and `/dev/disk/by-id`.
    #[error("serial '{serial}' of disk {path} may contain only printable ASCII without spaces")]
    SerialCharacter {
        /// What was asked for, escaped.
        serial: String,
        /// Which disk.
        path: String,
    },
}

impl DiskConfig {
    /// A writable disk with the default serial number.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            more: Vec::new(),
            layout: Layout::default(),
            read_only: false,
            serial: None,
            engine: Engine::default(),
            cache: Cache::default(),
            overlay: None,
            format: None,
            on_error: OnError::default(),
            queues: 1,
            rate: RateLimit::default(),
        }
    }

    /// The limits of its rate, as devices have them.
    ///
    /// # Errors
    /// They make no sense.
    pub fn limits(&self) -> Result<Limits, DiskError> {
        self.rate.limits().map_err(|source| DiskError::Rate {
            path: self.path.display().to_string(),
            source,
        })
    }

    /// The images that it is made of.
    pub fn images(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.path)
            .chain(&self.more)
            .map(PathBuf::as_path)
    }

    /// The files it needs, and whether it writes to each.
    pub fn files(&self) -> impl Iterator<Item = (&Path, bool)> {
        let writes = !self.read_only && self.overlay.is_none();
        let overlay = self.overlay.as_ref().and_then(|overlay| match overlay {
            Overlay::Memory => None,
            Overlay::File(file) => Some((file.as_path(), true)),
        });
        self.images().map(move |path| (path, writes)).chain(overlay)
    }

    /// The same, to be changed.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let overlay = self.overlay.as_mut().and_then(|overlay| match overlay {
            Overlay::Memory => None,
            Overlay::File(file) => Some(file),
        });
        std::iter::once(&mut self.path)
            .chain(&mut self.more)
            .chain(overlay)
    }

    /// Checks what can be known without opening the image.
    ///
    /// # Errors
    /// An empty path, a limit that is none, or a serial number the guest could not be given.
    pub fn validate(&self) -> Result<(), DiskError> {
        if self.images().any(|path| path.as_os_str().is_empty()) {
            return Err(DiskError::EmptyPath);
        }
        self.limits()?;
        if !(1..=MAX_BLOCK_QUEUES).contains(&self.queues) {
            return Err(DiskError::Queues(self.queues.to_string()));
        }
        let path = self.path.display().to_string();
        if matches!(&self.overlay, Some(Overlay::File(file)) if file.as_os_str().is_empty()) {
            return Err(DiskError::EmptyOverlay(path));
        }
        if self.more.is_empty() && self.layout != Layout::Linear {
            return Err(DiskError::LayoutOfOne(path));
        }
        if self.read_only && self.overlay.is_some() {
            return Err(DiskError::ReadOnlyOverlay(path));
        }
        let Some(serial) = &self.serial else {
            return Ok(());
        };
        if !serial.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(DiskError::SerialCharacter {
                serial: serial.escape_debug().to_string(),
                path,
            });
        }
        if !(1..=SERIAL_MAX).contains(&serial.len()) {
            return Err(DiskError::SerialLength {
                serial: serial.clone(),
                len: serial.len(),
                path,
            });
        }
        Ok(())
    }
}

impl FromStr for DiskConfig {
    type Err = DiskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(DiskError::EmptyPath);
        }
        let (paths, mut list) = OptionList::with_head(text)?;
        let parts = split_at(&paths, '+');
        if parts.iter().any(String::is_empty) {
            return Err(DiskError::EmptyPart(paths));
        }
        let mut parts = parts.into_iter().map(PathBuf::from);
        let disk = Self {
            path: parts.next().unwrap_or_default(),
            more: parts.collect(),
            read_only: list.switch("ro")?,
            serial: list.value("serial")?,
            layout: match list.value("layout")? {
                Some(layout) => layout.parse()?,
                None => Layout::default(),
            },
            engine: list.choice("engine")?.unwrap_or_default(),
            cache: list.choice("cache")?.unwrap_or_default(),
            overlay: list.optional_value("overlay")?.map(|file| match file {
                None => Overlay::Memory,
                Some(file) => Overlay::File(file.into()),
            }),
            format: list.choice("format")?,
            on_error: list.choice("on-error")?.unwrap_or_default(),
            queues: match list.value("queues")? {
                None => 1,
                Some(text) => text.parse().map_err(|_| DiskError::Queues(text))?,
            },
            rate: RateLimit::take(&mut list).map_err(|source| match source {
                RateError::List(error) => DiskError::List(error),
                source => DiskError::Rate {
                    path: paths.clone(),
                    source,
                },
            })?,
        };
        list.finish()?;
        disk.validate()?;
        Ok(disk)
    }
}

impl fmt::Display for DiskConfig {
    /// The command-line form; it reads back as the same disk where the path is UTF-8.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.images().enumerate() {
            if index > 0 {
                f.write_str("+")?;
            }
            f.write_str(&escape(&path.to_string_lossy()).replace('+', "++"))?;
        }
        if self.layout != Layout::default() {
            write!(f, ",layout={}", self.layout)?;
        }
        if self.read_only {
            f.write_str(",ro")?;
        }
        if let Some(serial) = &self.serial {
            write!(f, ",serial={}", escape(serial))?;
        }
        if !is_default(&self.engine) {
            write!(f, ",engine={}", self.engine.name())?;
        }
        if !is_default(&self.cache) {
            write!(f, ",cache={}", self.cache.name())?;
        }
        match &self.overlay {
            None => {}
            Some(Overlay::Memory) => f.write_str(",overlay")?,
            Some(Overlay::File(file)) => {
                write!(f, ",overlay={}", escape(&file.to_string_lossy()))?;
            }
        }
        if let Some(format) = self.format {
            write!(f, ",format={}", format.name())?;
        }
        if !is_default(&self.on_error) {
            write!(f, ",on-error={}", self.on_error.name())?;
        }
        if self.queues != 1 {
            write!(f, ",queues={}", self.queues)?;
        }
        if !self.rate.is_none() {
            write!(f, ",{}", self.rate)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemorySize;
    use super::*;

    #[test]
    fn the_command_line_form_round_trips() {
        for (text, disk) in [
            ("img.ext4", DiskConfig::new("img.ext4")),
            (
                "a,,b.img,ro",
                DiskConfig {
                    read_only: true,
                    ..DiskConfig::new("a,b.img")
                },
            ),
            (
                "/dev/sdb,serial=x,,y=1",
                DiskConfig {
                    serial: Some("x,y=1".to_owned()),
                    ..DiskConfig::new("/dev/sdb")
                },
            ),
            (
                "a.img,overlay",
                DiskConfig {
                    overlay: Some(Overlay::Memory),
                    ..DiskConfig::new("a.img")
                },
            ),
            (
                "a.img,overlay=b,,c,format=qcow2",
                DiskConfig {
                    overlay: Some(Overlay::File("b,c".into())),
                    format: Some(Format::Qcow2),
                    ..DiskConfig::new("a.img")
                },
            ),
            (
                "a++b.img+c.img+/dev/sdb,layout=stripe:64K",
                DiskConfig {
                    more: vec!["c.img".into(), "/dev/sdb".into()],
                    layout: Layout::Stripe(MemorySize::bytes(64 << 10)),
                    ..DiskConfig::new("a+b.img")
                },
            ),
            (
                "a.img,ro,engine=io_uring,cache=none",
                DiskConfig {
                    read_only: true,
                    engine: Engine::IoUring,
                    cache: Cache::None,
                    ..DiskConfig::new("a.img")
                },
            ),
            (
                "a.img,on-error=stop,queues=4",
                DiskConfig {
                    on_error: OnError::Stop,
                    queues: 4,
                    ..DiskConfig::new("a.img")
                },
            ),
            (
                "a.img,bps=100M,iops=1000,burst=10M",
                DiskConfig {
                    rate: "bps=100M,iops=1000,burst=10M".parse().unwrap(),
                    ..DiskConfig::new("a.img")
                },
            ),
        ] {
            assert_eq!(text.parse::<DiskConfig>().unwrap(), disk);
            assert_eq!(disk.to_string(), text);
        }
    }

    #[test]
    fn bad_disks_say_what_is_wrong() {
        for (text, message) in [
            (
                "",
                "the disk's path is empty; name an image file or a block device",
            ),
            (
                "a.img,rw",
                "unknown key 'rw', did you mean 'ro'?; known keys: ro, serial, layout, engine, cache, overlay, format, on-error, queues, bps, iops, burst",
            ),
            (
                "a.img+",
                "a part of 'a.img+' is empty; write a plus sign that belongs to a path twice",
            ),
            (
                "a.img,layout=stripe:64K",
                "disk a.img is of one file, and a layout is for several; write them as a.img+b.img",
            ),
            (
                "a+b,layout=raid5",
                "layout 'raid5' is neither linear nor stripe:SIZE; write it as stripe:64K",
            ),
            (
                "a+b,layout=stripe:1000K",
                "stripes of 1000K cannot be; their size is a power of two from 4K to 1G",
            ),
            (
                "a.img,overlay=",
                "the overlay of disk a.img has no name; write overlay=FILE, or overlay to keep it in memory",
            ),
            (
                "a.img,ro,overlay",
                "disk a.img cannot be 'ro' and have an overlay, which is for what the guest writes; leave one out",
            ),
            (
                "a.img,on-error=panic",
                "'on-error=panic' is not one of report, stop",
            ),
            ("a.img,queues=0", "queues=0 is not a number from 1 to 64"),
            ("a.img,queues=65", "queues=65 is not a number from 1 to 64"),
            (
                "a.img,queues=99999",
                "queues=99999 is not a number from 1 to 64",
            ),
            (
                "a.img,queues=many",
                "queues=many is not a number from 1 to 64",
            ),
            (
                "a.img,engine=aio",
                "'engine=aio' is not one of auto, sync, io_uring",
            ),
            (
                "a.img,serial=",
                "serial '' of disk a.img is 0 bytes; it can have 1 to 20",
            ),
            (
                "a.img,serial=123456789012345678901",
                "serial '123456789012345678901' of disk a.img is 21 bytes; it can have 1 to 20",
            ),
            (
                "a.img,serial=a\tb",
                "serial 'a\\tb' of disk a.img may contain only printable ASCII without spaces",
            ),
        ] {
            assert_eq!(text.parse::<DiskConfig>().unwrap_err().to_string(), message);
        }
    }
}
