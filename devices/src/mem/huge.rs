//! Guest memory in huge pages, madvise(2). Runs on the thread that builds the VM, before the guest does.

use std::ops::Range;

use rustix::mm::{Advice, madvise};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::GuestMemory;

/// What x86-64 has next above a page of 4 KiB, and what Linux gives where it is asked for huge ones.
const HUGE: usize = 2 << 20;

/// Asks the host to put huge pages behind guest memory that is going to be touched all over: one fault of the
/// host's, and one of KVM's, in place of 512 each. Only what is whole pages of that size, so that it costs no
/// memory.
///
/// A host that has none to give, or none at all, gives small ones.
pub fn ask_for_huge_pages(memory: &GuestMemory, range: &Range<u64>) {
    let Ok(len) = usize::try_from(range.end.saturating_sub(range.start)) else {
        return;
    };
    let Ok(slice) = memory.get_slice(GuestAddress(range.start), len) else {
        return;
    };
    let guard = slice.ptr_guard_mut();
    let start = guard.as_ptr();
    let skipped = start.addr().next_multiple_of(HUGE) - start.addr();
    let whole = len.saturating_sub(skipped) / HUGE * HUGE;
    if whole == 0 {
        return;
    }
    // SAFETY: the range lies inside `slice`, which is mapped as long as it is borrowed. The advice changes the
    // size of the pages behind it and not what is in them.
    let asked = unsafe { madvise(start.add(skipped).cast(), whole, Advice::LinuxHugepage) };
    if let Err(error) = asked {
        log::debug!("no huge pages for guest memory: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// How much of this process's memory has the flag of madvise(2)'s advice (proc_pid_smaps(5), `hg`), in kB,
    /// between two host addresses.
    fn asked_for(memory: &GuestMemory, size: usize) -> usize {
        let start = memory.get_host_address(GuestAddress(0)).unwrap().addr();
        let mut inside = false;
        let mut kb = (0, 0);
        for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            let word = line.split(' ').next().unwrap_or_default();
            if let Some((low, high)) = word.split_once('-') {
                let address = |text| usize::from_str_radix(text, 16).unwrap();
                inside = address(low) >= start && address(high) <= start + size;
            } else if inside && line.starts_with("Size:") {
                kb.0 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            } else if inside && line.starts_with("VmFlags:") && line.contains(" hg") {
                kb.1 += kb.0;
            }
        }
        kb.1
    }

    #[test]
    fn only_whole_huge_pages_are_asked_for() {
        const SIZE: usize = 16 << 20;
        if !fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap() {
            return;
        }
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
        let huge = HUGE as u64;
        ask_for_huge_pages(&memory, &(huge / 2..huge));
        ask_for_huge_pages(&memory, &(0..1 << 40));
        assert_eq!(asked_for(&memory, SIZE), 0);
        ask_for_huge_pages(&memory, &(huge..4 * huge));
        // Where the host's address is no multiple of it, the outer ones are not whole.
        let asked = asked_for(&memory, SIZE);
        let aligned = memory.get_host_address(GuestAddress(0)).unwrap().addr() % HUGE == 0;
        let expected = if aligned { 3 * HUGE } else { 2 * HUGE };
        assert_eq!(asked, expected >> 10);
    }
}
