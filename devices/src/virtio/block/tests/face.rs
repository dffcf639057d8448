//! What the driver sees beside the queue, and what becomes of the disk between drivers.

use super::*;
use crate::virtio::VirtioKind;

const RO: u64 = 1 << 5;
const DISCARD_BIT: u64 = 1 << 13;
const WRITE_ZEROES_BIT: u64 = 1 << 14;
/// VERSION_1, EVENT_IDX, INDIRECT_DESC; SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY.
const ALWAYS: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10;

fn block(info: DiskInfo) -> Block {
    Block::new(Arc::new(FakeDisk::new(info)), "fake")
}

fn config(block: &Block, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    block.read_config(offset, &mut data);
    data
}

#[test]
fn offers_what_the_disk_can_do() {
    let features = |read_only, discard| {
        let info = DiskInfo {
            read_only,
            discard,
            ..info()
        };
        block(info).features().bits()
    };
    assert_eq!(features(false, false), ALWAYS | WRITE_ZEROES_BIT);
    assert_eq!(
        features(false, true),
        ALWAYS | WRITE_ZEROES_BIT | DISCARD_BIT
    );
    assert_eq!(features(true, false), ALWAYS | RO);
    assert_eq!(features(true, true), ALWAYS | RO);
    let block = block(info());
    assert_eq!(block.kind(), VirtioKind::Block);
    assert_eq!(block.queue_sizes(), [256]);
}

#[test]
fn configuration_space_of_a_writable_disk() {
    let block = block(info());
    let mut expected = Vec::new();
    expected.extend(128u64.to_le_bytes()); // capacity
    expected.extend(0u32.to_le_bytes()); // size_max: not offered
    expected.extend(254u32.to_le_bytes()); // seg_max
    expected.extend([0; 4]); // geometry: not offered
    expected.extend(512u32.to_le_bytes()); // blk_size
    expected.extend([3, 0]); // physical_block_exp: 4096 bytes; alignment_offset
    expected.extend(8u16.to_le_bytes()); // min_io_size
    expected.extend(0u32.to_le_bytes()); // opt_io_size
    expected.extend([0; 4]); // writeback, num_queues: not offered
    expected.extend((1u32 << 22).to_le_bytes()); // max_discard_sectors
    expected.extend(32u32.to_le_bytes()); // max_discard_seg
    expected.extend(8u32.to_le_bytes()); // discard_sector_alignment
    expected.extend((1u32 << 17).to_le_bytes()); // max_write_zeroes_sectors
    expected.extend(32u32.to_le_bytes()); // max_write_zeroes_seg
    expected.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
    assert_eq!(config(&block, 0, 60), expected);
}

#[test]
fn configuration_space_of_a_read_only_disk_has_no_write_limits() {
    let info = DiskInfo {
        capacity: u64::MAX / 512 * 512,
        read_only: true,
        block_size: 512,
        discard: true,
    };
    // A disk too large to keep in memory: only its face is asked.
    let fake = FakeDisk {
        info,
        insides: Arc::default(),
    };
    let block = Block::new(Arc::new(fake), "fake");
    assert_eq!(config(&block, 0, 8), (u64::MAX / 512).to_le_bytes());
    assert_eq!(config(&block, 24, 4), [0, 0, 1, 0]);
    assert_eq!(config(&block, 36, 24), [0; 24]);
}

#[test]
fn configuration_space_ends_in_zeroes() {
    let block = block(info());
    let whole = config(&block, 0, 64);
    for offset in 0..64 {
        for len in [1, 2, 4, 8] {
            let mut expected = whole[offset..64.min(offset + len)].to_vec();
            expected.resize(len, 0);
            let offset = u64::try_from(offset).unwrap();
            assert_eq!(config(&block, offset, len), expected, "{offset}+{len}");
        }
    }
    for offset in [60, 1000, u64::MAX - 3, u64::MAX] {
        assert_eq!(config(&block, offset, 8), [0; 8]);
    }
}

#[test]
fn configuration_space_ignores_writes() {
    let mut block = block(info());
    let before = config(&block, 0, 60);
    block.write_config(0, &[0xff; 8]);
    block.write_config(32, &[1]);
    assert_eq!(config(&block, 0, 60), before);
}

#[test]
fn the_disk_comes_back_at_each_reset() {
    let mut bench = Bench::new(info());
    for round in 0..3u8 {
        let mut worker = bench.worker();
        assert_eq!(worker.sources().len(), 3);
        let (head, status) = ask(&mut bench.driver, OUT, 0, &[round; 512], 0);
        bench.kick(worker.as_mut()).unwrap();
        assert_eq!(bench.driver.take_used(), [(head, 1)]);
        assert_eq!(bench.driver.read(status, 1), [OK]);
        assert_eq!(bench.insides().bytes[..512], [round; 512]);
        bench.driver.recycle();
    }
}

#[test]
fn two_data_paths_never_share_a_disk() {
    let mut bench = Bench::new(info());
    let first = bench.worker();
    let offered = bench.block.features();
    assert!(bench.block.activate(offered).is_err());
    drop(first);
    assert!(bench.block.activate(offered).is_ok());
}
