//! The initrd, the command line, memory sizes, and files that are no kernels.

use super::*;
use crate::kernel::image::{Bz, Elf, Segment, vmlinux};
use crate::kernel::{Compression, Initrd, Lookalike, Part};

fn load_initrd(bytes: u64, kernel: &[u8], initrd: &[u8]) -> Result<Loaded, KernelError> {
    load(
        &memory(bytes),
        &mut file(kernel),
        Some(&mut file(initrd)),
        "",
    )
}

#[test]
fn the_initrd_ends_at_the_top_of_low_memory_in_whole_pages() {
    let memory = memory(64 * MIB);
    let contents: Vec<u8> = (0..=255).cycle().take(0x1801).collect();
    let kernel = &mut file(&vmlinux().bytes());
    let loaded = load(&memory, kernel, Some(&mut file(&contents)), "").unwrap();
    let initrd = loaded.initrd.unwrap();
    assert_eq!(initrd, 0x3ff_e000..0x3ff_f801);
    assert_eq!(guest_bytes(&memory, initrd.start, contents.len()), contents);
}

#[test]
fn what_a_boot_touches_is_what_is_loaded() {
    let memory = memory(64 * MIB);
    let (kernel, mut initrd) = (&mut file(&vmlinux().bytes()), file(&[1; 5000]));
    let checked = check(&memory, kernel, Some(&mut initrd), "").unwrap();
    let touched = checked.touched(&memory);
    let loaded = checked.load(&memory).unwrap();
    let (array, bounced) = (0x3c0_0000..0x400_0000, 0..0);
    assert_eq!(
        touched,
        [loaded.kernel, loaded.initrd.unwrap(), array, bounced]
    );
    let checked = check(&memory, kernel, None, "").unwrap();
    assert!(checked.touched(&memory)[1].is_empty());
    let other = &mut file(&Elf::new(0x100_0000, vec![Segment::load(0x100_0000, &[0xf4])]).bytes());
    let checked = check(&memory, other, None, "").unwrap();
    assert!(
        checked.touched(&memory)[1..]
            .iter()
            .all(|range| range.is_empty()),
        "no Linux"
    );
}

#[test]
fn what_is_appended_begins_at_a_word_behind_the_file() {
    for (len, gap) in [(0, 0), (4, 0), (5, 3), (4095, 1), (4097, 3)] {
        let memory = memory(64 * MIB);
        let contents = vec![0xff; len];
        let mut initrd = (len > 0).then(|| file(&contents));
        let initrd = Initrd {
            file: initrd.as_mut(),
            appended: b"070701",
        };
        let kernel = vmlinux().bytes();
        let loaded = load(&memory, &mut file(&kernel), initrd, "").unwrap();
        let range = loaded.initrd.unwrap();
        let expected = [&contents[..], &vec![0; gap], b"070701"].concat();
        assert_eq!(range.end - range.start, expected.len() as u64);
        assert_eq!(guest_bytes(&memory, range.start, expected.len()), expected);
    }
}

#[test]
fn the_initrd_stays_below_the_hole_and_below_what_the_kernel_reaches() {
    let initrd = load_initrd(4 << 30, &vmlinux().bytes(), &[1; 5000])
        .unwrap()
        .initrd
        .unwrap();
    assert_eq!(initrd.start, 0x7fff_e000, "the limit of x86-64 Linux");
    let low = Bz {
        initrd_addr_max: 0x1ff_ffff,
        ..Bz::default()
    };
    let initrd = load_initrd(4 << 30, &low.bytes(), &[1; 5000])
        .unwrap()
        .initrd
        .unwrap();
    assert_eq!(initrd.start, 0x1ff_e000);
}

#[test]
fn an_initrd_that_no_memory_makes_room_for_is_refused_as_such() {
    let low = Bz {
        initrd_addr_max: 0x110_0fff,
        ..Bz::default()
    };
    let error = load_initrd(64 * MIB, &low.bytes(), &[1; 5000]).unwrap_err();
    assert!(
        matches!(
            error,
            KernelError::InitrdTooLarge {
                len: 5000,
                max: 4096
            }
        ),
        "{error}"
    );
    assert_eq!(error.part(), Part::Initrd);
    let none = Bz {
        initrd_addr_max: 0,
        ..Bz::default()
    };
    let error = load_initrd(64 * MIB, &none.bytes(), &[1]).unwrap_err();
    assert!(
        matches!(error, KernelError::InitrdTooLarge { max: 0, .. }),
        "{error}"
    );
}

#[test]
fn kernel_and_initrd_that_do_not_fit_say_how_much_would() {
    let mut kernel = vmlinux();
    kernel.segments[0].bss = 12 * MIB;
    let initrd = vec![1; 8 << 20];
    let error = load_initrd(32 * MIB, &kernel.bytes(), &initrd).unwrap_err();
    assert_eq!(error.part(), Part::Memory);
    let message = error.to_string();
    assert_eq!(
        message,
        "32 MiB of memory cannot hold the kernel and the initrd; give the VM at least 37 MiB"
    );
    load_initrd(37 * MIB, &kernel.bytes(), &initrd).unwrap();
}

#[test]
fn a_kernel_fits_its_last_byte_and_no_less() {
    let mut kernel = vmlinux();
    kernel.segments[0] = Segment {
        bss: 16 * MIB - 0x800,
        ..kernel.segments[0].clone()
    };
    load(&memory(32 * MIB), &mut file(&kernel.bytes()), None, "").unwrap();
    kernel.segments[0].bss += 1;
    let error = load(&memory(32 * MIB), &mut file(&kernel.bytes()), None, "").unwrap_err();
    assert!(matches!(error, KernelError::DoesNotFit { .. }), "{error}");
}

