//! Which way an ELF kernel is entered, what lands where, and what is refused.

use super::*;
use crate::kernel::image::{Elf, PT_INTERP, PT_TLS, Segment, note, pvh_note, vmlinux};
use crate::kernel::{Entry, KernelKind, Lookalike};

#[test]
fn a_vmlinux_is_entered_through_the_64_bit_protocol_despite_its_note() {
    let memory = memory(64 * MIB);
    let loaded = load(&memory, &mut file(&vmlinux().bytes()), None, "quiet").unwrap();
    assert_eq!(loaded.kind, KernelKind::Elf);
    assert_eq!(loaded.entry, Entry::Linux64 { rip: 0x100_0040 });
    assert_eq!(
        loaded.kernel,
        0x100_0000..0x100_2800,
        "memory without contents counts"
    );
    assert_eq!(guest_bytes(&memory, 0x100_0000, 0x800), [0x90; 0x800]);
    assert_eq!(guest_bytes(&memory, 0x2_0000, 6), b"quiet\0");
}

#[test]
fn other_kernels_with_a_note_are_entered_through_it() {
    let text = Segment::load(0x20_0000, &[0x90; 64]);
    // The entry point of FreeBSD's is virtual, of others physical.
    for entry in [0x20_0000, 0xffff_ffff_8020_0000] {
        let elf = Elf::new(
            entry,
            vec![text.clone(), Segment::notes(&[pvh_note(0x20_0010)])],
        );
        let loaded = load_bytes(&elf.bytes()).unwrap();
        assert_eq!(
            (loaded.kind, loaded.entry),
            (KernelKind::Pvh, Entry::Pvh { rip: 0x20_0010 })
        );
    }
}

#[test]
fn the_note_is_found_among_others_and_in_any_note_segment() {
    let gnu = note(b"GNU\0", 3, &[1; 20]);
    let short = note(b"Xen\0", 18, &0x20_0020u32.to_le_bytes());
    let elf = Elf::new(
        0,
        vec![
            Segment::notes(&[gnu.clone(), note(b"Xen\0", 6, b"linux\0"), short]),
            Segment::notes(&[gnu]),
            Segment::load(0x20_0000, &[0x90; 64]),
        ],
    );
    assert_eq!(
        load_bytes(&elf.bytes()).unwrap().entry,
        Entry::Pvh { rip: 0x20_0020 }
    );
}

#[test]
fn notes_of_another_alignment_do_not_hide_it_or_break_loading() {
    let mut property = note(b"GNU\0", 5, &[2, 0, 0, 0xc0, 4, 0, 0, 0, 3, 0, 0, 0]);
    property.extend([0; 4]);
    let wide = Segment {
        align: 8,
        ..Segment::notes(&[property])
    };
    let elf = Elf::new(
        0,
        vec![
            wide,
            Segment::notes(&[vec![0xff; 40]]),
            Segment::notes(&[pvh_note(0x20_0000)]),
            Segment::load(0x20_0000, &[0x90; 64]),
        ],
    );
    assert_eq!(load_bytes(&elf.bytes()).unwrap().kind, KernelKind::Pvh);
}

#[test]
fn a_kernel_without_note_is_entered_at_its_physical_entry() {
    let elf = Elf::new(0x20_0004, vec![Segment::load(0x20_0000, &[0xf4; 16])]);
    assert_eq!(
        load_bytes(&elf.bytes()).unwrap().entry,
        Entry::Linux64 { rip: 0x20_0004 }
    );
}

#[test]
fn an_entry_without_code_is_refused() {
    let text = Segment {
        bss: 0x1000,
        ..Segment::load(0x20_0000, &[0xf4; 16])
    };
    for entry in [0, 0x20_0010, 0xffff_ffff_8020_0000] {
        let message = refusal(&Elf::new(entry, vec![text.clone()]).bytes());
        assert!(message.contains(&format!("{entry:#x}")), "{message}");
    }
    let astray = Elf::new(
        0x20_0000,
        vec![text, Segment::notes(&[pvh_note(0x30_0000)])],
    );
    assert!(refusal(&astray.bytes()).contains("0x300000"));
}

