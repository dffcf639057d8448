//! The header of a qcow2 image: what can be told from it before any table is believed.
//!
//! docs/interop/qcow2.txt of QEMU. Pure: bytes in, facts or a refusal out. What passes here has tables of
//! a size that is read in one go, each inside the file and apart from the others, and nothing in it that
//! this code or imago does not know.

use std::ops::Range;

use thiserror::Error;

use super::counts::Counts;

/// "QFI\xfb", with which every version begins.
pub(in crate::virtio::block) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes of the header of version 2.
const V2_LEN: u64 = 72;
/// Bytes of the header of version 3, at least.
const V3_LEN: u64 = 104;
/// QEMU's own limits: the active L1 table and the refcount table.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// As long as a backing file's name may be.
const MAX_NAME: u32 = 1023;
/// No file is larger.
const MAX_SIZE: u64 = 1 << 62;

/// Header extensions that mean something here.
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
/// Bytes of an entry of the feature name table.
const FEATURE_NAME: u32 = 48;

/// Why an image is not used as qcow2.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Qcow2Error {
    /// Another kind of file.
    #[error(
        "is not a qcow2 image; leave out format=qcow2, or rename it if that is what .qcow2 says"
    )]
    Magic,
    /// Another version.
    #[error(
        "is of qcow2 version {0}, which mvm does not know; make a version 3 of it with `qemu-img convert -O qcow2`"
    )]
    Version(u32),
    /// Encryption of any kind.
    #[error("is encrypted, which mvm cannot read; decrypt it with `qemu-img convert`")]
    Encrypted,
    /// An incompatible feature.
    #[error(
        "needs the qcow2 feature '{0}', which mvm does not have; do without it with `qemu-img convert -O qcow2`"
    )]
    Feature(&'static str),
    /// Incompatible features that are not even known by name.
    #[error(
        "needs qcow2 features that mvm does not know (bits {0:#x}); do without them with `qemu-img convert -O qcow2`"
    )]
    UnknownFeatures(u64),
    /// Its last user did not close it, or found it damaged.
    #[error("was left {0}; repair it with `qemu-img check -r all`")]
    Unclean(&'static str),
    /// What cannot be.
    #[error("is damaged: {0}; `qemu-img check` may tell more")]
    Damaged(&'static str),
    /// The backing file could be anything.
    #[error(
        "does not tell the format of its backing file {0}; add it with `qemu-img rebase -u -F FORMAT -b FILE`"
    )]
    NoBackingFormat(String),
    /// A format of the backing file's that mvm does not read.
    #[error("has a backing file of the format '{0}'; mvm reads raw and qcow2")]
    BackingFormat(String),
    /// Not a file.
    #[error("has its backing file at '{0}', and mvm reads files only")]
    BackingProtocol(String),
    /// A file that is its own ancestor, or too many of them.
    #[error("has a chain of backing files that {0}")]
    Chain(&'static str),
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// 2 or 3.
    pub(super) version: u32,
    /// How it counts, in which clusters.
    pub(super) counts: Counts,
    /// Where its L1 table is, as much of it as the disk needs.
    pub(super) l1: Range<u64>,
    /// Where its refcount table is.
    pub(super) refs: Range<u64>,
    /// Bytes of the disk.
    pub(super) size: u64,
    /// What the image is a difference to.
    pub(super) backing: Option<Backing>,
}

/// A backing file as the image names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    pub(super) name: String,
    pub(super) is_qcow2: bool,
}

/// How much of a file [`Header::parse`] needs, told by its first bytes; none if it is no image.
pub(super) fn head_len(start: &[u8]) -> Result<usize, Qcow2Error> {
    let fields = Fields(start);
    if start.get(..4) != Some(&MAGIC) {
        return Err(Qcow2Error::Magic);
    }
    match fields.word(20) {
        // QEMU makes no clusters of more than 2 MiB, and so does imago.
        Some(bits @ 9..=21) => Ok(1 << bits),
        _ => Err(Qcow2Error::Damaged(
            "its clusters are of an impossible size",
        )),
    }
}

