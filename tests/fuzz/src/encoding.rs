//! Bytes to steps of a guest, and back.
//!
//! Any bytes are steps: unknown tags are taken modulo their number, addresses fall into memory, an operand cut off
//! ends it. So a fuzzer wastes nothing, and a tape of a known attack is a seed. One step is one of
//!
//! | tag | operands | step |
//! |---|---|---|
//! | 0 | address: 3, length: 1, bytes | the guest writes its memory |
//! | 1 | offset: 2, length: 1, bytes | the guest writes its memory above 4 GiB |
//! | 2 | address: 3, length: 2, byte | the guest fills its memory |
//! | 3 | offset / 4: 1, value: 4 | a register is written |
//! | 4 | offset: 2, width: 1, bytes | any write to the device's page |
//! | 5 | offset: 2, width: 1 | any read of it |
//! | 6 | queue: 1 | a doorbell |
//! | 7 | what: 1 | the host side does something |
//! | 8 | | the I/O thread gets its turn |
//! | 9 | | the whole initialization |
//!
//! with numbers little-endian. The width is an exponent: 1, 2, 4 or 8 bytes.

use devices::virtio::hostile::attack::{HIGH, HIGH_END};
use devices::virtio::testing::{END, Step};

const TAGS: u8 = 10;
/// The device's page.
const PAGE: u16 = 0x1000;
/// Steps of one input; more would only be slower.
const MAX_STEPS: usize = 2000;

/// The steps that `data` stands for.
#[must_use]
pub fn decode(data: &[u8]) -> Vec<Step> {
    let mut rest = data;
    let mut steps = Vec::new();
    while steps.len() < MAX_STEPS
        && let Some(step) = step(&mut rest)
    {
        steps.push(step);
    }
    steps
}

fn step(rest: &mut &[u8]) -> Option<Step> {
    let [tag] = take(rest)?;
    Some(match tag % TAGS {
        0 => Step::Memory {
            address: low(rest)?,
            bytes: run(rest)?,
        },
        1 => Step::Memory {
            address: HIGH + u64::from(u16::from_le_bytes(take(rest)?)) % (HIGH_END - HIGH),
            bytes: run(rest)?,
        },
        2 => {
            let address = low(rest)?;
            let len = u16::from_le_bytes(take(rest)?);
            let [byte] = take(rest)?;
            let bytes = vec![byte; len.into()];
            Step::Memory { address, bytes }
        }
        3 => {
            let [register] = take(rest)?;
            let value: [u8; 4] = take(rest)?;
            Step::Write {
                offset: 4 * u16::from(register),
                data: value.to_vec(),
            }
        }
        4 => {
            let (offset, width) = place(rest)?;
            let data = split(rest, width.into())?.to_vec();
            Step::Write { offset, data }
        }
        5 => {
            let (offset, len) = place(rest)?;
            Step::Read { offset, len }
        }
        6 => Step::Kick(take::<1>(rest)?[0]),
        7 => Step::Poke(take::<1>(rest)?[0]),
        8 => Step::Turn,
        _ => Step::Start,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn split<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

fn low(rest: &mut &[u8]) -> Option<u64> {
    let [a, b, c] = take(rest)?;
    Some(u64::from(u32::from_le_bytes([a, b, c, 0])) % END)
}

fn run(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let [len] = take(rest)?;
    split(rest, len.into()).map(<[u8]>::to_vec)
}

/// An offset and a width, within the device's page as the bus sees to it.
fn place(rest: &mut &[u8]) -> Option<(u16, u8)> {
    let offset = u16::from_le_bytes(take(rest)?) % PAGE;
    let [exponent] = take(rest)?;
    let width = 1u8 << (exponent % 4);
    Some((offset.min(PAGE - u16::from(width)), width))
}

/// Bytes that stand for `steps`.
#[must_use]
pub fn encode(steps: &[Step]) -> Vec<u8> {
    let mut out = Vec::new();
    for step in steps {
        match step {
            Step::Memory { address, bytes } => memory(*address, bytes, &mut out),
            Step::Write { offset, data } => write(*offset, data, &mut out),
            Step::Read { offset, len } => {
                out.push(5);
                out.extend(offset.to_le_bytes());
                out.push(exponent(usize::from(*len)));
            }
            Step::Kick(queue) => out.extend([6, *queue]),
            Step::Poke(what) => out.extend([7, *what]),
            Step::Turn => out.push(8),
            Step::Start => out.push(9),
        }
    }
    out
}

fn memory(address: u64, bytes: &[u8], out: &mut Vec<u8>) {
    if let Some(offset) = address.checked_sub(HIGH) {
        let at = u16::try_from(offset).unwrap_or(u16::MAX);
        return chunks(bytes, u64::from(at), out, |at, out| {
            out.push(1);
            out.extend(at.to_le_bytes().into_iter().take(2));
        });
    }
    let three = |at: u64, out: &mut Vec<u8>| out.extend(at.to_le_bytes().into_iter().take(3));
    let same = bytes
        .first()
        .filter(|first| bytes.iter().all(|byte| byte == *first));
    match (same, u16::try_from(bytes.len())) {
        (Some(byte), Ok(len)) if len > 4 => {
            out.push(2);
            three(address, out);
            out.extend(len.to_le_bytes());
            out.push(*byte);
        }
        _ => chunks(bytes, address, out, |at, out| {
            out.push(0);
            three(at, out);
        }),
    }
}

/// Writes of at most 255 bytes each.
fn chunks(bytes: &[u8], start: u64, out: &mut Vec<u8>, head: impl Fn(u64, &mut Vec<u8>)) {
    const LONGEST: usize = 255;
    for (chunk, at) in bytes.chunks(LONGEST).zip((start..).step_by(LONGEST)) {
        head(at, out);
        out.push(u8::try_from(chunk.len()).unwrap_or(0));
        out.extend(chunk);
    }
}

fn write(offset: u16, data: &[u8], out: &mut Vec<u8>) {
    match (u8::try_from(offset / 4), data.len()) {
        (Ok(register), 4) if offset.is_multiple_of(4) => out.extend([3, register]),
        (_, len) => {
            out.push(4);
            out.extend(offset.to_le_bytes());
            out.push(exponent(len));
        }
    }
    out.extend(data);
}

fn exponent(len: usize) -> u8 {
    match len {
        0 | 1 => 0,
        2 => 1,
        3 | 4 => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_survive_the_way_there_and_back() {
        let steps = [
            Step::Start,
            Step::Memory {
                address: 0x1_2345,
                bytes: vec![1, 2, 3],
            },
            Step::Memory {
                address: HIGH + 0x8000,
                bytes: vec![7; 255],
            },
            Step::Memory {
                address: END - 0x1000,
                bytes: vec![9; 0x1000],
            },
            Step::Write {
                offset: 0x70,
                data: vec![15, 0, 0, 0],
            },
            Step::Write {
                offset: 0xffc,
                data: vec![1, 2, 3, 4],
            },
            Step::Write {
                offset: 0x101,
                data: vec![1, 2],
            },
            Step::Read {
                offset: 0xff8,
                len: 8,
            },
            Step::Kick(3),
            Step::Poke(200),
            Step::Turn,
        ];
        assert_eq!(decode(&encode(&steps)), steps);
    }

    #[test]
    fn anything_is_steps() {
        for byte in 0..=255 {
            for len in 0..40 {
                let _ = decode(&vec![byte; len]);
            }
        }
        assert_eq!(decode(&[8; 10_000]).len(), MAX_STEPS);
    }
}
