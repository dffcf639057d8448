//! Frames from the driver: what goes out, and what happens when the other end takes no more.

use super::super::testing::cable;
use super::*;

#[test]
fn a_frame_goes_out_wherever_it_is_split() {
    let mut bench = Bench::new(&[]);
    let whole = frame(1514);
    for cuts in [&[][..], &[12], &[5, 12, 26], &[1, 2, 3, 11, 13, 1525]] {
        let mut parts = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([whole.len()]) {
            parts.push(bench.tx.readable(&whole[start..end]));
            start = end;
        }
        bench.tx.submit(&parts);
        bench.tx.submit_indirect(&parts);
        bench.kick(TX).unwrap();
        assert_eq!(bench.tx.take_used().len(), 2);
        for _ in 0..2 {
            assert_eq!(bench.far.receive().as_ref(), Some(&whole), "{cuts:?}");
        }
    }
    assert_eq!(traffic(bench.counters().sent), (8, 8 * 1514, 0));
    assert_eq!(bench.empty, QueueSet::of([TX]), "the driver must kick");
}

#[test]
fn a_frame_of_all_the_descriptors_goes_out() {
    let mut bench = Bench::new(&[]);
    let whole = frame(65536);
    let parts: Vec<Descriptor> = whole
        .chunks(whole.len().div_ceil(256))
        .map(|part| bench.tx.readable(part))
        .collect();
    bench.tx.submit(&parts);
    bench.kick(TX).unwrap();
    assert_eq!(bench.far.receive(), Some(whole));
}

#[test]
fn a_full_backend_stops_sending_and_its_wake_starts_it_again() {
    let mut bench = Bench::new(&[]);
    let mut sent = 0_u8;
    // As many as go, and then some.
    while !bench.tx_is_stuck(&mut sent) {}
    let stuck = bench.tx.take_used().len();
    assert_eq!(stuck, 0);
    assert_ne!(bench.empty, QueueSet::of([TX]), "it comes back by itself");
    // A kick meanwhile changes nothing.
    bench.kick(TX).unwrap();
    assert_eq!(bench.tx.take_used(), []);

    let mut received = 0_u8;
    let mut wakes = 0;
    while received < sent {
        while let Some(frame) = bench.far.receive() {
            assert_eq!(frame[HEADER], received, "in order, none twice, none lost");
            received += 1;
        }
        bench.wake().unwrap();
        wakes += 1;
        assert!(wakes < 1000, "no progress: {received} of {sent}");
    }
    assert_eq!(
        traffic(bench.counters().sent),
        (sent.into(), u64::from(sent) * 30_000, 0)
    );
}

impl Bench {
    /// Sends one more frame; whether it had to stay.
    fn tx_is_stuck(&mut self, sent: &mut u8) -> bool {
        let mut bytes = frame(30_000);
        bytes[HEADER] = *sent;
        *sent += 1;
        self.submit(&bytes);
        self.kick(TX).unwrap();
        self.tx.take_used().is_empty()
    }
}

#[test]
fn a_frame_that_the_host_refuses_is_dropped_and_counted() {
    let mut bench = Bench::new(&[]);
    let far = std::mem::replace(&mut bench.far, cable().1);
    drop(far);
    bench.submit(&frame(60));
    bench.submit(&frame(61));
    bench.kick(TX).unwrap();
    assert_eq!(bench.tx.take_used().len(), 2, "the driver has them back");
    assert_eq!(traffic(bench.counters().sent), (0, 0, 2));
}

#[test]
fn chains_that_are_no_frames_are_faults() {
    let cases: [Odd; 3] = [
        ("room to write to", |bench| {
            let parts = [bench.tx.readable(&frame(60)), bench.tx.writable(1)];
            bench.tx.submit(&parts);
        }),
        ("room to write to", |bench| {
            let buffer = bench.tx.writable(2000);
            bench.tx.submit(&[buffer]);
        }),
        ("shorter than its header", |bench| {
            bench.submit(&[0; 11]);
        }),
    ];
    for (words, make) in cases {
        let mut bench = Bench::new(&[]);
        bench.submit(&frame(60));
        make(&mut bench);
        let fault = bench.kick(TX).unwrap_err().to_string();
        assert!(fault.contains(words), "{fault}");
        assert_eq!(bench.tx.take_used(), [(0, 0)], "what came before is done");
        assert_eq!(bench.far.receive(), Some(frame(60)));
    }
}

#[test]
fn a_header_alone_is_a_frame_of_nothing() {
    let mut bench = Bench::new(&[]);
    bench.submit(&frame(0));
    bench.kick(TX).unwrap();
    assert_eq!(bench.tx.take_used(), [(0, 0)]);
    assert_eq!(bench.far.receive(), Some(frame(0)));
}
