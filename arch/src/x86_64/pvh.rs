//! PVH start info: what the Xen PVH boot protocol hands over.
//!
//! Xen's xen/include/public/arch-x86/hvm/start_info.h, version 1: the structure, its memory map and
//! its list of modules (the initrd is the only one), all in one page.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::boot::BootError;
use super::layout;
use super::memory::memory_map;
use crate::kernel::Loaded;

/// The version that has the memory map.
const VERSION: u32 = 1;
/// The module list, after the structure of 56 bytes.
const MODULES: u64 = layout::START_INFO + 0x40;
/// The memory map, after one module of 32 bytes.
const MEMORY_MAP: u64 = layout::START_INFO + 0x60;

// The parts do not overlap, and a map of 8 entries ends before the zero page.
const _: () = {
    assert!(layout::START_INFO + size_of::<hvm_start_info>() as u64 <= MODULES);
    assert!(MODULES + size_of::<hvm_modlist_entry>() as u64 <= MEMORY_MAP);
    assert!(MEMORY_MAP + 8 * size_of::<hvm_memmap_table_entry>() as u64 <= layout::ZERO_PAGE);
};

/// Writes the start info. `rsdp` is 0 without ACPI.
pub(super) fn write(
    memory: &GuestMemoryMmap<()>,
    loaded: &Loaded,
    rsdp: u64,
) -> Result<(), BootError> {
    let map = memory_map(memory);
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        ..Default::default()
    };
    if let Some(initrd) = &loaded.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = MODULES;
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.end - initrd.start,
            ..Default::default()
        };
        memory
            .write_obj(module, GuestAddress(MODULES))
            .map_err(BootError::write("PVH module list"))?;
    }
    let mut address = MEMORY_MAP;
    for entry in &map {
        let range = hvm_memmap_table_entry {
            addr: entry.base,
            size: entry.len,
            type_: entry.kind as u32,
            reserved: 0,
        };
        memory
            .write_obj(range, GuestAddress(address))
            .map_err(BootError::write("PVH memory map"))?;
        address += size_of_val(&range) as u64;
        info.memmap_entries += 1;
    }
    memory
        .write_obj(info, GuestAddress(layout::START_INFO))
        .map_err(BootError::write("PVH start info"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Entry, KernelKind};
    use crate::x86_64::memory::ram_regions;

    fn read(memory: &GuestMemoryMmap<()>) -> hvm_start_info {
        memory.read_obj(GuestAddress(layout::START_INFO)).unwrap()
    }

    #[test]
    fn start_info_points_to_map_modules_and_command_line() {
        let memory = GuestMemoryMmap::from_ranges(&ram_regions(4 << 30)).unwrap();
        let mut loaded = Loaded {
            kind: KernelKind::Pvh,
            entry: Entry::Pvh { rip: 0x10_0000 },
            kernel: 0x10_0000..0x20_0000,
            initrd: Some(0x300_0000..0x300_0005),
            setup_header: None,
        };
        write(&memory, &loaded, 0xe_0000).unwrap();
        let info = read(&memory);
        assert_eq!(info.magic, 0x336e_c578);
        assert_eq!((info.version, info.flags, info.nr_modules), (1, 0, 1));
        assert_eq!((info.cmdline_paddr, info.rsdp_paddr), (0x2_0000, 0xe_0000));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x300_0000, 5));
        let map: Vec<hvm_memmap_table_entry> = (0..u64::from(info.memmap_entries))
            .map(|i| {
                memory
                    .read_obj(GuestAddress(info.memmap_paddr + 24 * i))
                    .unwrap()
            })
            .collect();
        assert_eq!(map.len(), 5);
        assert_eq!((map[0].addr, map[0].size, map[0].type_), (0, 0xa_0000, 1));
        assert_eq!(
            (map[4].addr, map[4].size, map[4].type_),
            (4 << 30, 1 << 30, 1)
        );

        loaded.initrd = None;
        write(&memory, &loaded, 0).unwrap();
        let info = read(&memory);
        assert_eq!(
            (info.nr_modules, info.modlist_paddr, info.rsdp_paddr),
            (0, 0, 0)
        );
    }
}
