//! Kernel images: told apart, checked, loaded, and the boot data for them written.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};

use arch::board::Board;
use arch::kernel::image::{Bz, Elf, Segment, note, pvh_note, vmlinux};
use arch::kernel::{self, Entry, KernelError, Loaded};
use arch::x86_64::{boot, memory::ram_regions};
use vm_memory::GuestMemoryMmap;

use crate::target::Target;

/// Guest memory.
const MEMORY: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

/// The target. The last byte of its input says how long the initrd is, in KiB; the rest is the kernel.
#[derive(Debug)]
pub struct Kernel;

thread_local! {
    /// The files, written anew each time.
    static FILES: RefCell<[File; 2]> = RefCell::new([(); 2].map(|()| {
        tempfile::tempfile().expect("cannot make a file")
    }));
}

impl Target for Kernel {
    fn name(&self) -> &str {
        "kernel"
    }

    fn about(&self) -> String {
        "kernel images: ELF, PVH ELF, bzImage, and an initrd".to_owned()
    }

    fn run(&self, data: &[u8]) {
        let (len, kernel) = data.split_last().unwrap_or((&0, &[]));
        let initrd = vec![*len; 1024 * usize::from(*len)];
        let memory = GuestMemoryMmap::from_ranges(&ram_regions(MEMORY)).expect("no memory");
        let loaded = FILES.with_borrow_mut(|[kernel_file, initrd_file]| {
            write(kernel_file, kernel);
            write(initrd_file, &initrd);
            let initrd = (*len > 0).then_some(initrd_file);
            kernel::check(&memory, kernel_file, initrd, "console=ttyS0")?.load(&memory)
        });
        match loaded {
            Ok(loaded) => check(&memory, &loaded),
            Err(error) => refused(&error),
        }
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let pvh = Elf::new(
            0,
            vec![
                Segment::load(0x100_0000, &[0x90; 0x200]),
                Segment::notes(&[note(b"GNU\0", 3, &[7; 20]), pvh_note(0x100_0080)]),
            ],
        );
        let plain = Elf::new(0x20_0000, vec![Segment::load(0x20_0000, &[0xf4; 64])]);
        let images = [
            vmlinux().bytes(),
            pvh.bytes(),
            plain.bytes(),
            Bz::default().bytes(),
            b"\x1f\x8b\x08\0".to_vec(),
            b"#!/bin/sh\n".to_vec(),
            Vec::new(),
        ];
        let with = |len: u8| {
            images.clone().map(|mut image| {
                image.push(len);
                image
            })
        };
        with(0).into_iter().chain(with(5)).collect()
    }
}

fn write(file: &mut File, bytes: &[u8]) {
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(bytes));
    written.expect("cannot write a file");
}

/// What the boot code relies on.
fn check(memory: &GuestMemoryMmap<()>, loaded: &Loaded) {
    let entry = match loaded.entry {
        Entry::Linux64 { rip } => rip,
        Entry::Pvh { rip } => rip.into(),
    };
    assert!(loaded.kernel.contains(&entry), "{loaded:x?}");
    assert!(
        loaded.kernel.start >= MIB && loaded.kernel.end <= MEMORY,
        "{loaded:x?}"
    );
    if let Some(range) = &loaded.initrd {
        assert!(
            range.start >= loaded.kernel.end && range.end <= MEMORY,
            "{loaded:x?}"
        );
        assert_eq!(range.start % 4096, 0, "{loaded:x?}");
    }
    let _ = loaded.memory_hint(MEMORY);
    let board = Board {
        cpus: 1,
        acpi: true,
        ..Board::default()
    };
    boot::configure(memory, &board, loaded).expect("a kernel that loads can be booted");
}

fn refused(error: &KernelError) {
    let _ = error.part();
    assert!(!error.to_string().contains('\n'), "{error}");
}
