//! Facts of the instruction set: kernel images, boot protocol, CPUID, registers, ACPI. Pure functions.
