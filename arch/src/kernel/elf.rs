//! ELF64: the segments of a kernel, its PVH note, and which of its two entry points to use.
//!
//! System V gABI, chapters "Program Header" and "Note Section". The notes of a PVH kernel:
//! Xen's docs/misc/pvh.pandoc and xen/include/public/elfnote.h.

use std::fs::File;
use std::ops::Range;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::ByteValued;

use super::identify::{Lookalike, read_at};
use super::{Entry, KernelError, KernelKind, Plan};
use crate::x86_64::layout;

/// `__START_KERNEL_map`, where x86-64 Linux is linked: virtual minus physical address
/// (arch/x86/include/asm/page_64_types.h).
const LINUX_MAP: u64 = 0xffff_ffff_8000_0000;
/// COMMAND_LINE_SIZE with its NUL (arch/x86/include/asm/setup.h).
const LINUX_CMDLINE_SIZE: u64 = 2048;
/// A PVH kernel does not say how much it takes: a page, with the NUL.
const PVH_CMDLINE_SIZE: u64 = 4096;
/// One past `initrd_addr_max` of every x86-64 Linux (arch/x86/boot/header.S).
const LINUX_INITRD_LIMIT: u64 = 0x8000_0000;

const PT_INTERP: u32 = 3;
const PT_TLS: u32 = 7;
/// XEN_ELFNOTE_PHYS32_ENTRY: the note's contents are the physical address of the PVH entry.
const PHYS32_ENTRY: u32 = 18;
/// More program headers than any kernel has; a vmlinux has 5.
const MAX_HEADERS: u16 = 128;
/// More note bytes than any kernel has; a vmlinux has some hundred.
const MAX_NOTES: u64 = 64 << 10;

/// Checks an x86-64 ELF executable of `len` bytes.
pub(super) fn examine(file: &File, len: u64) -> Result<Plan, KernelError> {
    let mut header = Elf64_Ehdr::default();
    read_at(file, header.as_mut_slice(), 0)?;
    let headers = program_headers(file, &header, len)?;
    let segments = segments(&headers, len)?;
    let pvh = pvh_entry(file, &headers, len)?;
    let (kind, entry) = choose_entry(header.e_entry, &headers, pvh)?;
    let (cmdline_size, initrd_limit) = match kind {
        KernelKind::Pvh => (PVH_CMDLINE_SIZE, layout::HOLE_START),
        KernelKind::Elf | KernelKind::BzImage => (LINUX_CMDLINE_SIZE, LINUX_INITRD_LIMIT),
    };
    Ok(Plan {
        kind,
        linux: headers.iter().any(is_linked_as_linux),
        entry,
        kernel: segments,
        setup_header: None,
        cmdline_max: cmdline_size - 1,
        initrd_limit,
    })
}

/// Reads the program headers.
fn program_headers(
    file: &File,
    header: &Elf64_Ehdr,
    len: u64,
) -> Result<Vec<Elf64_Phdr>, KernelError> {
    let malformed = |what| Err(KernelError::Malformed { what });
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return malformed("its program headers have the wrong size");
    }
    if header.e_phoff < size_of::<Elf64_Ehdr>() as u64 {
        return malformed("its program headers overlap the ELF header");
    }
    if header.e_phnum > MAX_HEADERS {
        return malformed("it has more than 128 program headers");
    }
    let count = usize::from(header.e_phnum);
    let mut headers = vec![Elf64_Phdr::default(); count];
    let size = (count * size_of::<Elf64_Phdr>()) as u64;
    check_in_file("the program header table", header.e_phoff, size, len)?;
    let mut offset = header.e_phoff;
    for entry in &mut headers {
        read_at(file, entry.as_mut_slice(), offset)?;
        offset += size_of::<Elf64_Phdr>() as u64;
    }
    Ok(headers)
}

/// Checks the loadable segments and returns the physical range they span.
fn segments(headers: &[Elf64_Phdr], len: u64) -> Result<Range<u64>, KernelError> {
    let malformed = |what| Err(KernelError::Malformed { what });
    let mut ranges = Vec::with_capacity(headers.len());
    for segment in headers.iter().filter(|header| header.p_type == PT_LOAD) {
        if segment.p_filesz > segment.p_memsz {
            return malformed("a segment is larger in the file than in memory");
        }
        if segment.p_memsz == 0 {
            continue;
        }
        if segment.p_filesz != 0 {
            check_in_file("a segment", segment.p_offset, segment.p_filesz, len)?;
        }
        let start = segment.p_paddr;
        let end = start.saturating_add(segment.p_memsz);
        if start < layout::HIGH_RAM_START || end > layout::HOLE_START {
            // Programs are linked like that: say so, rather than to link it elsewhere.
            return Err(if has_any(headers, &[PT_INTERP, PT_TLS]) {
                KernelError::NotAKernel(Lookalike::Program)
            } else {
                KernelError::Address { start, end }
            });
        }
        ranges.push(start..end);
    }
    ranges.sort_by_key(|range| range.start);
    // Apart from making no sense, overlapping segments could make a small file a long time's copying.
    if ranges.windows(2).any(|pair| pair[0].end > pair[1].start) {
        return malformed("its segments overlap");
    }
    match (ranges.first(), ranges.last()) {
        (Some(first), Some(last)) => Ok(first.start..last.end),
        _ => malformed("it has no segments to load"),
    }
}

