//! Requests that go well, requests the disk fails, and a disk that takes its time.

use super::*;

#[test]
fn reads_writes_and_clears() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    let driver = &mut bench.driver;
    let (read, read_status) = ask(driver, IN, 5, &[], 1024);
    let (write, write_status) = ask(driver, OUT, 7, &[0xaa; 1536], 0);
    let (flush, flush_status) = ask(driver, FLUSH, 0, &[], 0);
    let (discard, discard_status) = ask(driver, DISCARD, 0, &segment(20, 2, 0), 0);
    let (zero, zero_status) = ask(driver, WRITE_ZEROES, 0, &segment(30, 3, 1), 0);
    bench.kick(worker.as_mut()).unwrap();

    assert_eq!(
        bench.ops(),
        [
            Op::Read(2560, 1024),
            Op::Write(3584, 1536, false),
            Op::Flush,
            Op::Discard(10240, 1024),
            Op::Zero(15360, 1536, true, false),
        ]
    );
    let driver = &mut bench.driver;
    assert_eq!(
        driver.take_used(),
        [
            (read, 1025),
            (write, 1),
            (flush, 1),
            (discard, 1),
            (zero, 1)
        ]
    );
    for status in [
        read_status,
        write_status,
        flush_status,
        discard_status,
        zero_status,
    ] {
        assert_eq!(driver.read(status, 1), [OK]);
    }
    let data = driver.read(read_status - 1024, 1024);
    assert_eq!((&data[..512], &data[512..]), (&[5; 512][..], &[6; 512][..]));
    assert_eq!(bench.insides().bytes[3584..5120], [0xaa; 1536]);
}

#[test]
fn without_flush_writes_are_through() {
    let mut bench = Bench::new(info());
    let offered = bench.block.features();
    let mut worker = bench.worker_for(offered - F_FLUSH);
    ask(&mut bench.driver, OUT, 0, &[1; 512], 0);
    ask(&mut bench.driver, WRITE_ZEROES, 0, &segment(9, 1, 0), 0);
    bench.kick(worker.as_mut()).unwrap();
    assert_eq!(
        bench.ops(),
        [Op::Write(0, 512, true), Op::Zero(4608, 512, false, true)]
    );
}

#[test]
fn the_name_is_padded_and_cut() {
    for (room, expected, used) in [
        (20, &b"fake\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..], 21),
        (2, b"fa", 3),
        (22, b"fake\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xee\xee", 20),
    ] {
        let mut bench = Bench::new(info());
        let mut worker = bench.worker();
        let chain = request(&mut bench.driver, GET_ID, 0, &[], room);
        let head = bench.driver.submit(&chain);
        bench.kick(worker.as_mut()).unwrap();
        assert_eq!(bench.driver.take_used(), [(head, used)]);
        assert_eq!(bench.driver.read(chain[1].address, room), expected);
    }
}

#[test]
fn nothing_changes_a_read_only_disk() {
    let mut bench = Bench::new(DiskInfo {
        read_only: true,
        ..info()
    });
    // Even for a driver that accepted more than was offered.
    let mut worker = bench.worker_for(Features::all());
    let driver = &mut bench.driver;
    let statuses = [
        (ask(driver, OUT, 0, &[1; 512], 0), IOERR),
        (ask(driver, DISCARD, 0, &segment(0, 1, 0), 0), IOERR),
        (ask(driver, WRITE_ZEROES, 0, &segment(0, 1, 0), 0), IOERR),
        (ask(driver, IN, 0, &[], 512), OK),
        (ask(driver, FLUSH, 0, &[], 0), OK),
    ];
    bench.kick(worker.as_mut()).unwrap();
    for ((_, status), expected) in statuses {
        assert_eq!(bench.driver.read(status, 1), [expected]);
    }
    assert_eq!(bench.ops(), [Op::Read(0, 512), Op::Flush]);
}

#[test]
fn what_was_not_negotiated_is_not_supported() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker_for(Features::VERSION_1);
    let driver = &mut bench.driver;
    let (_, discard) = ask(driver, DISCARD, 0, &segment(0, 1, 0), 0);
    let (_, zeroes) = ask(driver, WRITE_ZEROES, 0, &segment(0, 1, 0), 0);
    bench.kick(worker.as_mut()).unwrap();
    assert_eq!(bench.driver.read(discard, 1), [UNSUPP]);
    assert_eq!(bench.driver.read(zeroes, 1), [UNSUPP]);
    assert_eq!(bench.ops(), []);
}

#[test]
fn an_error_of_the_host_is_that_requests_alone() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    bench.insides().fail = Some((0, libc::ENOSPC));
    let (read, read_status) = ask(&mut bench.driver, IN, 0, &[], 512);
    let (write, write_status) = ask(&mut bench.driver, OUT, 0, &[1; 512], 0);
    let (flush, flush_status) = ask(&mut bench.driver, FLUSH, 0, &[], 0);
    bench.kick(worker.as_mut()).unwrap();
    // A read that failed promises none of its data, and the status byte comes after the data.
    assert_eq!(
        bench.driver.take_used(),
        [(read, 0), (write, 1), (flush, 1)]
    );
    for status in [read_status, write_status, flush_status] {
        assert_eq!(bench.driver.read(status, 1), [IOERR]);
    }
    bench.insides().fail = None;
    let (_, status) = ask(&mut bench.driver, IN, 0, &[], 512);
    bench.kick(worker.as_mut()).unwrap();
    assert_eq!(bench.driver.read(status, 1), [OK]);
}

