//! Whether memory is plainly too small, though kernel and initrd fit it.
//!
//! A kernel that runs out of memory while it unpacks its initrd stops with a panic that names
//! anything but the cause. The rule counts what must be there at the same time and cannot be less:
//! the kernel, the initrd and what is unpacked of it (no less than the archive), a `struct page` of 64
//! bytes for each 4 KiB, and [`WORKING_SET`]. It errs on the side of silence.

use super::error::Mib;

/// What a small Linux allocates until its init runs, beyond the above.
const WORKING_SET: u64 = 12 << 20;

/// What to tell a user whose VM has `memory` bytes.
pub(super) fn memory_hint(kernel: u64, initrd: u64, memory: u64) -> Option<String> {
    let pages = memory / 64;
    let least = [kernel, initrd, initrd, pages, WORKING_SET]
        .into_iter()
        .fold(0, u64::saturating_add);
    (memory < least).then(|| {
        let unpacked = match initrd {
            0 => String::new(),
            _ => format!(", the initrd {} and again as much unpacked", Mib(initrd)),
        };
        format!(
            "{} of memory is too small for this guest to boot: the kernel alone takes {}{unpacked}; \
             give the VM {} or more",
            Mib(memory),
            Mib(kernel),
            Mib(least.saturating_add(least / 4)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_kernel_without_initrd_is_not_warned_of_at_128_mib() {
        assert_eq!(memory_hint(60 << 20, 0, 128 << 20), None);
    }

    #[test]
    fn an_initrd_counts_twice() {
        assert_eq!(memory_hint(60 << 20, 40 << 20, 256 << 20), None);
        let hint = memory_hint(60 << 20, 40 << 20, 128 << 20).unwrap();
        assert!(
            hint.contains("128 MiB") && hint.contains("40 MiB"),
            "{hint}"
        );
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        assert!(memory_hint(u64::MAX, u64::MAX, u64::MAX).is_none());
        assert!(memory_hint(u64::MAX, u64::MAX, 1).is_some());
    }
}
