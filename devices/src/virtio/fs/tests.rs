//! The device against a guest's kernel that plays by the rules, and one that does not.

mod client;
mod limits;
mod no_way_out;
mod read_only;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use self::client::{Client, at};
use super::testing::{Body, OUT_HEADER, ROOT, UNIQUE, message, op};
use super::{MAX_TAG, Share, ShareOptions};
use crate::virtio::testing::Descriptor;
use crate::virtio::{VirtioDevice, VirtioKind};

const WRITABLE: ShareOptions = ShareOptions {
    read_only: false,
    max_files: 1000,
};

#[test]
fn the_face_has_a_tag_and_a_number_of_queues() {
    let directory = tempfile::tempdir().unwrap();
    let device = Share::open(directory.path(), "src", WRITABLE).unwrap();
    assert_eq!(device.kind(), VirtioKind::FileSystem);
    assert_eq!(device.queue_sizes().len(), 2);
    assert!(device.blocks());
    let mut data = [0xff; MAX_TAG + 4];
    device.read_config(0, &mut data);
    assert_eq!(data[..5], *b"src\0\0");
    assert_eq!(data[MAX_TAG..], [1, 0, 0, 0]);
    let mut data = [0; 8];
    device.read_config(MAX_TAG as u64, &mut data);
    assert_eq!(data, [1, 0, 0, 0, 0, 0, 0, 0]);
    device.read_config(u64::MAX, &mut data);
}

#[test]
fn what_is_no_directory_cannot_be_shared() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file, directory.path().join("missing")] {
        assert!(Share::open(&path, "src", WRITABLE).is_err());
    }
}

#[test]
fn files_are_made_written_read_and_listed() {
    let mut client = Client::new(WRITABLE);
    let made = client.create("new", libc::O_WRONLY, 0o666).unwrap();
    let wrote = client.call(op::WRITE, made.node, &Body::write(made.handle, 3, b"guest"));
    assert_eq!(at::<4>(&wrote.unwrap(), 0), 5u32.to_le_bytes());
    let release = Body::longs([made.handle, 0, 0]);
    client.call(op::RELEASE, made.node, &release).unwrap();
    assert_eq!(fs::read(client.path("new")).unwrap(), b"\0\0\0guest");

    fs::write(client.path("host"), "from the host").unwrap();
    let node = client.lookup(ROOT, "host").unwrap();
    let handle = client.open(node, libc::O_RDONLY).unwrap();
    let read = client.call(op::READ, node, &Body::read(handle, 5, 100));
    assert_eq!(read.unwrap(), b"the host");
    assert_eq!(client.names(), ["host", "new"]);
    client.call(op::UNLINK, ROOT, &Body::name("new")).unwrap();
    assert_eq!(client.names(), ["host"]);
    assert_eq!(client.lookup(ROOT, "new"), Err(libc::ENOENT));
}

#[test]
fn a_file_has_the_mode_and_the_owner_that_it_is_given() {
    let before = mask_of_process();
    let mut client = Client::new(WRITABLE);
    client.create("new", libc::O_RDWR, 0o666).unwrap();
    let made = fs::metadata(client.path("new")).unwrap();
    assert_eq!(
        made.permissions().mode() & 0o777,
        0o666,
        "whatever mvm's umask"
    );
    let own = rustix::process::geteuid();
    let expected = if own.is_root() { 1000 } else { own.as_raw() };
    assert_eq!(made.uid(), expected, "only root can give files away");
    assert_eq!(mask_of_process(), before, "the mask is the thread's alone");
}

/// The file mode creation mask of the first thread.
fn mask_of_process() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("Umask:"));
    line.unwrap().to_owned()
}

