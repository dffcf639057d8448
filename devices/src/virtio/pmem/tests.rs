//! The device against a fake driver: where it says it is, what is mapped, and how flushes are answered.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::{ALIGNMENT, Pmem, PmemError, QUEUE, QUEUE_SIZE, Window};
use crate::io::QueueIo;
use crate::mem::GuestMemory;
use crate::virtio::testing::{Descriptor, Driver, SEAM, memory, worker};
use crate::virtio::{DeviceFault, Features, VirtioDevice};

const START: u64 = 1 << 40;

fn file(len: u64) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"first").unwrap();
    file.set_len(len).unwrap();
    (directory, path)
}

fn device(len: u64, read_only: bool) -> Pmem {
    let (_directory, path) = file(len);
    Pmem::open(&path, read_only, START).unwrap()
}

/// The mapped bytes from `offset` on.
fn peek<const N: usize>(window: &Window, offset: u64) -> [u8; N] {
    assert!(offset + N as u64 <= window.len());
    let address = std::ptr::with_exposed_provenance::<[u8; N]>(
        usize::try_from(window.host_address() + offset).unwrap(),
    );
    // SAFETY: inside the mapping, which nobody writes meanwhile.
    unsafe { address.read_unaligned() }
}

/// Kicks, and waits for whatever comes of it.
fn serve(memory: &GuestMemory, driver: &Driver, device: &mut Pmem) -> Result<(), DeviceFault> {
    let mut queues = [driver.queue()];
    let mut io = QueueIo::new(memory, &mut queues, Features::VERSION_1);
    let mut worker = worker(device, Features::VERSION_1);
    worker.on_kick(QUEUE, &mut io)?;
    worker.drain(&mut io)
}

#[test]
fn the_window_is_where_the_configuration_says() {
    let device = device(3 * ALIGNMENT, false);
    let mut config = [0; 24];
    device.read_config(0, &mut config);
    let word = |at: usize| u64::from_le_bytes(config[at..at + 8].try_into().unwrap());
    assert_eq!((word(0), word(8), word(16)), (START, 3 * ALIGNMENT, 0));
    let mut end = [0xee; 4];
    device.read_config(14, &mut end);
    assert_eq!(end, [0, 0, 0xee, 0xee]);
    assert!(device.window().host_address().is_multiple_of(ALIGNMENT));
}

#[test]
fn a_file_is_mapped_shared_and_its_end_is_filled_up() {
    let (_directory, path) = file(ALIGNMENT + 512);
    let device = Pmem::open(&path, true, START).unwrap();
    let window = device.window();
    assert_eq!((window.len(), window.is_read_only()), (2 * ALIGNMENT, true));
    assert_eq!(&peek::<5>(&window, 0), b"first");
    assert_eq!(peek::<8>(&window, window.len() - 8), [0; 8]);
    let mut writer = File::options().write(true).open(&path).unwrap();
    writer.write_all(b"again").unwrap();
    assert_eq!(&peek::<5>(&window, 0), b"again");
    // Another VM may have it too, to read.
    drop(Pmem::open(&path, true, START).unwrap());
    assert!(!window.is_cut_short());
    writer.set_len(ALIGNMENT).unwrap();
    assert!(window.is_cut_short());
}

#[test]
fn what_would_lose_or_share_writes_is_refused() {
    let (_directory, path) = file(ALIGNMENT + 512);
    let refused = Pmem::open(&path, false, START).unwrap_err();
    assert!(matches!(refused, PmemError::PartialPage { .. }));
    let message = refused.to_string();
    assert!(message.contains("truncate -s %2M"), "{message}");
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(ALIGNMENT)
        .unwrap();
    let _writer = Pmem::open(&path, false, START).unwrap();
    for read_only in [false, true] {
        let refused = Pmem::open(&path, read_only, START).unwrap_err();
        assert!(refused.to_string().contains("in use"), "{refused}");
    }
    let missing = Pmem::open(&path.join("none"), true, START).unwrap_err();
    assert!(!missing.to_string().contains('\n'));
}