impl Header {
    /// What the first cluster of a file of `file_len` bytes says, or as much of it as there is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(head: &[u8], file_len: u64) -> Result<Self, Qcow2Error> {
        const SHORT: Qcow2Error = Qcow2Error::Damaged("it ends within its header");
        let cluster = head_len(head)? as u64;
        let fields = Fields(head);
        let word = |at| fields.word(at).ok_or(SHORT);
        let long = |at| fields.long(at).ok_or(SHORT);

        let version = word(4)?;
        let header_len = match version {
            2 => V2_LEN,
            3 => u64::from(word(100)?),
            other => return Err(Qcow2Error::Version(other)),
        };
        if version == 3 && !(V3_LEN..=cluster).contains(&header_len) {
            return Err(Qcow2Error::Damaged("its header is of an impossible size"));
        }
        if word(32)? != 0 {
            return Err(Qcow2Error::Encrypted);
        }
        if version == 3 {
            check_features(long(72)?)?;
            if word(96)? > 6 {
                return Err(Qcow2Error::Damaged(
                    "its reference counts are of an impossible width",
                ));
            }
        }
        let size = long(24)?;
        if size == 0 || !size.is_multiple_of(512) || size > MAX_SIZE {
            return Err(Qcow2Error::Damaged("its disk is of an impossible size"));
        }
        let (l1, refs) = tables(&fields, cluster, size, file_len)?;
        let order = if version == 3 { word(96)? } else { 4 };

        let format = backing_format(&fields, header_len, cluster)?;
        let backing = match long(8)? {
            0 => None,
            at => Some(backing(&fields, at, word(16)?, format)?),
        };
        Ok(Self {
            version,
            counts: Counts {
                cluster,
                bits: 1 << order,
            },
            l1,
            refs,
            size,
            backing,
        })
    }
}

/// The incompatible features that are set, if there is one that rules the image out.
fn check_features(set: u64) -> Result<(), Qcow2Error> {
    let bit = |bit: u32| set & 1 << bit != 0;
    if bit(0) {
        return Err(Qcow2Error::Unclean("marked as dirty"));
    }
    if bit(1) {
        return Err(Qcow2Error::Unclean("marked as corrupt"));
    }
    let named = [
        (2, "external data file"),
        (3, "compression type (zstd)"),
        (4, "extended L2 entries"),
    ];
    if let Some((_, name)) = named.into_iter().find(|(number, _)| bit(*number)) {
        return Err(Qcow2Error::Feature(name));
    }
    match set >> 5 {
        0 => Ok(()),
        _ => Err(Qcow2Error::UnknownFeatures(set)),
    }
}

/// The L1 table and the refcount table: there, of a sensible size, and apart.
fn tables(
    fields: &Fields<'_>,
    cluster: u64,
    size: u64,
    file_len: u64,
) -> Result<(Range<u64>, Range<u64>), Qcow2Error> {
    let damaged = Qcow2Error::Damaged;
    let (Some(l1_entries), Some(l1_at), Some((refs_at, refs_bytes))) =
        (fields.word(36), fields.long(40), fields.refs(cluster))
    else {
        return Err(damaged("it ends within its header"));
    };
    let l1_bytes = u64::from(l1_entries) * 8;
    // Each entry of the L1 table is a table of a cluster, of 8 bytes for each cluster of the disk.
    let needed = size.div_ceil(cluster).div_ceil(cluster / 8);
    if u64::from(l1_entries) < needed || l1_bytes > MAX_L1_BYTES {
        return Err(damaged("its L1 table is of an impossible size"));
    }
    if refs_bytes == 0 || refs_bytes > MAX_REFTABLE_BYTES {
        return Err(damaged("its refcount table is of an impossible size"));
    }
    let end = file_len.next_multiple_of(cluster);
    let table = |at: u64, bytes: u64| -> Option<Range<u64>> {
        let range = at..at.checked_add(bytes)?;
        (at.is_multiple_of(cluster) && at >= cluster && range.end <= end).then_some(range)
    };
    let l1 = table(l1_at, l1_bytes).ok_or(damaged("its L1 table is not where it can be"))?;
    let refs =
        table(refs_at, refs_bytes).ok_or(damaged("its refcount table is not where it can be"))?;
    if l1.start < refs.end && refs.start < l1.end {
        return Err(damaged("its tables lie on each other"));
    }
    Ok((l1, refs))
}

