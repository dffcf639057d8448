//! The registers of a 16550A that this side of the chip looks at itself (TI PC16550D data sheet,
//! section 8); everything else about them is vm-superio's.

/// Length of the register block in bytes.
pub(super) const LEN: u64 = 8;

/// Interrupt enable register (with DLAB clear).
pub(super) const IER: u8 = 1;
/// Line control register.
pub(super) const LCR: u8 = 3;
/// Modem control register.
pub(super) const MCR: u8 = 4;
/// Line status register.
pub(super) const LSR: u8 = 5;

/// IER: received data available.
pub(super) const IER_RDI: u8 = 1 << 0;
/// IER: all the interrupts there are.
pub(super) const IER_ALL: u8 = 0x0f;
/// LCR: divisor latch access bit; offsets 0 and 1 are the baud rate divisor.
pub(super) const LCR_DLAB: u8 = 1 << 7;
/// MCR: the transmitter is wired to the receiver, and the line is cut off.
pub(super) const MCR_LOOP: u8 = 1 << 4;
/// Depth of vm-superio's receive FIFO (64 rather than the chip's 16: fewer wake-ups for a paste).
pub(super) const FIFO: usize = 64;
