//! bzImage: the setup header of a compressed Linux kernel.
//!
//! Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "64-bit Boot Protocol". The
//! real-mode part of the file is left out; the rest is loaded at the address the kernel prefers.
//! A relocatable kernel could be loaded elsewhere, but never lower: its first instructions move it to
//! `pref_address` at least. So `pref_address + init_size` is what it needs, wherever it is put.

use std::fs::File;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::identify::read_at;
use super::{Entry, KernelError, KernelKind, Plan};
use crate::x86_64::layout;

/// The setup header starts here in the file and in the zero page.
const HEADER_START: usize = 0x1f1;
/// Offset of the low byte of the `jump` field plus one: the header ends at 0x202 plus this byte.
const HEADER_END_BYTE: usize = 0x201;
/// Sector size of the real-mode part.
const SECTOR: u64 = 512;
/// `syssize` counts paragraphs of 16 bytes.
const PARAGRAPH: u64 = 16;
/// First protocol version with `xloadflags`, and so with a 64-bit entry that can be asked for.
const PROTOCOL_2_12: u16 = 0x20c;
/// `loadflags`: the protected-mode code is loaded at 1 MiB or above, so it is a bzImage.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry, from the start of the loaded part.
const ENTRY_64: u64 = 0x200;

/// Checks a file of `len` bytes that has `HdrS` in its place.
pub(super) fn examine(file: &File, len: u64) -> Result<Plan, KernelError> {
    let header = read_header(file, len)?;
    let version = header.version;
    if version < PROTOCOL_2_12 {
        return Err(KernelError::OldProtocol { version });
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::No64BitEntry);
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(KernelError::Malformed {
            what: "it wants to be loaded below 1 MiB",
        });
    }
    let payload = payload_len(&header, len)?;
    // The room that unpacking takes; it covers the payload in every real kernel.
    let size = u64::from(header.init_size).max(payload);
    let start = header.pref_address;
    let end = start.saturating_add(size);
    if start < layout::HIGH_RAM_START || end > layout::HOLE_START {
        return Err(KernelError::Address { start, end });
    }
    Ok(Plan {
        kind: KernelKind::BzImage,
        linux: true,
        entry: Entry::Linux64 {
            rip: start + ENTRY_64,
        },
        kernel: start..end,
        setup_header: Some(header),
        cmdline_max: header.cmdline_size.into(),
        // The address of the last byte that the initrd may have.
        initrd_limit: u64::from(header.initrd_addr_max) + 1,
    })
}

/// Reads the setup header, with zeroes for what this kernel's version does not have.
fn read_header(file: &File, len: u64) -> Result<setup_header, KernelError> {
    const HEADER_LEN: usize = size_of::<setup_header>();
    let end = (HEADER_START + HEADER_LEN) as u64;
    if len < end {
        return Err(KernelError::Truncated {
            what: "the setup header",
            end,
            len,
        });
    }
    let mut header = setup_header::default();
    let bytes = header.as_mut_slice();
    read_at(file, bytes, HEADER_START as u64)?;
    // What follows a shorter header is code.
    let own = 0x202 + usize::from(bytes[HEADER_END_BYTE - HEADER_START]) - HEADER_START;
    if let Some(rest) = bytes.get_mut(own..) {
        rest.fill(0);
    }
    Ok(header)
}

/// The length of the protected-mode part, which must be all there.
fn payload_len(header: &setup_header, len: u64) -> Result<u64, KernelError> {
    // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let setup = (sectors + 1) * SECTOR;
    let described = u64::from(header.syssize) * PARAGRAPH;
    let end = setup + described.max(ENTRY_64 + 1);
    if end > len {
        return Err(KernelError::Truncated {
            what: "the compressed kernel",
            end,
            len,
        });
    }
    // A signature may follow what the header describes; it is loaded too.
    Ok(len - setup)
}
