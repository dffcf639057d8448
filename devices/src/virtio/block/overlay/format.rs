//! The overlay's file, byte by byte. Pure: no file is touched here.
//!
//! ```text
//! 0        header, one page
//! 4096     map page 0 │ data of blocks 0 … 32255 (126 MiB, mostly holes)
//!          map page 1 │ data of blocks 32256 … 64511
//!          …
//! ```
//! Everything is little-endian. A block is 4096 bytes of the disk; its data has a fixed place, so a block
//! is allocated by the host's file system when it is first written, and by nobody else. Whether the place
//! holds the block's data, or the base does, is one bit of the map. A map page is eight sectors of 512
//! bytes; each is
//!
//! ```text
//!   0  504  4032 bits, the block with the lowest number first, in the lowest bit
//! 504    4  number of the sector, counted over all map pages
//! 508    4  CRC-32 of the 508 bytes before it
//! ```
//! and a sector that was never written, all zeroes, holds no set bit. The header, in its first 512 bytes:
//!
//! ```text
//!   0    8  "mvm-cow\0"
//!   8    4  version, 1
//!  12    4  bytes in a block, 4096
//!  16    8  bytes of the disk
//!  24    8  bytes of the base
//!  32    8  fingerprint of the base
//!  40    8  when the base was last modified, in nanoseconds, or zero if it has no such time
//!  48    4  what a program must understand to use the file, zero
//! 508    4  CRC-32 of the 508 bytes before it
//! ```
//!
//! # Why it survives
//! A bit is only ever set, and only after its block's data is on stable storage: a flush syncs the data,
//! then writes the map sectors with new bits, then syncs those. Whenever mvm or the host dies, each map
//! sector is whole, old or new, since storage writes 512 bytes as one; either way every bit that is set
//! tells the truth, and a block whose bit did not make it reads from the base as it did before: its
//! write had not been flushed.

use thiserror::Error;

/// Bytes in a block, and in a page of the map.
pub(super) const BLOCK: u64 = 4096;
/// The same, as a length.
pub(super) const PAGE: usize = 4096;

const SECTOR: usize = 512;
const BITS_END: usize = 504;
const CRC_AT: usize = 508;
/// Words of 64 bits in a map sector.
const SECTOR_WORDS: usize = BITS_END / 8;
/// Sectors in a map page.
const SECTORS: usize = PAGE / SECTOR;
/// Words of 64 bits in a map page.
pub(super) const PAGE_WORDS: usize = SECTORS * SECTOR_WORDS;
/// Blocks that a map page is for.
pub(super) const PAGE_BLOCKS: u64 = PAGE_WORDS as u64 * 64;

const MAGIC: [u8; 8] = *b"mvm-cow\0";
const VERSION: u32 = 1;
/// No file is larger, with room for the map.
const MAX_CAPACITY: u64 = 1 << 62;

/// What is wrong with an overlay's file.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    /// Another kind of file.
    #[error("is not an overlay of mvm's; name another file, or one that does not exist yet")]
    Magic,
    /// From the future.
    #[error("is of version {0}, and this mvm knows version {VERSION}; use a newer mvm")]
    Version(u32),
    /// From the future too.
    #[error("has features that this mvm does not know ({0:#x}); use a newer mvm")]
    Features(u32),
    /// The header contradicts itself or its checksum.
    #[error("has a damaged header; restore it from a copy, or start over with a new file")]
    Header,
    /// A part of the map has another checksum or number than it should.
    #[error(
        "has a damaged map (sector {0}); restore it from a copy, or start over with a new file"
    )]
    Map(u64),
    /// It ends too soon.
    #[error("is cut off: {len} bytes of {wanted}; restore it from a copy")]
    CutOff {
        /// Its length.
        len: u64,
        /// What it should be at least.
        wanted: u64,
    },
}

/// What the first page of the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the disk.
    pub(super) capacity: u64,
    /// Which base it lies over.
    pub(super) base: Identity,
}

/// What a base is known by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// Its size in bytes.
    pub(super) len: u64,
    /// Some of its contents.
    pub(super) fingerprint: u64,
    /// When it was last modified, in nanoseconds since 1970; zero for what has no such time.
    pub(super) modified: u64,
}

