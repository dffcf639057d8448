//! Facts of the instruction set: kernel images, boot protocol, CPUID, registers, ACPI. Pure functions.
//!
//! Nothing here talks to KVM or to the host: bytes of files, guest memory and kvm-bindings types go in,
//! guest memory and kvm-bindings types come out, so that every line of it is tested without `/dev/kvm`.
//!
//! The way of a boot, in the order in which a VMM calls it:
//!
//! 1. [`x86_64::memory::ram_regions`] says where RAM of a given size lies; the VMM maps it.
//! 2. [`kernel::check`] tells the kernel's kind and whether it, the initrd and the command line fit, and
//!    [`kernel::Checked::load`] puts them in place.
//! 3. [`x86_64::boot::configure`] writes what the boot protocol hands over: zero page or PVH start
//!    info, GDT, page tables, and the ACPI tables made from a [`board::Board`].
//! 4. [`x86_64::cpuid`], [`x86_64::msr`] and [`x86_64::regs`] give each vCPU its first state.

#![forbid(unsafe_code)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("mvm runs x86-64 guests on x86-64 hosts only");

pub mod board;
pub mod kernel;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;
