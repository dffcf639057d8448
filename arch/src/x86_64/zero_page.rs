//! The zero page: `struct boot_params`, what the Linux boot protocol hands over.
//!
//! Documentation/arch/x86/zero-page.rst, and boot.rst, "64-bit Boot Protocol": all zero but the setup
//! header of the image and what the boot loader fills in.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::boot::BootError;
use super::layout;
use super::memory::memory_map;
use crate::kernel::Loaded;

/// `boot_flag`: the magic number of a boot sector.
const BOOT_FLAG: u16 = 0xaa55;
/// `header`: "HdrS".
const HDRS: u32 = 0x5372_6448;
/// The protocol that is spoken to a vmlinux, which has no header of its own: 2.15.
const PROTOCOL_2_15: u16 = 0x20f;
/// `loadflags`: loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `type_of_loader`: a boot loader without an assigned number.
const UNDEFINED_LOADER: u8 = 0xff;
/// `vid_mode`: "normal", which asks for no mode.
const VIDEO_NORMAL: u16 = 0xffff;

/// Writes the zero page. `rsdp` is 0 without ACPI.
pub(super) fn write(
    memory: &GuestMemoryMmap<()>,
    loaded: &Loaded,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: header(loaded),
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    let map = memory_map(memory);
    let mut count = 0;
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.base,
            size: entry.len,
            r#type: entry.kind as u32,
        };
        count += 1;
    }
    params.e820_entries = count;
    memory
        .write_obj(params, GuestAddress(layout::ZERO_PAGE))
        .map_err(BootError::write("zero page"))
}

/// The image's setup header, or for a vmlinux a made one, with the fields that a loader writes.
fn header(loaded: &Loaded) -> setup_header {
    let mut header = loaded.setup_header.unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: HDRS,
        version: PROTOCOL_2_15,
        loadflags: LOADED_HIGH,
        ..Default::default()
    });
    header.type_of_loader = UNDEFINED_LOADER;
    header.vid_mode = VIDEO_NORMAL;
    header.cmd_line_ptr = low(layout::CMDLINE);
    // The kernel follows this list of structures; the image has no business to point anywhere.
    header.setup_data = 0;
    let initrd = loaded.initrd.clone().unwrap_or_default();
    header.ramdisk_image = low(initrd.start);
    header.ramdisk_size = low(initrd.end - initrd.start);
    header
}

/// An address or size below 4 GiB, as all of the kernel's and the initrd's are.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Entry, KernelKind};
    use crate::x86_64::memory::{MapKind, ram_regions};

    fn loaded() -> Loaded {
        Loaded {
            kind: KernelKind::Elf,
            entry: Entry::Linux64 { rip: 0x100_0000 },
            kernel: 0x100_0000..0x200_0000,
            initrd: Some(0x300_0000..0x300_1234),
            setup_header: None,
        }
    }

    fn written(bytes: u64, loaded: &Loaded) -> Vec<u8> {
        let memory = GuestMemoryMmap::from_ranges(&ram_regions(bytes)).unwrap();
        write(&memory, loaded, 0xe_0000).unwrap();
        let mut page = vec![0; 0x1000];
        memory
            .read_slice(&mut page, GuestAddress(layout::ZERO_PAGE))
            .unwrap();
        page
    }

    fn u16_at(page: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(page[at..at + 2].try_into().unwrap())
    }

    fn u32_at(page: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
    }

    fn u64_at(page: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(page[at..at + 8].try_into().unwrap())
    }

    /// Offsets are those of zero-page.rst and boot.rst, on purpose not the struct's.
    #[test]
    fn fields_are_where_the_documentation_has_them() {
        let page = written(64 << 20, &loaded());
        assert_eq!(u64_at(&page, 0x070), 0xe_0000);
        assert_eq!(page[0x1ef], 0, "sentinel");
        assert_eq!(u16_at(&page, 0x1fa), VIDEO_NORMAL);
        assert_eq!(u16_at(&page, 0x1fe), 0xaa55);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(u16_at(&page, 0x206), 0x20f);
        assert_eq!(page[0x210], 0xff);
        assert_eq!(page[0x211], LOADED_HIGH);
        assert_eq!(u32_at(&page, 0x218), 0x300_0000);
        assert_eq!(u32_at(&page, 0x21c), 0x1234);
        assert_eq!(u32_at(&page, 0x228), 0x2_0000);
    }

    #[test]
    fn e820_has_ram_on_both_sides_of_the_hole() {
        let page = written(4 << 30, &loaded());
        let entries = usize::from(page[0x1e8]);
        let table: Vec<_> = (0..entries)
            .map(|i| 0x2d0 + i * 20)
            .map(|at| {
                (
                    u64_at(&page, at),
                    u64_at(&page, at + 8),
                    u32_at(&page, at + 16),
                )
            })
            .collect();
        let (ram, reserved) = (MapKind::Ram as u32, MapKind::Reserved as u32);
        assert_eq!(
            table,
            [
                (0, 0xa_0000, ram),
                (0xe_0000, 0x2_0000, reserved),
                (0x10_0000, 0xc000_0000 - 0x10_0000, ram),
                (0xfffb_c000, 0x4000, reserved),
                (0x1_0000_0000, 0x4000_0000, ram),
            ]
        );
    }

    #[test]
    fn the_image_keeps_its_header_but_not_what_the_loader_owns() {
        let image = setup_header {
            version: 0x20e,
            setup_data: 0xdead_beef,
            ramdisk_image: 0x666,
            ramdisk_size: 0x666,
            kernel_alignment: 0x20_0000,
            header: HDRS,
            ..Default::default()
        };
        let page = written(
            64 << 20,
            &Loaded {
                initrd: None,
                setup_header: Some(image),
                ..loaded()
            },
        );
        assert_eq!(u16_at(&page, 0x206), 0x20e);
        assert_eq!(u32_at(&page, 0x230), 0x20_0000);
        assert_eq!(u64_at(&page, 0x250), 0, "setup_data");
        assert_eq!((u32_at(&page, 0x218), u32_at(&page, 0x21c)), (0, 0));
    }
}
