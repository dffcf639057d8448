//! The port against a guest that accesses its registers as it likes.

use std::io::{self, Write};
use std::iter;

use proptest::prelude::*;

use super::super::testing::FakeLine;
use super::*;

mod input;

const DATA: u64 = 0;
const IER: u64 = 1;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;

/// LSR: data ready.
const DR: u8 = 1;

#[derive(Debug, Default, Clone)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A guest's view of the port.
#[derive(Clone)]
struct Guest {
    port: Arc<SerialPort>,
    line: Arc<FakeLine>,
    output: Output,
}

impl Guest {
    fn new() -> Self {
        let (line, output) = (Arc::new(FakeLine::default()), Output::default());
        let port = Arc::new(SerialPort::new(line.clone(), Box::new(output.clone())).unwrap());
        Self { port, line, output }
    }

    fn inb(&self, offset: u64) -> u8 {
        let mut data = [0xff];
        self.port.read(offset, &mut data);
        data[0]
    }

    fn outb(&self, offset: u64, value: u8) {
        self.port.write(offset, &[value]);
    }

    /// What is in the receiver.
    fn drain(&self) -> Vec<u8> {
        iter::from_fn(|| (self.inb(LSR) & DR != 0).then(|| self.inb(DATA))).collect()
    }

    /// What Linux' 8250 driver does from finding the chip to having it in use.
    fn start_linux(&self) {
        let scratch = self.inb(IER);
        self.outb(IER, 0);
        self.inb(IER);
        self.outb(IER, 0x0f);
        self.inb(IER);
        self.outb(IER, scratch);
        self.inb(LCR);
        self.outb(LCR, 0xbf);
        self.outb(LCR, 0);
        self.outb(FCR, 1);
        // The probe and the startup both discard what they find.
        for _ in 0..2 {
            self.outb(FCR, 7);
            self.outb(FCR, 0);
            for offset in [LSR, DATA, 2, MSR] {
                self.inb(offset);
            }
            self.outb(LCR, 3);
            self.outb(IER, 2);
            self.inb(LSR);
            self.inb(2);
            self.outb(IER, 0);
        }
        assert_eq!(self.inb(LSR) & DR, 0, "nothing was there to be lost");
        self.outb(LCR, 0x83);
        self.outb(DATA, 1);
        self.outb(1, 0);
        self.outb(LCR, 3);
        self.outb(IER, 5);
    }
}

#[test]
fn output_goes_out_and_interrupts() {
    let guest = Guest::new();
    for byte in b"hello\n" {
        guest.outb(DATA, *byte);
    }
    assert_eq!(*guest.output.0.lock().unwrap(), b"hello\n");
    assert_eq!(guest.line.take(), 0);
    guest.outb(IER, 2);
    assert_eq!(guest.line.take(), 1, "the transmitter is empty");
    // The divisor is not data.
    guest.outb(LCR, 0x80);
    guest.outb(DATA, b'x');
    guest.outb(LCR, 3);
    // Nor does looped-back data leave the chip.
    guest.outb(MCR, 0x10);
    guest.outb(DATA, b'y');
    assert_eq!(*guest.output.0.lock().unwrap(), b"hello\n");
    assert_eq!(guest.drain(), b"y");
}

#[test]
fn odd_accesses_do_nothing() {
    let guest = Guest::new();
    for len in [0, 2, 4, 8] {
        for offset in 0..LEN {
            let mut data = vec![0xff; len];
            guest.port.read(offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0xff));
            guest.port.write(offset, &data);
        }
    }
    for offset in [LEN, 0x100, u64::MAX] {
        assert_eq!(guest.inb(offset), 0xff);
        guest.outb(offset, b'x');
    }
    assert!(guest.output.0.lock().unwrap().is_empty());
    assert_eq!(guest.inb(LCR), 3, "no register has changed");
}

proptest! {
    /// Whatever a guest does, the port answers, and keeps no more than its FIFO.
    #[test]
    fn any_accesses_are_survived(
        steps in prop::collection::vec((0..3, 0..LEN + 2, any::<u8>(), 0..5_usize), 0..400),
    ) {
        let guest = Guest::new();
        for (kind, offset, value, len) in steps {
            match kind {
                0 => guest.port.read(offset, &mut vec![0xff; len]),
                1 => guest.port.write(offset, &vec![value; len]),
                _ => prop_assert!(guest.port.receive(&[value; 100]) <= regs::FIFO),
            }
        }
        guest.outb(MCR, 0);
        guest.outb(LCR, 3);
        let held = guest.drain().len();
        prop_assert!(held <= regs::FIFO);
    }
}
