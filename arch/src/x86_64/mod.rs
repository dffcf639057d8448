//! x86-64: address map, boot protocols, ACPI, and the first state of a vCPU.

pub mod acpi;
pub mod boot;
pub mod cpuid;
mod gdt;
pub mod layout;
pub mod memory;
pub mod msr;
mod paging;
mod pvh;
pub mod regs;
mod zero_page;
