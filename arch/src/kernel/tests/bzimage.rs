//! The setup header of a bzImage: what is taken from it and what is refused.

use super::*;
use crate::kernel::image::Bz;
use crate::kernel::{Entry, KernelKind};

#[test]
fn the_payload_goes_to_the_preferred_address() {
    let memory = memory(64 * MIB);
    let bz = Bz::default();
    let loaded = load(&memory, &mut file(&bz.bytes()), None, "").unwrap();
    assert_eq!(loaded.kind, KernelKind::BzImage);
    assert_eq!(loaded.entry, Entry::Linux64 { rip: 0x100_0200 });
    assert_eq!(loaded.kernel, 0x100_0000..0x110_0000);
    assert_eq!(guest_bytes(&memory, 0x100_0000, 0x400), bz.payload);
    let header = loaded.setup_header.unwrap();
    assert_eq!({ header.version }, 0x20f);
    assert_eq!(
        { header.kernel_info_offset },
        0,
        "beyond this kernel's header"
    );
}

#[test]
fn a_header_is_kept_as_far_as_it_goes() {
    let longer = Bz {
        header_len: 0x80,
        ..Bz::default()
    };
    let header = load_bytes(&longer.bytes()).unwrap().setup_header.unwrap();
    assert_eq!({ header.handover_offset }, 0x1234_5678);
    let shorter = Bz {
        header_len: 0x62,
        ..Bz::default()
    };
    let header = load_bytes(&shorter.bytes()).unwrap().setup_header.unwrap();
    assert_eq!({ header.handover_offset }, 0);
}

#[test]
fn zero_setup_sectors_mean_four() {
    let memory = memory(64 * MIB);
    let bz = Bz {
        setup_sects: 0,
        ..Bz::default()
    };
    load(&memory, &mut file(&bz.bytes()), None, "").unwrap();
    assert_eq!(guest_bytes(&memory, 0x100_0000, 0x400), bz.payload);
}

#[test]
fn a_signature_after_the_kernel_does_no_harm() {
    let mut bytes = Bz::default().bytes();
    bytes.extend([0xaa; 100]);
    assert_eq!(load_bytes(&bytes).unwrap().kernel, 0x100_0000..0x110_0000);
}

#[test]
fn old_and_32_bit_kernels_are_refused_with_what_to_use() {
    let old = refusal(
        &Bz {
            version: 0x204,
            ..Bz::default()
        }
        .bytes(),
    );
    assert!(old.contains("2.04") && old.contains("3.8"), "{old}");
    let narrow = refusal(
        &Bz {
            xloadflags: 0xfe,
            ..Bz::default()
        }
        .bytes(),
    );
    assert!(narrow.contains("32-bit"), "{narrow}");
    assert!(
        refusal(
            &Bz {
                loadflags: 0,
                ..Bz::default()
            }
            .bytes()
        )
        .contains("below 1 MiB")
    );
}

#[test]
fn addresses_outside_low_memory_are_refused() {
    for pref_address in [0, 0xf_f000, 0xc000_0000, 0xbfff_0000, u64::MAX] {
        let error = load_bytes(
            &Bz {
                pref_address,
                ..Bz::default()
            }
            .bytes(),
        )
        .unwrap_err();
        assert!(
            matches!(error, KernelError::Address { .. }),
            "{pref_address:#x}: {error}"
        );
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = Bz::default().bytes();
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
fn a_kernel_needs_room_to_unpack() {
    let bz = Bz {
        init_size: (48 << 20) + 1,
        ..Bz::default()
    };
    match load_bytes(&bz.bytes()).unwrap_err() {
        KernelError::DoesNotFit {
            needed,
            given,
            initrd,
        } => {
            assert_eq!((needed, given, initrd), (64 * MIB + 1, 64 * MIB, false));
        }
        other => panic!("{other}"),
    }
}
