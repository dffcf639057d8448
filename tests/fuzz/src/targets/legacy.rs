//! The legacy chips: any accesses of any width, with input arriving at the serial port in between.

use std::io;
use std::sync::Arc;

use devices::bus::Bus;
use devices::console::InputQueue;
use devices::irq::IrqLine;
use devices::legacy::i8042::{self, I8042};
use devices::legacy::power::{self, PowerBlock};
use devices::legacy::pvpanic::{self, PvPanic};
use devices::legacy::serial::{self, SerialPort};
use devices::legacy::{MachineEvent, MachineEvents};

use crate::target::Target;

/// The target. Each three bytes of its input are an access: what and how wide, where, and the value.
#[derive(Debug)]
pub struct Legacy;

/// COM1.
const SERIAL: u64 = 0x3f8;
/// Wherever there is room.
const POWER: u64 = 0x600;
/// Bases of the chips, and one behind which nothing is.
const BASES: [u64; 5] = [SERIAL, i8042::BASE, POWER, pvpanic::PORT, 0x7000];

#[derive(Debug)]
struct Deaf;

impl MachineEvents for Deaf {
    fn notify(&self, _event: MachineEvent) {}
}

impl IrqLine for Deaf {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

fn machine() -> (Bus, InputQueue) {
    let port = SerialPort::new(Arc::new(Deaf), Box::new(io::sink()));
    let port = Arc::new(port.expect("cannot make a serial port"));
    let mut bus = Bus::new();
    let mut insert = |base, len, device| bus.insert(base, len, device).expect("ports overlap");
    insert(SERIAL, serial::LEN, port.clone());
    insert(
        i8042::BASE,
        i8042::LEN,
        Arc::new(I8042::new(Arc::new(Deaf))),
    );
    insert(POWER, power::LEN, Arc::new(PowerBlock::new(Arc::new(Deaf))));
    insert(
        pvpanic::PORT,
        pvpanic::LEN,
        Arc::new(PvPanic::new(Arc::new(Deaf))),
    );
    (bus, InputQueue::new(port, None))
}

impl Target for Legacy {
    fn name(&self) -> &str {
        "legacy"
    }

    fn about(&self) -> String {
        "the serial port and the other legacy chips".to_owned()
    }

    fn run(&self, data: &[u8]) {
        let (bus, mut input) = machine();
        for &[what, at, value] in data.as_chunks().0 {
            let width = 1 << (what >> 2 & 3);
            let address = BASES[usize::from(at >> 3) % BASES.len()] + u64::from(at & 7);
            match what & 3 {
                0 | 1 => drop(bus.write(address, &[value; 8][..width])),
                2 => drop(bus.read(address, &mut [0; 8][..width])),
                _ => input.push(&vec![value; usize::from(at)]),
            }
        }
        // Whatever was done, the chip is still one: its scratch register holds a byte.
        bus.write(SERIAL + 7, &[0x5a]);
        let mut scratch = [0];
        bus.read(SERIAL + 7, &mut scratch);
        assert_eq!(scratch, [0x5a]);
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        // What a driver does: enable interrupts and FIFOs, send, receive, loop back; sleep; reset.
        let (write, read, input) = (0, 2, 3);
        vec![
            vec![
                write, 1, 0x0f, write, 2, 7, write, 4, 0x0b, write, 0, b'a', read, 2, 0, read, 5, 0,
            ],
            vec![
                write, 1, 1, input, 200, b'x', read, 5, 0, read, 0, 0, read, 0, 0, input, 9, 3,
            ],
            vec![
                write, 4, 0x1e, write, 0, 1, write, 0, 2, read, 0, 0, write, 3, 0x80, write, 0, 1,
            ],
            vec![
                write, 16, 0x34, write, 17, 0x80, write, 18, 1, write, 12, 0xfe, write, 24, 1,
            ],
            vec![read | 4, 0, 0, write | 8, 3, 0xff, read | 12, 32, 0],
        ]
    }
}
