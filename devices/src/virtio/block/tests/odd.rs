//! Well-formed requests that are odd, wrong or impossible, one line each: they are answered with exactly
//! the status and used length given here.

use super::case::{Answer, check, status_of, submit, with_data};
use super::*;
use crate::virtio::block::request::{Action, Rules, parse};
use crate::virtio::testing::{END, SEAM};

#[test]
fn ways_to_cut_a_request() {
    check(&[
        ("a header in single bytes", Answer(OK, 513), |d| {
            let header = header(IN, 3);
            let mut chain: Vec<_> = header.iter().map(|byte| d.readable(&[*byte])).collect();
            chain.extend([d.writable(512), d.writable(1)]);
            submit(d, &chain)
        }),
        ("a header and data in one", Answer(OK, 1), |d| {
            let bytes = [&header(OUT, 3)[..], &[1; 512]].concat();
            let chain = [d.readable(&bytes), d.writable(1)];
            submit(d, &chain)
        }),
        ("a header that ends amid the data", Answer(OK, 1), |d| {
            let bytes = [&header(OUT, 3)[..], &[1; 512]].concat();
            let (a, b) = bytes.split_at(13);
            let chain = [d.readable(a), d.readable(b), d.writable(1)];
            submit(d, &chain)
        }),
        ("data and status in one", Answer(OK, 513), |d| {
            let chain = [d.readable(&header(IN, 3)), d.writable(513)];
            submit(d, &chain)
        }),
        (
            "data in odd pieces, the last with the status",
            Answer(OK, 1025),
            |d| {
                let first = d.readable(&header(IN, 3));
                let chain = [first, d.writable(1), d.writable(1000), d.writable(24)];
                submit(d, &chain)
            },
        ),
        ("a status in room for more", Answer(UNSUPP, 0), |d| {
            let chain = [d.readable(&header(77, 3)), d.writable(9)];
            submit(d, &chain)
        }),
        ("data over the seam of two regions", Answer(OK, 513), |d| {
            with_data(d, Descriptor::writable(SEAM - 100, 512))
        }),
        ("a header over the seam", Answer(OK, 513), |d| {
            d.write(SEAM - 5, &header(IN, 3));
            let chain = [Descriptor::readable(SEAM - 5, 16), d.writable(513)];
            submit(d, &chain)
        }),
        ("a status right behind the seam", Answer(OK, 513), |d| {
            let first = d.readable(&header(IN, 3));
            submit(d, &[first, Descriptor::writable(SEAM - 512, 513)])
        }),
        ("a status at the end of the memory", Answer(OK, 1), |d| {
            let first = d.readable(&header(FLUSH, 3));
            submit(d, &[first, Descriptor::writable(END - 1, 1)])
        }),
        ("a reserved field that is set", Answer(OK, 513), |d| {
            let mut bytes = header(IN, 3);
            bytes[4..8].fill(0xff);
            let chain = [d.readable(&bytes), d.writable(513)];
            submit(d, &chain)
        }),
    ]);
}

#[test]
fn places_on_the_disk() {
    check(&[
        ("the last sector", Answer(OK, 513), |d| {
            status_of(ask(d, IN, 127, &[], 512))
        }),
        ("the whole disk", Answer(OK, 65537), |d| {
            status_of(ask(d, IN, 0, &[], 65536))
        }),
        ("one sector behind the end", Answer(IOERR, 0), |d| {
            status_of(ask(d, IN, 128, &[], 512))
        }),
        ("over the end", Answer(IOERR, 0), |d| {
            status_of(ask(d, IN, 127, &[], 1024))
        }),
        ("a write behind the end", Answer(IOERR, 1), |d| {
            status_of(ask(d, OUT, 128, &[0; 512], 0))
        }),
        ("a write over the end", Answer(IOERR, 1), |d| {
            status_of(ask(d, OUT, 127, &[0; 1024], 0))
        }),
        ("the last sector number", Answer(IOERR, 0), |d| {
            status_of(ask(d, IN, u64::MAX, &[], 512))
        }),
        ("a sector whose end wraps around", Answer(IOERR, 1), |d| {
            status_of(ask(d, OUT, u64::MAX - 1, &[0; 1024], 0))
        }),
        (
            "a sector whose byte offset wraps around",
            Answer(IOERR, 0),
            |d| status_of(ask(d, IN, 1 << 55, &[], 512)),
        ),
        (
            "a sector whose byte offset wraps to the first",
            Answer(IOERR, 1),
            |d| status_of(ask(d, OUT, 1 << 63, &[0; 512], 0)),
        ),
        ("a negative file offset", Answer(IOERR, 0), |d| {
            status_of(ask(d, IN, u64::MAX / 512, &[], 512))
        }),
        ("511 bytes", Answer(IOERR, 0), |d| {
            status_of(ask(d, IN, 0, &[], 511))
        }),
        ("513 bytes", Answer(IOERR, 0), |d| {
            status_of(ask(d, IN, 0, &[], 513))
        }),
        ("one byte", Answer(IOERR, 1), |d| {
            status_of(ask(d, OUT, 0, &[0], 0))
        }),
        ("nothing, read", Answer(OK, 1), |d| {
            status_of(ask(d, IN, 0, &[], 0))
        }),
        ("nothing, written at the end", Answer(OK, 1), |d| {
            status_of(ask(d, OUT, 128, &[], 0))
        }),
        ("nothing, behind the end", Answer(IOERR, 1), |d| {
            status_of(ask(d, IN, 129, &[], 0))
        }),
    ]);
}

