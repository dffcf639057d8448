//! Giving guest memory back to the host, madvise(2). Runs on I/O threads, while the guest runs.

use std::io;

use vm_memory::GuestMemoryBackend;

use super::{GuestMemory, GuestSlice};

/// Frees what the host has put behind the whole pages of `slice`, which is a part of `memory`. They stay
/// mapped, and read as zeroes until the guest writes them again.
///
/// Private anonymous memory is dropped. Memory shared through a file (a memfd) would come back from
/// there, so a hole is punched into the file. A private mapping of a file keeps its pages: what came
/// back would be the file's old bytes.
///
/// # Errors
/// The host refuses, as it does for locked memory and for parts of huge pages.
pub fn discard(memory: &GuestMemory, slice: &GuestSlice<'_>) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    let (start, page) = (guard.as_ptr(), page_size());
    let skipped = start.addr().next_multiple_of(page) - start.addr();
    let len = slice.len().saturating_sub(skipped) / page * page;
    let region = memory.iter().find(|region| {
        let offset = start.addr().checked_sub(region.as_ptr().addr());
        offset.is_some_and(|offset| offset < region.size())
    });
    let Some(region) = region.filter(|_| len > 0) else {
        return Ok(());
    };
    let shared = region.flags() & libc::MAP_SHARED != 0;
    let advice = match (shared, region.file_offset()) {
        (true, _) => libc::MADV_REMOVE,
        (false, None) => libc::MADV_DONTNEED,
        (false, Some(_)) => return Ok(()),
    };
    // SAFETY: the range lies inside `slice`, which is mapped as long as it is borrowed. It is guest
    // memory, of which nobody holds a reference: every access is volatile, and the guest may change it
    // to zeroes itself at any time.
    let done = unsafe { libc::madvise(start.add(skipped).cast(), len, advice) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It always knows this one.
    usize::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::GuestAddress;
    use std::fs::File;
    use vm_memory::{Bytes, FileOffset};

    const PAGE: usize = 4096;

    /// Four pages of ones.
    fn filled(file: Option<&File>, flags: i32) -> GuestMemory {
        let mut mapping = vm_memory::mmap::MmapRegionBuilder::new(4 * PAGE)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags);
        if let Some(file) = file {
            file.set_len(4 * PAGE as u64).unwrap();
            mapping = mapping.with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0));
        }
        let region =
            vm_memory::GuestRegionMmap::new(mapping.build().unwrap(), GuestAddress(0)).unwrap();
        let memory = GuestMemory::from_regions(vec![region]).unwrap();
        memory.write_slice(&[1; 4 * PAGE], GuestAddress(0)).unwrap();
        memory
    }

    fn discard_bytes(memory: &GuestMemory, start: usize, len: usize) {
        let slice = memory.get_slice(GuestAddress(start as u64), len).unwrap();
        discard(memory, &slice).unwrap();
    }

    /// The first byte of each page.
    fn pages(memory: &GuestMemory) -> [u8; 4] {
        [0, 1, 2, 3].map(|page| memory.read_obj(GuestAddress(page * 4096)).unwrap())
    }

    #[test]
    fn only_whole_pages_go() {
        let memory = filled(None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        discard_bytes(&memory, 1, 2 * PAGE - 2);
        discard_bytes(&memory, PAGE, PAGE - 1);
        assert_eq!(pages(&memory), [1; 4]);
        discard_bytes(&memory, 1, 3 * PAGE - 1);
        assert_eq!(pages(&memory), [1, 0, 0, 1]);
    }

    #[test]
    fn a_shared_file_gets_a_hole() {
        use std::os::unix::fs::MetadataExt;

        let file = tempfile::tempfile().unwrap();
        let memory = filled(Some(&file), libc::MAP_SHARED);
        let before = file.metadata().unwrap().blocks();
        discard_bytes(&memory, PAGE, 2 * PAGE);
        assert_eq!(pages(&memory), [1, 0, 0, 1]);
        assert!(file.metadata().unwrap().blocks() < before);
    }

    #[test]
    fn a_private_file_mapping_stays_as_it_is() {
        let file = tempfile::tempfile().unwrap();
        let memory = filled(Some(&file), libc::MAP_PRIVATE);
        discard_bytes(&memory, 0, 4 * PAGE);
        assert_eq!(pages(&memory), [1; 4]);
    }
}