#[test]
fn only_what_there_is_is_offered() {
    let mut client = Client::new(WRITABLE);
    let answer = client.call(op::INIT, ROOT, &Body::init(u64::MAX)).unwrap();
    let word = |offset| u64::from(u32::from_le_bytes(at::<4>(&answer, offset)));
    let flags = word(12) | word(32) << 32;
    // Readdirplus, large requests, O_TRUNC in open, data that is thrown away when the file has changed.
    assert_eq!(
        flags,
        0x1 | 0x8 | 0x20 | 0x1000 | 0x6000 | 0x8000 | 0x4_0000 | 0x40_0000
    );
    assert_eq!(word(20), 1 << 20, "max_write");
    for opcode in [op::SETUPMAPPING, op::REMOVEMAPPING] {
        let refused = client.call(opcode, ROOT, &Body::longs([1, 0, 4096, 3, 0]));
        assert_eq!(refused, Err(libc::ENOSYS), "there is no DAX window");
    }
}

#[test]
fn a_message_that_is_none_is_answered_where_it_can_be() {
    let mut client = Client::new(WRITABLE);
    let whole = message(op::LOOKUP, ROOT, &Body::name("x"));
    for (bytes, room, answer) in [
        // Not even a header, and so no number to answer with.
        (&whole[..20], 100, Vec::new()),
        // No room for an answer.
        (&whole[..], 8, Vec::new()),
        // A name without its end.
        (&whole[..whole.len() - 1], 100, refused(libc::EIO)),
        // Kinds of messages that there are not, of which 0 looks as if it were one.
        (
            &message(0, ROOT, &Body::default())[..],
            100,
            refused(libc::ENOSYS),
        ),
        (
            &message(4711, ROOT, &Body::default())[..],
            100,
            refused(libc::ENOSYS),
        ),
        // Longer than any can be.
        (&long_lookup()[..], 100, refused(libc::ENOMEM)),
    ] {
        let (readable, writable) = (client.driver.readable(bytes), client.driver.writable(room));
        client.driver.submit(&[readable, writable]);
        assert_eq!(client.answer(writable.address), answer, "{bytes:x?}");
    }
    // Nothing to answer into, and nothing to read.
    let lookup = client.driver.readable(&whole);
    client.driver.submit(&[lookup]);
    assert_eq!(client.answer(0), []);
    client
        .driver
        .submit(&[Descriptor::writable(lookup.address, 100)]);
    assert_eq!(client.answer(0), []);
    assert_eq!(client.lookup(ROOT, "x"), Err(libc::ENOENT), "it goes on");
}

/// An answer with an error, as it comes.
fn refused(errno: i32) -> Vec<u8> {
    let mut answer = 16u32.to_le_bytes().to_vec();
    answer.extend((-errno).to_le_bytes());
    answer.extend(UNIQUE.to_le_bytes());
    assert_eq!(answer.len(), OUT_HEADER);
    answer
}

/// A message that says it is 32 MiB.
fn long_lookup() -> Vec<u8> {
    let mut bytes = message(op::LOOKUP, ROOT, &Body::name("x"));
    bytes[..4].copy_from_slice(&(32u32 << 20).to_le_bytes());
    bytes
}

#[test]
fn requests_may_be_cut_into_many_buffers() {
    let mut client = Client::new(WRITABLE);
    fs::write(client.path("file"), [7; 300]).unwrap();
    let node = client.lookup(ROOT, "file").unwrap();
    let handle = client.open(node, libc::O_RDONLY).unwrap();
    let request = message(op::READ, node, &Body::read(handle, 0, 300));
    let address = client.driver.alloc_with(&request);
    let room = client.driver.writable(316).address;
    let pieces = (0..request.len() as u64).map(|at| Descriptor::readable(address + at, 1));
    let spaces = (0..316).map(|at| Descriptor::writable(room + at, 1));
    let buffers: Vec<_> = pieces.chain(spaces).collect();
    client.driver.submit_indirect(&buffers);
    assert_eq!(client.answer(room)[OUT_HEADER..], [7; 300]);
    // More of them than any kernel makes.
    let many = vec![Descriptor::readable(address, 1); 1000];
    let spaces: Vec<_> = (0..24)
        .map(|at| Descriptor::writable(room + at, 1))
        .collect();
    client.driver.submit_indirect(&[many, spaces].concat());
    assert!(!client.answer(room).is_empty());
}