/// What the header extensions say of the backing file's format, once all of them make sense.
fn backing_format(
    fields: &Fields<'_>,
    header_len: u64,
    cluster: u64,
) -> Result<Option<String>, Qcow2Error> {
    let damaged = || Qcow2Error::Damaged("its header extensions make no sense");
    let mut format = None;
    let mut at = usize::try_from(header_len).map_err(|_| damaged())?;
    loop {
        let (Some(kind), Some(len)) = (fields.word(at), fields.word(at + 4)) else {
            // A file that ends here has had its last.
            return if at as u64 + 8 > cluster {
                Err(damaged())
            } else {
                Ok(format)
            };
        };
        let len_bytes = usize::try_from(len).map_err(|_| damaged())?;
        match kind {
            EXTENSION_END => return Ok(format),
            EXTENSION_FEATURE_NAMES if !len.is_multiple_of(FEATURE_NAME) => return Err(damaged()),
            _ => {}
        }
        let data = fields.bytes(at + 8, len_bytes).ok_or_else(damaged)?;
        if kind == EXTENSION_BACKING_FORMAT {
            let text = String::from_utf8(data.to_vec()).map_err(|_| damaged())?;
            if format.replace(text).is_some() {
                return Err(damaged());
            }
        }
        at += 8 + len_bytes.next_multiple_of(8);
    }
}

fn backing(
    fields: &Fields<'_>,
    at: u64,
    len: u32,
    format: Option<String>,
) -> Result<Backing, Qcow2Error> {
    let damaged = || Qcow2Error::Damaged("the name of its backing file makes no sense");
    if len == 0 || len > MAX_NAME {
        return Err(damaged());
    }
    let (at, len) = (usize::try_from(at), usize::try_from(len));
    let (Ok(at), Ok(len)) = (at, len) else {
        return Err(damaged());
    };
    let bytes = fields.bytes(at, len).ok_or_else(damaged)?;
    let name = String::from_utf8(bytes.to_vec()).map_err(|_| damaged())?;
    if name.chars().any(char::is_control) {
        return Err(damaged());
    }
    // QEMU takes what comes before a colon for a protocol, unless a slash comes first.
    let protocol = name
        .split('/')
        .next()
        .is_some_and(|first| first.contains(':'));
    if protocol {
        return Err(Qcow2Error::BackingProtocol(name));
    }
    match format.as_deref() {
        Some("qcow2") => Ok(Backing {
            name,
            is_qcow2: true,
        }),
        Some("raw" | "file" | "host_device") => Ok(Backing {
            name,
            is_qcow2: false,
        }),
        Some(other) => Err(Qcow2Error::BackingFormat(other.escape_debug().to_string())),
        None => Err(Qcow2Error::NoBackingFormat(name)),
    }
}

/// Big-endian numbers at fixed places, as far as there are bytes.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn bytes(&self, at: usize, len: usize) -> Option<&[u8]> {
        self.0.get(at..at.checked_add(len)?)
    }

    /// Where the refcount table begins, and its bytes.
    pub(super) fn refs(&self, cluster: u64) -> Option<(u64, u64)> {
        Some((self.long(48)?, u64::from(self.word(56)?) * cluster))
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(at, 4)?.try_into().ok()?))
    }

    fn long(&self, at: usize) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes(at, 8)?.try_into().ok()?))
    }
}