#[test]
fn bad_initrds_are_refused() {
    let error = load_initrd(64 * MIB, &vmlinux().bytes(), &[]).unwrap_err();
    assert_eq!(error.part(), Part::Initrd);
    let mut directory = File::open(std::env::temp_dir()).unwrap();
    let kernel = &mut file(&vmlinux().bytes());
    let error = load(&memory(64 * MIB), kernel, Some(&mut directory), "").unwrap_err();
    assert!(matches!(error, KernelError::InitrdDirectory), "{error}");
}

#[test]
fn a_command_line_has_the_length_that_the_kernel_takes() {
    let try_len = |kernel: &[u8], len: usize| {
        load(&memory(64 * MIB), &mut file(kernel), None, &"x".repeat(len))
    };
    let elf = vmlinux().bytes();
    try_len(&elf, 2047).unwrap();
    let error = try_len(&elf, 2048).unwrap_err();
    assert_eq!(
        error.to_string(),
        "has 2048 bytes; this kernel takes at most 2047"
    );
    assert_eq!(error.part(), Part::Cmdline);
    let small = Bz {
        cmdline_size: 255,
        ..Bz::default()
    }
    .bytes();
    try_len(&small, 255).unwrap();
    assert!(try_len(&small, 256).is_err());
    // A header may promise anything.
    let vast = Bz {
        cmdline_size: u32::MAX,
        ..Bz::default()
    }
    .bytes();
    try_len(&vast, 0xffff).unwrap();
    assert!(try_len(&vast, 0x1_0000).is_err());
}

#[test]
fn a_command_line_with_a_nul_is_refused() {
    let kernel = &mut file(&vmlinux().bytes());
    let error = load(&memory(64 * MIB), kernel, None, "a\0b").unwrap_err();
    assert!(matches!(error, KernelError::CmdlineNul));
}

#[test]
fn what_looks_like_something_else_is_named() {
    let cases: [(&[u8], Lookalike); 17] = [
        (
            b"\x1f\x8b\x08rest",
            Lookalike::Compressed(Compression::Gzip),
        ),
        (b"\xfd7zXZ\0rest", Lookalike::Compressed(Compression::Xz)),
        (
            b"\x28\xb5\x2f\xfdrest",
            Lookalike::Compressed(Compression::Zstd),
        ),
        (
            b"\x04\x22\x4d\x18rest",
            Lookalike::Compressed(Compression::Lz4),
        ),
        (
            b"\x02\x21\x4c\x18rest",
            Lookalike::Compressed(Compression::Lz4),
        ),
        (b"BZh91AY", Lookalike::Compressed(Compression::Bzip2)),
        (b"\x5d\0\0\x80\0", Lookalike::Compressed(Compression::Lzma)),
        (b"\x89LZO\0\r\n", Lookalike::Compressed(Compression::Lzop)),
        (b"070701000", Lookalike::Cpio),
        (b"#!/bin/sh\n", Lookalike::Script),
        (b"!<arch>\ndebian-binary", Lookalike::Archive),
        (b"QFI\xfb\0\0\0\x03", Lookalike::DiskImage),
        (b"MZ\x90\0", Lookalike::EfiProgram),
        (b"MZ\0\0zimg", Lookalike::EfiZboot),
        (b"\x27\x05\x19\x56", Lookalike::UBoot),
        (b"CONFIG_64BIT=y\n", Lookalike::Text),
        (b"\x01\x02\x03\x00", Lookalike::Unknown),
    ];
    for (bytes, expected) in cases {
        let error = load_bytes(bytes).unwrap_err();
        assert_eq!(error.part(), Part::Kernel);
        match error {
            KernelError::NotAKernel(lookalike) => assert_eq!(lookalike, expected),
            other => panic!("{expected:?}: {other}"),
        }
    }
}

#[test]
fn disk_images_are_named() {
    let mut ext4 = vec![0; 8192];
    ext4[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    assert!(refusal(&ext4).contains("disk image"));
    let mut partitioned = vec![0; 512];
    partitioned[510..].copy_from_slice(&[0x55, 0xaa]);
    assert!(refusal(&partitioned).contains("disk image"));
}

#[test]
fn a_compressed_kernel_comes_with_its_remedy() {
    assert_eq!(
        refusal(b"\x1f\x8b\x08"),
        "is compressed with gzip; unpack it first, with gunzip"
    );
}

#[test]
fn files_that_are_no_files_are_refused() {
    assert!(refusal(b"").contains("empty"));
    let load = |file: &mut File| load(&memory(64 * MIB), file, None, "").unwrap_err();
    let mut directory = File::open(std::env::temp_dir()).unwrap();
    assert!(matches!(load(&mut directory), KernelError::Directory));
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut pipe = File::from(std::os::fd::OwnedFd::from(reader));
    assert!(matches!(load(&mut pipe), KernelError::NotSeekable));
}

#[test]
fn memory_is_plainly_too_small_only_when_it_is() {
    let mut kernel = vmlinux();
    kernel.segments[0].bss = 8 * MIB;
    let loaded = load_initrd(32 * MIB, &kernel.bytes(), &vec![1; 7 << 20]).unwrap();
    assert!(loaded.memory_hint(32 * MIB).is_some());
    assert_eq!(loaded.memory_hint(256 * MIB), None);
}
