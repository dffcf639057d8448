//! A serial port: a 16550A UART (TI PC16550D data sheet) as the guest's console.
//!
//! The registers are vm-superio's `Serial`; [`SerialPort`] puts it on a bus, in between a guest and two
//! host ends. What the guest sends goes to a plain writer, which decides how long a vCPU may wait. What
//! the guest receives comes from a subscriber of the I/O loop that feeds the port's [`Receiver`].
//!
//! ```text
//! vCPU threads                                                     I/O thread
//!   THR write ──► chip ──► writer                                    descriptor readable
//!   RBR read  ◄── FIFO ◄──────────────── receive() ◄── backlog ◄── filter ◄┘
//!                  └─ empty, or the gate opens ──► room (EventFd) ──► deliver again
//! ```

mod gate;
mod regs;

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::gate::{Access, Gate};
use crate::bus::BusDevice;
use crate::console::Receiver;
use crate::irq::IrqLine;

/// Length of the register block in bytes.
pub const LEN: u64 = regs::LEN;

/// The chip's interrupt output.
struct IrqOutput(Arc<dyn IrqLine>);

impl Trigger for IrqOutput {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// The chip and what is known of its receiver.
struct Chip {
    /// Sends into a buffer that never holds more than the byte just written, so that the host's end is
    /// written to after the lock is gone: a console that makes a vCPU wait must not make the I/O thread
    /// wait, which other devices may share.
    uart: Serial<IrqOutput, NoEvents, Vec<u8>>,
    gate: Gate,
    /// Somebody was turned away by `receive` and waits for the room event.
    input_waits: bool,
}

impl Chip {
    fn read(&mut self, register: u8) -> u8 {
        let access = match register {
            regs::IER if !self.dlab() => Access::ReadIer,
            regs::LSR => Access::ReadLsr,
            _ => Access::Other,
        };
        let value = self.uart.read(register);
        self.gate.note(access);
        value
    }

    /// Returns the byte that goes out on the line, if one does.
    fn write(&mut self, register: u8, value: u8) -> Option<u8> {
        let access = match register {
            regs::IER if !self.dlab() => Access::WriteIer(value),
            _ => Access::Other,
        };
        if let Err(error) = self.uart.write(register, value) {
            log::debug!("serial port: interrupt lost: {error}");
        }
        self.gate.note(access);
        self.uart.writer_mut().pop()
    }

    fn dlab(&mut self) -> bool {
        self.uart.read(regs::LCR) & regs::LCR_DLAB != 0
    }

    /// Whether the line is connected to the receiver and the guest looks at it.
    fn listens(&mut self) -> bool {
        self.gate.is_open() && self.uart.read(regs::MCR) & regs::MCR_LOOP == 0
    }

    fn receive(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        if self.listens() && !bytes.is_empty() {
            let room = self.uart.fifo_capacity();
            // A full FIFO is seen by the count; an interrupt that got lost leaves the bytes in it.
            if let Err(vm_superio::serial::Error::Trigger(error)) =
                self.uart.enqueue_raw_bytes(bytes)
            {
                log::debug!("serial port: interrupt lost: {error}");
            }
            taken = room - self.uart.fifo_capacity();
        }
        self.input_waits = taken < bytes.len();
        taken
    }

    /// Whether somebody waits and would now be served. Asked after every access, because not only a
    /// drained FIFO ends the wait (vm-superio's `in_buffer_empty`) but also an opened gate and the end
    /// of loopback. Waiting for the FIFO to be empty, rather than to have room, saves wake-ups.
    fn end_of_wait(&mut self) -> bool {
        let ends = self.input_waits && self.uart.fifo_capacity() == regs::FIFO && self.listens();
        self.input_waits &= !ends;
        ends
    }
}

/// The port on a bus. Only byte accesses are defined: wider reads give ones, wider writes are ignored.
pub struct SerialPort {
    /// Two owners: the vCPU threads access registers, the I/O thread fills the FIFO. Never held while
    /// output waits.
    chip: Mutex<Chip>,
    /// Shared between the vCPU threads, in the order of their writes.
    output: Mutex<Box<dyn Write + Send>>,
    room: EventFd,
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

impl SerialPort {
    /// A port that interrupts on `line` and sends to `output`.
    ///
    /// A vCPU waits in `output`'s `write_all`, so that must return within a bounded time; its errors are
    /// the writer's own business and are ignored here.
    ///
    /// # Errors
    /// Fails if the host gives no EventFd.
    pub fn new(line: Arc<dyn IrqLine>, output: Box<dyn Write + Send>) -> io::Result<Self> {
        Ok(Self {
            chip: Mutex::new(Chip {
                uart: Serial::new(IrqOutput(line), Vec::new()),
                gate: Gate::default(),
                input_waits: false,
            }),
            output: Mutex::new(output),
            room: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    fn chip(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal_room(&self) {
        // It can fail only by its counter being saturated, when it is readable anyway.
        let _ = self.room.write(1);
    }
}

/// Takes nothing while the guest's receiver is not in use: a driver that starts throws away what it finds
/// there.
impl Receiver for SerialPort {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.chip().receive(bytes)
    }

    fn room(&self) -> &EventFd {
        &self.room
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let ([byte], Some(register)) = (data, register(offset)) else {
            return;
        };
        let mut chip = self.chip();
        *byte = chip.read(register);
        let room = chip.end_of_wait();
        drop(chip);
        if room {
            self.signal_room();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (&[value], Some(register)) = (data, register(offset)) else {
            return;
        };
        let mut chip = self.chip();
        let sent = chip.write(register, value);
        let room = chip.end_of_wait();
        drop(chip);
        if room {
            self.signal_room();
        }
        if let Some(byte) = sent {
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            // The writer reports its own troubles; the guest's UART has no way to show them.
            let _ = output.write_all(&[byte]);
        }
    }
}

fn register(offset: u64) -> Option<u8> {
    u8::try_from(offset).ok().filter(|_| offset < LEN)
}

#[cfg(test)]
mod tests;
