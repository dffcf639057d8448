//! Properties: whatever a file says, loading it returns, and what it returns holds together.

use proptest::prelude::*;

use super::*;
use crate::kernel::Entry;
use crate::kernel::image::{Bz, vmlinux};

const MEMORY: u64 = 64 * MIB;

/// Loads, and checks that a success is one that the boot code can rely on.
fn check(kernel: &[u8], initrd: &[u8]) -> Result<(), TestCaseError> {
    let memory = memory(MEMORY);
    let mut initrd = (!initrd.is_empty()).then(|| file(initrd));
    match load(&memory, &mut file(kernel), initrd.as_mut(), "console=ttyS0") {
        Ok(loaded) => {
            let entry = match loaded.entry {
                Entry::Linux64 { rip } => rip,
                Entry::Pvh { rip } => rip.into(),
            };
            prop_assert!(loaded.kernel.contains(&entry), "{loaded:x?}");
            prop_assert!(loaded.kernel.start >= MIB && loaded.kernel.end <= MEMORY);
            if let Some(range) = &loaded.initrd {
                prop_assert!(range.start >= loaded.kernel.end && range.end <= MEMORY);
                prop_assert_eq!(range.start % 4096, 0);
            }
            let _ = loaded.memory_hint(MEMORY);
        }
        Err(error) => {
            let _ = error.part();
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
    Ok(())
}

/// A good image with some words overwritten, biased to values at which arithmetic breaks.
fn mutated(image: Vec<u8>, header: usize) -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        0u64..0x1000,
        (0u64..64).prop_map(|bit| 1 << bit),
    ];
    let width = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    let changes = prop::collection::vec((0..header, width, value), 1..6);
    let len = prop_oneof![3 => Just(image.len()), 1 => 0..image.len()];
    (changes, len).prop_map(move |(changes, len)| {
        let mut bytes = image.clone();
        for (at, width, value) in changes {
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        bytes.truncate(len);
        bytes
    })
}

/// The offset of the PVH note in the image: all before the contents, and the note at the end.
fn elf_image() -> (Vec<u8>, usize) {
    let mut elf = vmlinux();
    elf.segments.swap(0, 1);
    (elf.bytes(), 64 + 2 * 56 + 24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        check(&bytes, &[])?;
    }

    #[test]
    fn noise_after_a_magic_number_is_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0x300..0x1000),
        elf in any::<bool>(),
    ) {
        if elf {
            bytes[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
        } else {
            bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
            bytes[0x202..0x206].copy_from_slice(b"HdrS");
        }
        check(&bytes, &[1; 100])?;
    }

    #[test]
    fn a_mutated_elf_never_panics(bytes in mutated(elf_image().0, elf_image().1)) {
        check(&bytes, &[1; 5000])?;
    }

    #[test]
    fn a_mutated_bzimage_never_panics(
        // From the first field of the setup header to its end.
        header in mutated(Bz::default().bytes()[0x1f1..0x270].to_vec(), 0x7f),
    ) {
        let mut bytes = Bz::default().bytes();
        bytes[0x1f1..0x1f1 + header.len()].copy_from_slice(&header);
        check(&bytes, &[1; 5000])?;
    }
}
