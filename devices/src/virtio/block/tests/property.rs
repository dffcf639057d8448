//! Whatever a guest writes: nothing panics, everything popped is answered or the device faults.

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::QueueT;

use super::*;
use crate::virtio::testing::{END, INDIRECT, NEXT, SEAM, WRITE};

/// Where headers, tables and data of random chains lie.
const ARENA: u64 = 0x1_0000;

/// An address that is mostly somewhere interesting.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..64u64).prop_map(|n| ARENA + n * 16),
        3 => 0x2_0000..0x4_0000u64,
        1 => (SEAM - 600)..SEAM,
        1 => (END - 600)..(END + 10),
        1 => any::<u64>(),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let len = prop_oneof![
        4 => Just(16u32),
        4 => Just(512),
        3 => Just(1),
        2 => (0..64u32).prop_map(|n| n * 16),
        1 => 0..2000u32,
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        4 => Just(NEXT),
        4 => Just(WRITE),
        3 => Just(NEXT | WRITE),
        2 => Just(INDIRECT),
        1 => Just(0),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![8 => 0..QUEUE_SIZE, 1 => any::<u16>()];
    (address(), len, flags, next).prop_map(|(address, len, flags, next)| Descriptor {
        address,
        len,
        flags,
        next,
    })
}

/// Sixteen bytes that may be a header, a segment or a descriptor.
fn cell() -> impl Strategy<Value = [u8; 16]> {
    let kind = prop_oneof![0..16u32, any::<u32>()];
    let sector = prop_oneof![0..140u64, any::<u64>()];
    prop_oneof![
        4 => (kind, sector.clone()).prop_map(|(kind, sector)| header(kind, sector)),
        2 => (sector, 0..140u32, 0..4u32).prop_map(|(at, n, flags)| segment(at, n, flags)),
        2 => descriptor().prop_map(|d| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&d.address.to_le_bytes());
            bytes[8..12].copy_from_slice(&d.len.to_le_bytes());
            bytes[12..14].copy_from_slice(&d.flags.to_le_bytes());
            bytes[14..].copy_from_slice(&d.next.to_le_bytes());
            bytes
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn random_rings(
        table in vec(descriptor(), usize::from(QUEUE_SIZE)),
        arena in vec(cell(), 64),
        heads in vec(prop_oneof![9 => 0..QUEUE_SIZE, 1 => any::<u16>()], 1..12),
        hold: bool,
        fail in prop::option::of(0..8usize),
    ) {
        let mut bench = Bench::new(info());
        let mut worker = bench.worker();
        bench.insides().hold = hold;
        bench.insides().fail = fail.map(|from| (from, libc::EIO));
        for (index, descriptor) in table.into_iter().enumerate() {
            bench.driver.set_descriptor(u16::try_from(index).unwrap(), descriptor);
        }
        for (index, bytes) in arena.into_iter().enumerate() {
            bench.driver.write(ARENA + 16 * u64::try_from(index).unwrap(), &bytes);
        }
        for head in heads {
            bench.driver.publish(head);
        }
        let kicked = bench.kick(worker.as_mut());
        bench.with_io(|io| worker.drain(io)).unwrap();
        let [queue] = &bench.queues;
        // The chain that caused a fault was taken and is not answered.
        let owed = u16::from(kicked.is_err());
        prop_assert!(queue.next_avail().wrapping_sub(queue.next_used()) <= owed);
    }
}

/// One request of a well-behaved driver.
#[derive(Debug, Clone)]
enum Step {
    Read { sector: u64, sectors: u64 },
    Write { sector: u64, sectors: u64, byte: u8 },
    Zero { sector: u64, sectors: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let place = (0..SECTORS).prop_flat_map(|sector| (Just(sector), 1..=(SECTORS - sector).min(9)));
    (place, 0..3, any::<u8>()).prop_map(|((sector, sectors), kind, byte)| match kind {
        0 => Step::Read { sector, sectors },
        1 => Step::Write {
            sector,
            sectors,
            byte,
        },
        _ => Step::Zero { sector, sectors },
    })
}

/// `bytes` cut into device-readable buffers at `cuts`.
fn cut(driver: &mut Driver, bytes: &[u8], cuts: &[usize]) -> Vec<Descriptor> {
    let mut places: Vec<usize> = cuts.iter().map(|at| 1 + at % bytes.len()).collect();
    places.push(bytes.len());
    places.sort_unstable();
    places.dedup();
    let mut from = 0;
    let mut chain = Vec::new();
    for to in places {
        chain.push(driver.readable(&bytes[from..to]));
        from = to;
    }
    chain
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_disk_is_an_array_of_sectors_however_requests_are_cut(
        steps in vec((step(), vec(any::<usize>(), 0..6), any::<bool>()), 1..20),
    ) {
        let mut bench = Bench::new(info());
        let mut worker = bench.worker();
        let mut model = bench.insides().bytes.clone();
        for (step, cuts, indirect) in steps {
            bench.driver.recycle();
            let driver = &mut bench.driver;
            let (readable, room, expected) = match step {
                Step::Read { sector, sectors } => {
                    let data = part(&mut model, sector * SECTOR, sectors * SECTOR).to_vec();
                    (header(IN, sector).to_vec(), data.len(), data)
                }
                Step::Write { sector, sectors, byte } => {
                    let data = part(&mut model, sector * SECTOR, sectors * SECTOR);
                    for (n, to) in data.iter_mut().enumerate() {
                        *to = byte.wrapping_add(u8::try_from(n % 251).unwrap());
                    }
                    ([&header(OUT, sector)[..], data].concat(), 0, Vec::new())
                }
                Step::Zero { sector, sectors } => {
                    part(&mut model, sector * SECTOR, sectors * SECTOR).fill(0);
                    let segment = segment(sector, u32::try_from(sectors).unwrap(), 0);
                    ([header(WRITE_ZEROES, 0), segment].concat(), 0, Vec::new())
                }
            };
            let mut chain = cut(driver, &readable, &cuts);
            // Device-writable: the data and the status, cut at the same places.
            let to = driver.alloc(u32::try_from(room + 1).unwrap());
            let cuts: Vec<_> = cuts.iter().map(|at| at % (room + 1)).filter(|at| *at > 0).collect();
            let mut ends = [cuts, vec![room + 1]].concat();
            ends.sort_unstable();
            ends.dedup();
            let mut from = 0;
            for end in ends {
                let address = to + u64::try_from(from).unwrap();
                chain.push(Descriptor::writable(address, u32::try_from(end - from).unwrap()));
                from = end;
            }
            let head = if indirect { driver.submit_indirect(&chain) } else { driver.submit(&chain) };
            bench.kick(worker.as_mut()).unwrap();

            let len = u32::try_from(room + 1).unwrap();
            prop_assert_eq!(bench.driver.take_used(), [(head, len)]);
            let written = bench.driver.read(to, len);
            prop_assert_eq!(&written[..room], &expected[..]);
            prop_assert_eq!(written[room], OK);
        }
        prop_assert_eq!(&bench.insides().bytes, &model);
    }
}