impl Header {
    /// As it stands in the file.
    pub(super) fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &block_size().to_le_bytes());
        put(16, &self.capacity.to_le_bytes());
        put(24, &self.base.len.to_le_bytes());
        put(32, &self.base.fingerprint.to_le_bytes());
        put(40, &self.base.modified.to_le_bytes());
        let crc = crc32fast::hash(&page[..CRC_AT]);
        page[CRC_AT..SECTOR].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// What a first page says.
    ///
    /// # Errors
    /// It is not that of an overlay, or not of one that this code knows.
    pub(super) fn decode(page: &[u8; PAGE]) -> Result<Self, FormatError> {
        if page[..8] != MAGIC {
            return Err(FormatError::Magic);
        }
        // A later version may have its checksum elsewhere.
        match word(page, 8) {
            VERSION => {}
            other => return Err(FormatError::Version(other)),
        }
        if word(page, CRC_AT) != crc32fast::hash(&page[..CRC_AT]) {
            return Err(FormatError::Header);
        }
        match word(page, 48) {
            0 => {}
            unknown => return Err(FormatError::Features(unknown)),
        }
        let header = Self {
            capacity: long(page, 16),
            base: Identity {
                len: long(page, 24),
                fingerprint: long(page, 32),
                modified: long(page, 40),
            },
        };
        let sizes = [header.capacity, header.base.len];
        let possible = sizes
            .iter()
            .all(|size| size.is_multiple_of(512) && (1..=MAX_CAPACITY).contains(size));
        if word(page, 12) == block_size() && possible && header.base.len <= header.capacity {
            Ok(header)
        } else {
            Err(FormatError::Header)
        }
    }
}

fn block_size() -> u32 {
    const _: () = assert!(BLOCK == 4096);
    4096
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(long)
}

/// Where the data of `block` is.
pub(super) fn data_at(block: u64) -> u64 {
    // The header, and a page of the map for every group up to this one.
    (2 + block / PAGE_BLOCKS + block) * BLOCK
}

/// Where the page of the map with this number is.
pub(super) fn page_at(page: u64) -> u64 {
    BLOCK + page * (PAGE_BLOCKS + 1) * BLOCK
}

/// The number of the map page that `offset` of the file is in, or the next one behind it.
pub(super) fn page_from(offset: u64) -> u64 {
    let page = offset.saturating_sub(BLOCK) / ((PAGE_BLOCKS + 1) * BLOCK);
    match offset < page_at(page) + BLOCK {
        true => page,
        false => page + 1,
    }
}

/// Length of the file for a disk of `capacity` bytes.
pub(super) fn file_len(capacity: u64) -> u64 {
    match capacity.div_ceil(BLOCK) {
        0 => BLOCK,
        blocks => data_at(blocks - 1) + BLOCK,
    }
}

/// The bits of a map page as they stand in the file.
pub(super) fn encode_page(number: u64, words: &[u64; PAGE_WORDS]) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let sectors = page
        .chunks_exact_mut(SECTOR)
        .zip(words.chunks_exact(SECTOR_WORDS));
    for (index, (sector, words)) in (0..).zip(sectors) {
        if words.iter().all(|word| *word == 0) {
            continue;
        }
        for (to, word) in sector.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        sector[BITS_END..CRC_AT].copy_from_slice(&sector_number(number, index).to_le_bytes());
        let crc = crc32fast::hash(&sector[..CRC_AT]);
        sector[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
    page
}

/// The bits of a map page.
///
/// # Errors
/// A sector is not what was written there.
pub(super) fn decode_page(
    number: u64,
    page: &[u8; PAGE],
) -> Result<[u64; PAGE_WORDS], FormatError> {
    let mut words = [0; PAGE_WORDS];
    let sectors = page
        .chunks_exact(SECTOR)
        .zip(words.chunks_exact_mut(SECTOR_WORDS));
    for (index, (sector, words)) in (0..).zip(sectors) {
        if sector.iter().all(|byte| *byte == 0) {
            continue;
        }
        let whole = word(sector, CRC_AT) == crc32fast::hash(&sector[..CRC_AT]);
        if !whole || word(sector, BITS_END) != sector_number(number, index) {
            let sector = number.saturating_mul(SECTORS as u64) + index;
            return Err(FormatError::Map(sector));
        }
        for (to, bytes) in words.iter_mut().zip(sector.chunks_exact(8)) {
            *to = long(bytes, 0);
        }
    }
    Ok(words)
}

/// As far as 32 bits count: enough to tell a sector from one that belongs elsewhere.
fn sector_number(page: u64, index: u64) -> u32 {
    let number = page.wrapping_mul(SECTORS as u64).wrapping_add(index);
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0)
}
