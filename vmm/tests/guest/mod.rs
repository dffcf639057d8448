//! Guests of a few bytes, for tests that prove what happens on a real KVM_RUN.

// Each test binary uses its part of this.
#![allow(dead_code)]

/// `jmp $`.
pub const SPIN: &[u8] = &[0xeb, 0xfe];

/// Writes "hi" to the first serial port, then spins: proof that the guest runs.
pub const GREET: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'h', 0xee, // mov al, 'h'; out dx, al
    0xb0, b'i', 0xee, // mov al, 'i'; out dx, al
    0xeb, 0xfe, // jmp $
];

/// Sends each character typed back in upper case, as far as one bit does that.
pub const SHOUT: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'>', 0xee, // mov al, '>'; out dx, al
    0x66, 0xba, 0xfd, 0x03, // again: mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1: data ready
    0x74, 0xf7, // jz again
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0x24, 0xdf, // and al, ~0x20
    0xee, // out dx, al
    0xeb, 0xed, // jmp again
];

/// Writes "hi" and powers off through the ACPI sleep control register.
pub const GREET_AND_POWER_OFF: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'h', 0xee, // mov al, 'h'; out dx, al
    0xb0, b'i', 0xee, // mov al, 'i'; out dx, al
    0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
    0xb0, 0x34, 0xee, // mov al, 0x34; out dx, al: SLP_TYP 5, SLP_EN
    0xeb, 0xfe, // jmp $
];

/// Reads the magic value of the first virtio-mmio device and says its first two bytes, then panics
/// through pvpanic.
pub const READ_MMIO_AND_PANIC: &[u8] = &[
    // The boot page tables reach RAM only: map 3 GiB + 256 MiB through a directory of our own.
    0xc7, 0x04, 0x25, 0x18, 0xa0, 0x00, 0x00, // mov dword [0xa018], …
    0x03, 0x00, 0x50, 0x00, // … 0x500003: the directory for 3 to 4 GiB
    0xc7, 0x04, 0x25, 0x00, 0x04, 0x50, 0x00, // mov dword [0x500400], …
    0x83, 0x00, 0x00, 0xd0, // … 0xd0000083: a 2 MiB page
    0xb8, 0x00, 0x00, 0x00, 0xd0, // mov eax, 0xd0000000
    0x8b, 0x18, // mov ebx, [rax]
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x88, 0xd8, 0xee, // mov al, bl; out dx, al
    0x88, 0xf8, 0xee, // mov al, bh; out dx, al
    0x66, 0xba, 0x05, 0x05, // mov dx, 0x505
    0xb0, 0x01, 0xee, // mov al, 1; out dx, al
    0xeb, 0xfe, // jmp $
];

/// Says "h" (so that there was an exit), then halts for good.
pub const HALT: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'h', 0xee, // mov al, 'h'; out dx, al
    0xfa, 0xf4, // cli; hlt
    0xeb, 0xfc, // jmp to hlt
];

/// Asks the keyboard controller for a reset.
pub const RESET: &[u8] = &[
    0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
    0xeb, 0xfe, // jmp $
];

/// Points the IDT at nothing and faults.
pub const TRIPLE_FAULT: &[u8] = &[
    0x6a, 0x00, 0x6a, 0x00, // push 0; push 0: a limit and base of zero
    0x0f, 0x01, 0x1c, 0x24, // lidt [rsp]
    0x0f, 0x0b, // ud2
];

/// `popcnt rax, rbx`, which an interpreter of guest code does not know.
pub const POPCNT: &[u8] = &[0xf3, 0x48, 0x0f, 0xb8, 0xc3, 0xeb, 0xfe];

/// An ELF64 executable of one segment at 1 MiB.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 1 << 20;
    const HEADERS: u64 = 64 + 56;
    let len = u64::try_from(code.len()).expect("a small kernel");
    let mut image = Vec::new();
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let half = |image: &mut Vec<u8>, value: u16| image.extend(value.to_le_bytes());
    let word = |image: &mut Vec<u8>, value: u32| image.extend(value.to_le_bytes());
    let long = |image: &mut Vec<u8>, value: u64| image.extend(value.to_le_bytes());
    half(&mut image, 2); // ET_EXEC
    half(&mut image, 62); // EM_X86_64
    word(&mut image, 1);
    long(&mut image, BASE); // entry
    long(&mut image, 64); // program headers
    long(&mut image, 0);
    word(&mut image, 0);
    for value in [64, 56, 1, 0, 0, 0] {
        half(&mut image, value);
    }
    word(&mut image, 1); // PT_LOAD
    word(&mut image, 7); // rwx
    for value in [HEADERS, BASE, BASE, len, len.next_multiple_of(4096), 4096] {
        long(&mut image, value);
    }
    image.extend(code);
    image
}