#[test]
fn a_note_without_a_32_bit_address_is_refused() {
    for desc in [&[1, 2][..], &[0, 0, 0x20, 0, 1, 0, 0, 0]] {
        let segments = vec![
            Segment::load(0x20_0000, &[0; 16]),
            Segment::notes(&[note(b"Xen\0", 18, desc)]),
        ];
        assert!(refusal(&Elf::new(0x20_0000, segments).bytes()).contains("PVH"));
    }
}

#[test]
fn addresses_outside_low_memory_are_refused() {
    let cases = [
        (0x1000, 0),
        (0xf_ffff, 0),
        (0xc000_0000, 0),
        (0x20_0000, 0xc000_0000),
        (u64::MAX - 8, 0),
        (0x20_0000, u64::MAX - 16),
    ];
    for (paddr, bss) in cases {
        let segment = Segment {
            bss,
            ..Segment::load(paddr, &[0; 16])
        };
        let error = load_bytes(&Elf::new(paddr, vec![segment]).bytes()).unwrap_err();
        assert!(
            matches!(error, KernelError::Address { .. }),
            "{paddr:#x}+{bss:#x}: {error}"
        );
    }
}

#[test]
fn programs_of_user_space_are_told_from_kernels() {
    let text = Segment::load(0x40_0000, &[0x90; 16]);
    let relocatable = Segment::load(0, &[0x90; 16]);
    let interp = Segment::other(PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0");
    let tls = Segment::other(PT_TLS, &[]);
    for segments in [
        vec![text.clone(), interp.clone()],
        vec![text, tls.clone()],
        vec![relocatable.clone(), interp],
        vec![relocatable, tls],
    ] {
        let error = load_bytes(&Elf::new(0x40_0000, segments).bytes()).unwrap_err();
        assert!(
            matches!(error, KernelError::NotAKernel(Lookalike::Program)),
            "{error}"
        );
    }
}

#[test]
fn files_of_other_kinds_and_machines_are_named() {
    let mut elf = vmlinux();
    elf.machine = 183;
    assert!(refusal(&elf.bytes()).contains("arm64"));
    elf.machine = 999;
    assert!(refusal(&elf.bytes()).contains("999"));
    elf.machine = 62;
    elf.kind = 1;
    assert!(refusal(&elf.bytes()).contains("module"));
    elf.kind = 4;
    assert!(refusal(&elf.bytes()).contains("not an executable"));
    elf.kind = 2;
    let mut bytes = elf.bytes();
    bytes[4] = 1;
    assert!(refusal(&bytes[..52]).contains("32-bit"));
    bytes[4] = 2;
    bytes[5] = 2;
    assert!(refusal(&bytes).contains("big-endian"));
    bytes[5] = 7;
    assert!(refusal(&bytes).contains("byte order"));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = vmlinux().bytes();
    for len in 1..bytes.len() {
        let error = load_bytes(&bytes[..len]).unwrap_err();
        assert!(
            matches!(
                error,
                KernelError::Truncated { .. } | KernelError::NotAKernel(_)
            ),
            "{len}: {error}"
        );
    }
}

#[test]
fn damaged_headers_are_refused() {
    let good = vmlinux().bytes();
    let damaged = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        refusal(&bytes)
    };
    assert!(damaged(54, &[57]).contains("wrong size"));
    assert!(damaged(32, &[8]).contains("overlap"));
    assert!(damaged(56, &[0xff, 0xff]).contains("128"));
    assert!(damaged(56, &[0]).contains("no segments"));
    // p_filesz of the first segment, then p_offset.
    assert!(damaged(64 + 32, &[0xff; 8]).contains("larger in the file"));
    assert!(damaged(64 + 8, &[0xff; 8]).contains("truncated"));
}

#[test]
fn overlapping_segments_are_refused() {
    let first = Segment {
        bss: 0x1000,
        ..Segment::load(0x20_0000, &[0; 16])
    };
    let second = Segment::load(0x20_0800, &[0; 16]);
    let elf = Elf::new(0x20_0000, vec![second, first]);
    assert!(refusal(&elf.bytes()).contains("overlap"));
}