/// Whether there is a program header of one of the given types.
fn has_any(headers: &[Elf64_Phdr], types: &[u32]) -> bool {
    headers.iter().any(|header| types.contains(&header.p_type))
}

fn is_linked_as_linux(segment: &Elf64_Phdr) -> bool {
    segment.p_type == PT_LOAD && segment.p_vaddr.wrapping_sub(segment.p_paddr) == LINUX_MAP
}

/// Chooses the protocol by the rule in the documentation of [`super`].
fn choose_entry(
    entry: u64,
    headers: &[Elf64_Phdr],
    pvh: Option<u32>,
) -> Result<(KernelKind, Entry), KernelError> {
    if has_any(headers, &[PT_INTERP]) {
        return Err(KernelError::NotAKernel(Lookalike::Program));
    }
    // The code must be in the file: debug symbol files have segments without contents.
    let segment_at = |address: u64| {
        headers.iter().find(|header| {
            header.p_type == PT_LOAD
                && address
                    .checked_sub(header.p_paddr)
                    .is_some_and(|at| at < header.p_filesz)
        })
    };
    let linux64 = Ok((KernelKind::Elf, Entry::Linux64 { rip: entry }));
    match (segment_at(entry), pvh) {
        (Some(segment), _) if is_linked_as_linux(segment) => linux64,
        (_, Some(rip)) if segment_at(rip.into()).is_some() => {
            Ok((KernelKind::Pvh, Entry::Pvh { rip }))
        }
        (_, Some(rip)) => Err(KernelError::EntryPoint { entry: rip.into() }),
        // A static program has thread-local storage; a kernel that has some is entered by its note.
        (Some(_), None) if has_any(headers, &[PT_TLS]) => {
            Err(KernelError::NotAKernel(Lookalike::Program))
        }
        (Some(_), None) => linux64,
        (None, None) => Err(KernelError::EntryPoint { entry }),
    }
}

/// Looks for the PVH entry in all note segments.
fn pvh_entry(file: &File, headers: &[Elf64_Phdr], len: u64) -> Result<Option<u32>, KernelError> {
    for header in headers.iter().filter(|header| header.p_type == PT_NOTE) {
        check_in_file("a note segment", header.p_offset, header.p_filesz, len)?;
        let size = usize::try_from(header.p_filesz.min(MAX_NOTES)).unwrap_or_default();
        let mut notes = vec![0; size];
        read_at(file, &mut notes, header.p_offset)?;
        // Notes are aligned to 4 bytes, or to 8 in segments that say so (Linux ABI extension).
        let align = if header.p_align == 8 { 8 } else { 4 };
        if let Some(entry) = find_pvh_note(&notes, align) {
            return entry.map(Some);
        }
    }
    Ok(None)
}

/// Looks for the note in the bytes of one segment. Stops at the first that does not end inside.
fn find_pvh_note(notes: &[u8], align: usize) -> Option<Result<u32, KernelError>> {
    const NOTE_HEADER: usize = 12;
    let mut rest = notes;
    loop {
        let word = |at: usize| {
            let bytes = rest.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let name_len = usize::try_from(word(0)?).ok()?;
        let desc_len = usize::try_from(word(4)?).ok()?;
        let kind = word(8)?;
        let desc_start = NOTE_HEADER
            .checked_add(name_len)?
            .checked_next_multiple_of(align)?;
        let desc_end = desc_start.checked_add(desc_len)?;
        let name = rest.get(NOTE_HEADER..NOTE_HEADER.checked_add(name_len)?)?;
        let desc = rest.get(desc_start..desc_end)?;
        if kind == PHYS32_ENTRY && name == b"Xen\0" {
            return Some(read_entry(desc));
        }
        rest = rest.get(desc_end.checked_next_multiple_of(align)?..)?;
    }
}

/// The contents of the note: an address below 4 GiB in 4 bytes, or in 8 as Linux writes it.
fn read_entry(desc: &[u8]) -> Result<u32, KernelError> {
    let malformed = KernelError::Malformed {
        what: "its PVH entry note holds no 32-bit address",
    };
    match *desc {
        [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => Ok(u32::from_le_bytes([a, b, c, d])),
        _ => Err(malformed),
    }
}

/// Checks that a part of the file is there.
fn check_in_file(what: &'static str, offset: u64, size: u64, len: u64) -> Result<(), KernelError> {
    let end = offset.saturating_add(size);
    if end > len {
        return Err(KernelError::Truncated { what, end, len });
    }
    Ok(())
}
