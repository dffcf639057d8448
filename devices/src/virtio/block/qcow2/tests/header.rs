//! Headers: each that is malformed is refused for what it is.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::virtio::block::qcow2::header::{Header, Qcow2Error, head_len};

/// A header as QEMU makes it: 64 KiB clusters, a disk of 1 GiB, tables behind each other.
pub(super) fn header() -> Vec<u8> {
    let mut head = vec![0; 1 << 16];
    put(&mut head, 0, b"QFI\xfb");
    word(&mut head, 4, 3);
    word(&mut head, 20, 16);
    long(&mut head, 24, 1 << 30);
    word(&mut head, 36, 2);
    long(&mut head, 40, 3 << 16);
    long(&mut head, 48, 1 << 16);
    word(&mut head, 56, 1);
    word(&mut head, 96, 4);
    word(&mut head, 100, 112);
    head
}

fn put(head: &mut [u8], at: usize, bytes: &[u8]) {
    head[at..at + bytes.len()].copy_from_slice(bytes);
}

pub(super) fn word(head: &mut [u8], at: usize, value: u32) {
    put(head, at, &value.to_be_bytes());
}

pub(super) fn long(head: &mut [u8], at: usize, value: u64) {
    put(head, at, &value.to_be_bytes());
}

const FILE_LEN: u64 = 5 << 16;

#[test]
fn each_malformed_header_is_refused_for_what_it_is() {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage, &str); 33] = [
        ("magic", |h| h[0] = 0, "is not a qcow2 image"),
        ("version 1", |h| word(h, 4, 1), "version 1"),
        ("version 4", |h| word(h, 4, 4), "version 4"),
        ("tiny clusters", |h| word(h, 20, 8), "clusters"),
        ("huge clusters", |h| word(h, 20, 22), "clusters"),
        ("absurd clusters", |h| word(h, 20, u32::MAX), "clusters"),
        ("encrypted by AES", |h| word(h, 32, 1), "is encrypted"),
        ("encrypted by LUKS", |h| word(h, 32, 2), "is encrypted"),
        ("dirty", |h| long(h, 72, 1), "dirty"),
        ("corrupt", |h| long(h, 72, 2), "corrupt"),
        ("external data", |h| long(h, 72, 4), "external data file"),
        ("zstd", |h| long(h, 72, 8), "zstd"),
        ("subclusters", |h| long(h, 72, 16), "extended L2"),
        ("the future", |h| long(h, 72, 1 << 63), "0x8000000000000000"),
        ("refcount width", |h| word(h, 96, 7), "reference counts"),
        ("short header", |h| word(h, 100, 103), "its header"),
        ("long header", |h| word(h, 100, 1 << 17), "its header"),
        ("no disk", |h| long(h, 24, 0), "its disk"),
        (
            "half a sector",
            |h| long(h, 24, (1 << 30) + 256),
            "its disk",
        ),
        ("endless disk", |h| long(h, 24, u64::MAX - 511), "its disk"),
        ("small L1 table", |h| word(h, 36, 1), "L1 table is of"),
        ("huge L1 table", |h| word(h, 36, u32::MAX), "L1 table is of"),
        (
            "L1 table amid a cluster",
            |h| long(h, 40, 512),
            "L1 table is not",
        ),
        (
            "L1 table on the header",
            |h| long(h, 40, 0),
            "L1 table is not",
        ),
        (
            "L1 table behind the end",
            |h| long(h, 40, 5 << 16),
            "L1 table is not",
        ),
        (
            "L1 table nowhere",
            |h| long(h, 40, u64::MAX << 16),
            "L1 table is not",
        ),
        ("no refcounts", |h| word(h, 56, 0), "refcount table is of"),
        (
            "endless refcounts",
            |h| word(h, 56, u32::MAX),
            "refcount table is of",
        ),
        (
            "refcounts on the header",
            |h| long(h, 48, 0),
            "refcount table is not",
        ),
        (
            "refcounts on the L1 table",
            |h| long(h, 48, 3 << 16),
            "on each other",
        ),
        (
            "extension without end",
            |h| {
                word(h, 112, 0xdead_beef);
                word(h, 116, u32::MAX);
            },
            "extensions",
        ),
        (
            "odd feature names",
            |h| {
                word(h, 112, 0x6803_f857);
                word(h, 116, 49);
            },
            "extensions",
        ),
        (
            "a name behind the cluster",
            |h| {
                long(h, 8, (1 << 16) - 4);
                word(h, 16, 8);
            },
            "name of its backing file",
        ),
    ];
    assert_eq!(head_len(&header()), Ok(1 << 16));
    let good = Header::parse(&header(), FILE_LEN).unwrap();
    assert_eq!((good.size, good.version, good.backing), (1 << 30, 3, None));
    for (name, damage, words) in cases {
        let mut head = header();
        damage(&mut head);
        let message = Header::parse(&head, FILE_LEN).expect_err(name).to_string();
        assert!(message.contains(words), "{name}: {message}");
        assert!(!message.contains('\n'), "{name}: {message}");
    }
    let cut = |len: usize| Header::parse(&header()[..len], FILE_LEN);
    for len in 0..104 {
        cut(len).unwrap_err();
    }
    // A backing file, and what is said of it.
    let mut head = header();
    put(&mut head, 1024, b"../base.img");
    long(&mut head, 8, 1024);
    word(&mut head, 16, 11);
    let parse = |head: &[u8]| Header::parse(head, FILE_LEN);
    assert_eq!(
        parse(&head),
        Err(Qcow2Error::NoBackingFormat("../base.img".to_owned()))
    );
    word(&mut head, 112, 0xe279_2aca);
    word(&mut head, 116, 5);
    put(&mut head, 120, b"qcow2");
    let backing = parse(&head).unwrap().backing.unwrap();
    assert!(backing.name == "../base.img" && backing.is_qcow2);
    // Said twice.
    head.copy_within(112..128, 128);
    parse(&head).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_header_is_too_odd(
        damage in vec((0..2048usize, any::<u8>()), 0..24),
        len in prop_oneof![Just(1usize << 16), 0..2048usize],
        file_len in prop_oneof![Just(FILE_LEN), any::<u64>()],
    ) {
        let mut head = header();
        for (at, byte) in damage {
            head[at] = byte;
        }
        head.truncate(len);
        if let Ok(header) = Header::parse(&head, file_len) {
            prop_assert!(header.size > 0);
        }
    }

}