#[test]
fn room_is_kept_for_what_may_be_written() {
    let (_directory, path) = file(4 * ALIGNMENT);
    let allocated = || fs::metadata(&path).unwrap().blocks() * 512;
    let reader = Pmem::open(&path, true, START).unwrap();
    reader.window().begin().unwrap();
    assert!(allocated() < ALIGNMENT);
    drop(reader);
    Pmem::open(&path, false, START)
        .unwrap()
        .window()
        .begin()
        .unwrap();
    assert!(allocated() >= 4 * ALIGNMENT);
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 * ALIGNMENT);

    // More than a host of tests has: refused before anything is taken.
    let (_directory, path) = file(1 << 40);
    let refused = Pmem::open(&path, false, START).unwrap().window().begin();
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("make room"), "{message}");
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < ALIGNMENT);
}

#[test]
fn flushes_are_answered_however_their_buffers_are_cut() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x1000, QUEUE_SIZE);
    let kind = driver.alloc_with(&[0; 4]);
    let room = driver.alloc_with(&[0xee; 8]);
    driver.submit(&[Descriptor::readable(kind, 4), Descriptor::writable(room, 4)]);
    let bytes = |address, write: bool| {
        (0..4).map(move |at| match write {
            true => Descriptor::writable(address + at, 1),
            false => Descriptor::readable(address + at, 1),
        })
    };
    // The second answer straddles two regions of guest memory.
    driver.write(SEAM - 2, &[0xee; 8]);
    let cut: Vec<_> = bytes(kind, false).chain(bytes(SEAM - 2, true)).collect();
    driver.submit(&cut);
    serve(&memory, &driver, &mut device(ALIGNMENT, false)).unwrap();
    let mut used = driver.take_used();
    used.sort_unstable();
    assert_eq!(used.iter().map(|used| used.1).collect::<Vec<_>>(), [4, 4]);
    assert_eq!(driver.read(room, 8), [0, 0, 0, 0, 0xee, 0xee, 0xee, 0xee]);
    assert_eq!(driver.read(SEAM - 2, 6), [0, 0, 0, 0, 0xee, 0xee]);
}

#[test]
fn a_full_queue_is_served() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x1000, 2 * QUEUE_SIZE);
    let kind = driver.readable(&[0; 4]);
    for _ in 0..QUEUE_SIZE {
        let room = driver.writable(4);
        driver.submit(&[kind, room]);
    }
    serve(&memory, &driver, &mut device(ALIGNMENT, true)).unwrap();
    assert_eq!(driver.take_used().len(), usize::from(QUEUE_SIZE));
}

#[test]
fn an_unknown_request_fails_and_a_malformed_one_faults() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x1000, QUEUE_SIZE);
    let kind = driver.readable(&[1, 0, 0, 0]);
    let room = driver.writable(4);
    driver.submit(&[kind, room]);
    serve(&memory, &driver, &mut device(ALIGNMENT, false)).unwrap();
    assert_eq!(driver.take_used(), [(0, 4)]);
    assert_eq!(driver.read(room.address, 4), [0xff; 4]);
    for (readable, writable) in [(4, 3), (3, 4), (4, 0), (0, 4)] {
        let memory = crate::virtio::testing::memory();
        let mut driver = Driver::new(&memory, 0x1000, QUEUE_SIZE);
        let parts = [
            Descriptor::readable(0x8000, readable),
            Descriptor::writable(0x9000, writable),
        ];
        let parts: Vec<_> = parts.into_iter().filter(|part| part.len > 0).collect();
        driver.submit(&parts);
        let fault = serve(&memory, &driver, &mut device(ALIGNMENT, false)).unwrap_err();
        assert!(matches!(fault, DeviceFault::Request { .. }), "{fault}");
    }
}