#[test]
fn segments_go_one_after_the_other_until_one_fails() {
    let segments = [
        segment(1, 1, 0),
        segment(2, 0, 0),
        segment(3, 2, 0),
        segment(9, 1, 0),
    ];
    for (fail, expected, answer) in [
        (None, 3, OK),
        (Some((0, libc::EIO)), 1, IOERR),
        (Some((1, libc::EIO)), 2, IOERR),
    ] {
        for hold in [false, true] {
            let mut bench = Bench::new(info());
            let mut worker = bench.worker();
            bench.insides().fail = fail;
            bench.insides().hold = hold;
            let (head, status) = ask(&mut bench.driver, DISCARD, 0, &segments.concat(), 0);
            bench.kick(worker.as_mut()).unwrap();
            bench.with_io(|io| worker.drain(io)).unwrap();
            let all = [
                Op::Discard(512, 512),
                Op::Discard(1536, 1024),
                Op::Discard(4608, 512),
            ];
            assert_eq!(bench.ops(), all[..expected]);
            assert_eq!(bench.driver.take_used(), [(head, 1)]);
            assert_eq!(bench.driver.read(status, 1), [answer]);
        }
    }
}

#[test]
fn pending_requests_end_in_the_disks_order() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    bench.insides().hold = true;
    let asked: Vec<_> = (0..3)
        .map(|sector| ask(&mut bench.driver, IN, sector, &[], 512))
        .collect();
    bench.kick(worker.as_mut()).unwrap();
    assert_eq!(bench.driver.take_used(), []);

    for index in [2, 0, 1] {
        {
            let mut insides = bench.insides();
            let at = insides.held.iter().position(|(tag, _)| tag.0 == index);
            let done = insides.held.remove(at.unwrap());
            insides.released.push(done);
        }
        bench.with_io(|io| worker.on_source(0, io)).unwrap();
        let (head, status) = asked[usize::try_from(index).unwrap()];
        assert_eq!(bench.driver.take_used(), [(head, 513)]);
        assert_eq!(bench.driver.read(status, 1), [OK]);
    }
    // A spurious wake-up, and a completion of nothing.
    bench.with_io(|io| worker.on_source(0, io)).unwrap();
    bench.insides().released.push((Tag(1), Ok(())));
    bench.insides().released.push((Tag(u32::MAX), Ok(())));
    bench.with_io(|io| worker.on_source(0, io)).unwrap();
    assert_eq!(bench.driver.take_used(), []);
}

#[test]
fn drain_waits_for_all() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    bench.with_io(|io| worker.drain(io)).unwrap();
    assert_eq!(bench.insides().waits, 0, "nothing to wait for");

    bench.insides().hold = true;
    for sector in 0..5 {
        ask(&mut bench.driver, IN, sector, &[], 512);
    }
    bench.kick(worker.as_mut()).unwrap();
    bench.with_io(|io| worker.drain(io)).unwrap();
    assert_eq!(bench.driver.take_used().len(), 5);
    assert_eq!(bench.insides().waits, 5);
}

#[test]
fn a_driver_cannot_have_more_under_way_than_the_queue_has_room_for() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    bench.insides().hold = true;
    let (head, _) = ask(&mut bench.driver, IN, 0, &[], 512);
    bench.kick(worker.as_mut()).unwrap();
    // The same chain again and again, though it was never given back.
    for _ in 1..256 {
        bench.driver.publish(head);
        bench.kick(worker.as_mut()).unwrap();
    }
    assert_eq!(bench.insides().held.len(), 256);
    bench.driver.publish(head);
    let fault = bench.kick(worker.as_mut()).unwrap_err();
    assert!(matches!(fault, DeviceFault::Request { .. }), "{fault}");
    drop(worker);
    assert_eq!(bench.insides().held.len(), 0, "the disk let go of memory");
}

#[test]
fn a_worker_that_goes_leaves_no_tags_behind() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    bench.insides().hold = true;
    for _ in 0..3 {
        ask(&mut bench.driver, IN, 0, &[], 512);
    }
    bench.kick(worker.as_mut()).unwrap();
    drop(worker);
    assert_eq!(bench.insides().held.len(), 0);
    assert_eq!(bench.driver.take_used(), [], "nobody answers any more");

    bench.insides().hold = false;
    let mut worker = bench.worker();
    let (head, _) = ask(&mut bench.driver, IN, 0, &[], 512);
    bench.kick(worker.as_mut()).unwrap();
    assert_eq!(bench.driver.take_used(), [(head, 513)]);
}

#[test]
fn a_disk_that_loses_a_request_is_a_fault_and_not_a_hang() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    bench.insides().hold = true;
    ask(&mut bench.driver, IN, 0, &[], 512);
    bench.kick(worker.as_mut()).unwrap();
    bench.insides().held.clear();
    let fault = bench.with_io(|io| worker.drain(io)).unwrap_err();
    assert!(matches!(fault, DeviceFault::Host { .. }), "{fault}");
    drop(worker);
}

#[test]
fn a_fault_among_completions_forgets_none_of_them() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    bench.insides().hold = true;
    for _ in 0..3 {
        ask(&mut bench.driver, IN, 0, &[], 512);
    }
    bench.kick(worker.as_mut()).unwrap();
    {
        let mut insides = bench.insides();
        insides.released = std::mem::take(&mut insides.held);
    }
    let nowhere = crate::mem::GuestAddress(testing::END);
    bench.queues[0].try_set_used_ring_address(nowhere).unwrap();
    bench.with_io(|io| worker.on_source(0, io)).unwrap_err();
    drop(worker);
    assert_eq!(bench.insides().waits, 0, "the disk has nothing any more");
}

#[test]
fn other_queues_are_nobodys() {
    let mut bench = Bench::new(info());
    let mut worker = bench.worker();
    ask(&mut bench.driver, IN, 0, &[], 512);
    let other = QueueIndex(1);
    bench.with_io(|io| worker.on_kick(other, io)).unwrap();
    assert_eq!(bench.ops(), []);
}
