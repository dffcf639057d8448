//! The device against a fake driver: what is filled, how much of it, and what is refused.

use super::{QUEUE, QUEUE_SIZE, REQUEST_MAX, Rng};
use crate::io::QueueIo;
use crate::mem::GuestMemory;
use crate::virtio::testing::{Descriptor, Driver, SEAM, memory, worker};
use crate::virtio::{DeviceFault, Features, VirtioDevice, VirtioKind};

fn kick(memory: &GuestMemory, driver: &Driver) -> Result<(), DeviceFault> {
    let mut queues = [driver.queue()];
    let mut io = QueueIo::new(memory, &mut queues, Features::VERSION_1);
    worker(&mut Rng::default(), Features::VERSION_1).on_kick(QUEUE, &mut io)
}

/// Whether `bytes` look drawn at random: no value has a fifth of them.
fn is_noise(bytes: &[u8]) -> bool {
    let most = (0..=u8::MAX).map(|value| bytes.iter().filter(|byte| **byte == value).count());
    most.max().unwrap_or(0) < bytes.len() / 5
}

#[test]
fn a_buffer_is_filled_and_its_surroundings_are_not() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x1000, QUEUE_SIZE);
    let around = driver.alloc_with(&[0xee; 256]);
    driver.submit(&[Descriptor::writable(around + 64, 128)]);
    kick(&memory, &driver).unwrap();
    assert_eq!(driver.take_used(), [(0, 128)]);
    let bytes = driver.read(around, 256);
    assert_eq!(
        (&bytes[..64], &bytes[192..]),
        (&[0xee; 64][..], &[0xee; 64][..])
    );
    assert!(is_noise(&bytes[64..192]), "{bytes:x?}");
}

#[test]
fn every_buffer_of_a_chain_gets_bytes_of_its_own() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x1000, QUEUE_SIZE);
    // The last one straddles two regions of guest memory.
    let buffers = [
        driver.writable(200),
        driver.writable(300),
        Descriptor::writable(SEAM - 100, 200),
    ];
    driver.submit_indirect(&buffers);
    kick(&memory, &driver).unwrap();
    assert_eq!(driver.take_used(), [(0, 700)]);
    let filled = buffers.map(|buffer| driver.read(buffer.address, buffer.len));
    assert!(filled.iter().all(|bytes| is_noise(bytes)), "{filled:x?}");
    assert_ne!(filled[0][..200], filled[1][..200]);
    assert_ne!(filled[0][..200], filled[2][..200]);
}

#[test]
fn a_greedy_request_is_answered_in_part() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x1000, QUEUE_SIZE);
    let first = driver.writable(1000);
    // Guest memory may be named more than once in a chain: this one asks for 60 MiB of it.
    let rest = Descriptor::writable(0x20_0000, 1 << 20);
    let buffers: Vec<Descriptor> = [first].into_iter().chain([rest; 60]).collect();
    driver.submit_indirect(&buffers);
    kick(&memory, &driver).unwrap();
    let most = u32::try_from(REQUEST_MAX).unwrap();
    assert_eq!(driver.take_used(), [(0, most)]);
    assert!(is_noise(&driver.read(rest.address, most - 1000)));
    assert_eq!(
        driver.read(rest.address + u64::from(most) - 1000, 1 << 16),
        vec![0; 1 << 16],
        "no byte beyond what was announced"
    );
}

#[test]
fn a_full_queue_is_served_in_order() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x1000, QUEUE_SIZE);
    for _ in 0..QUEUE_SIZE {
        let buffer = driver.writable(64);
        driver.submit(&[buffer]);
    }
    kick(&memory, &driver).unwrap();
    let served: Vec<(u16, u32)> = (0..QUEUE_SIZE).map(|head| (head, 64)).collect();
    assert_eq!(driver.take_used(), served);
}

#[test]
fn a_request_that_is_none_is_a_fault() {
    for (buffers, reason) in [
        (vec![Descriptor::readable(0x8000, 16)], "device-readable"),
        (
            vec![
                Descriptor::readable(0x8000, 16),
                Descriptor::writable(0x9000, 16),
            ],
            "device-readable",
        ),
    ] {
        let memory = memory();
        let mut driver = Driver::new(&memory, 0x1000, QUEUE_SIZE);
        driver.submit(&buffers);
        let fault = kick(&memory, &driver).unwrap_err().to_string();
        assert!(fault.contains(reason), "{fault}");
        assert_eq!(driver.take_used(), []);
    }
}

#[test]
fn the_face_has_one_queue_and_no_configuration() {
    let device = Rng::default();
    assert_eq!(device.kind(), VirtioKind::Entropy);
    assert_eq!(device.queue_sizes(), [QUEUE_SIZE]);
    let mut data = [0; 8];
    device.read_config(0, &mut data);
    assert_eq!(data, [0; 8]);
}
