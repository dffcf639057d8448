//! Kernels made of a few bytes, whole and broken, loaded into small memories.

mod bzimage;
mod elf;
mod hostile;
mod inputs;

use std::fs::File;
use std::io::Write;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::image::{Elf, Segment, vmlinux};
use super::{Initrd, KernelError, Loaded, check, is_linux};
use crate::x86_64::memory::ram_regions;

const MIB: u64 = 1 << 20;

fn memory(bytes: u64) -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&ram_regions(bytes)).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Checks and loads.
fn load<'a>(
    memory: &GuestMemoryMmap<()>,
    kernel: &'a mut File,
    initrd: impl Into<Initrd<'a>>,
    cmdline: &'a str,
) -> Result<Loaded, KernelError> {
    check(memory, kernel, initrd, cmdline)?.load(memory)
}

/// Loads a kernel without initrd into 64 MiB.
fn load_bytes(kernel: &[u8]) -> Result<Loaded, KernelError> {
    load(&memory(64 * MIB), &mut file(kernel), None, "")
}

/// The message of a kernel that must be refused.
fn refusal(kernel: &[u8]) -> String {
    let message = load_bytes(kernel).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

fn guest_bytes(memory: &GuestMemoryMmap<()>, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

#[test]
fn a_linux_kernel_is_known_by_how_it_is_packed_or_linked() {
    assert!(is_linux(&mut file(&vmlinux().bytes())));
    let other = Elf::new(MIB, vec![Segment::load(MIB, &[0xf4])]);
    assert!(!is_linux(&mut file(&other.bytes())));
    assert!(!is_linux(&mut file(b"#!/bin/sh\n")));
}