#[test]
fn requests_without_data_and_requests_nobody_knows() {
    check(&[
        ("a flush of a sector", Answer(OK, 1), |d| {
            status_of(ask(d, FLUSH, u64::MAX, &[], 0))
        }),
        ("a flush with data both ways", Answer(OK, 0), |d| {
            status_of(ask(d, FLUSH, 0, &[0; 3], 5))
        }),
        ("a name without room", Answer(OK, 1), |d| {
            status_of(ask(d, GET_ID, 0, &[], 0))
        }),
        ("a SCSI command", Answer(UNSUPP, 1), |d| {
            status_of(ask(d, 2, 0, &[0; 6], 0))
        }),
        ("a secure erase", Answer(UNSUPP, 1), |d| {
            status_of(ask(d, 14, 0, &segment(0, 1, 0), 0))
        }),
        ("a zone report", Answer(UNSUPP, 0), |d| {
            status_of(ask(d, 16, 0, &[], 512))
        }),
        ("a legacy barrier", Answer(UNSUPP, 1), |d| {
            status_of(ask(d, OUT | 1 << 31, 0, &[0; 512], 0))
        }),
        ("the last type", Answer(UNSUPP, 1), |d| {
            status_of(ask(d, u32::MAX, 0, &[], 0))
        }),
    ]);
}

#[test]
fn segments() {
    const TABLE: fn(&mut Driver, u32, &[[u8; 16]]) -> u64 =
        |d, kind, segments| status_of(ask(d, kind, 0, &segments.concat(), 0));
    check(&[
        ("none", Answer(IOERR, 1), |d| TABLE(d, DISCARD, &[])),
        ("half a segment", Answer(IOERR, 1), |d| {
            status_of(ask(d, DISCARD, 0, &[0; 8], 0))
        }),
        ("a segment and a half", Answer(IOERR, 1), |d| {
            status_of(ask(d, WRITE_ZEROES, 0, &[0; 24], 0))
        }),
        ("as many as offered", Answer(OK, 1), |d| {
            TABLE(d, DISCARD, &[segment(1, 1, 0); 32])
        }),
        ("one more than offered", Answer(IOERR, 1), |d| {
            TABLE(d, DISCARD, &[segment(1, 1, 0); 33])
        }),
        ("a thousand", Answer(IOERR, 1), |d| {
            TABLE(d, WRITE_ZEROES, &[segment(1, 1, 0); 1000])
        }),
        ("of no sectors", Answer(OK, 1), |d| {
            TABLE(d, DISCARD, &[segment(0, 0, 0)])
        }),
        ("of no sectors, behind the end", Answer(IOERR, 1), |d| {
            TABLE(d, DISCARD, &[segment(129, 0, 0)])
        }),
        ("not aligned to the block size", Answer(OK, 1), |d| {
            TABLE(d, DISCARD, &[segment(3, 7, 0)])
        }),
        ("a discard with unmap", Answer(UNSUPP, 1), |d| {
            TABLE(d, DISCARD, &[segment(0, 1, 1)])
        }),
        ("a discard with an unknown flag", Answer(UNSUPP, 1), |d| {
            TABLE(d, DISCARD, &[segment(0, 1, 2)])
        }),
        (
            "a write-zeroes with an unknown flag",
            Answer(UNSUPP, 1),
            |d| TABLE(d, WRITE_ZEROES, &[segment(0, 1, 1 << 31 | 1)]),
        ),
        ("over the end", Answer(IOERR, 1), |d| {
            TABLE(d, DISCARD, &[segment(120, 9, 0)])
        }),
        ("a sector whose end wraps around", Answer(IOERR, 1), |d| {
            TABLE(d, WRITE_ZEROES, &[segment(u64::MAX, 2, 0)])
        }),
        (
            "a sector whose byte offset wraps around",
            Answer(IOERR, 1),
            |d| TABLE(d, DISCARD, &[segment(1 << 55, 1, 0)]),
        ),
        ("the most sectors there can be", Answer(IOERR, 1), |d| {
            TABLE(d, DISCARD, &[segment(0, u32::MAX, 0)])
        }),
        (
            "a bad one after a good one: neither is done",
            Answer(IOERR, 1),
            |d| TABLE(d, DISCARD, &[segment(0, 1, 0), segment(128, 1, 0)]),
        ),
        ("an unknown flag after a good one", Answer(UNSUPP, 1), |d| {
            TABLE(d, WRITE_ZEROES, &[segment(0, 1, 0), segment(1, 1, 4)])
        }),
        ("cut in the middle of a segment", Answer(OK, 1), |d| {
            let bytes = [segment(0, 1, 1), segment(9, 2, 0)].concat();
            let first = d.readable(&header(WRITE_ZEROES, 0));
            let chain = [
                first,
                d.readable(&bytes[..7]),
                d.readable(&bytes[7..]),
                d.writable(1),
            ];
            submit(d, &chain)
        }),
    ]);
}

#[test]
fn limits_bind_on_a_disk_that_is_larger() {
    let rules = Rules {
        sectors: 1 << 40,
        read_only: false,
        discard: true,
        write_zeroes: true,
    };
    for (kind, most) in [(DISCARD, 1 << 22), (WRITE_ZEROES, 1 << 17)] {
        for (sectors, refused) in [(most, false), (most + 1, true)] {
            let mut bench = Bench::new(info());
            let one = segment(1 << 39, sectors, 0);
            ask(&mut bench.driver, kind, 0, &one, 0);
            let is_refused = bench.with_io(|io| {
                let request = parse(io.pop(QUEUE).unwrap().unwrap(), &rules).unwrap();
                matches!(request.action, Action::Refuse(_))
            });
            assert_eq!(is_refused, refused, "{kind}, {sectors} sectors");
        }
    }
}
