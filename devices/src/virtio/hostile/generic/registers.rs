//! Registers and configuration space: what no driver writes, in no order and of no width. Virtio 1.2 §3.1,
//! §4.2.2.

use crate::virtio::hostile::Attack;
use crate::virtio::hostile::attack::VERSION_1;
use crate::virtio::hostile::case::{Case, Expect, Row, Scope, table};
use crate::virtio::testing::{reg, status};
use crate::virtio::transport::mmio::LEN;

use Expect::{Either, Fine, Reset};

/// Features that must not be agreed on.
fn refused(attack: &mut Attack, features: u64) {
    let agreed = attack.machine.negotiate(features);
    assert!(!agreed, "agreed on {features:#x}");
    attack.machine.set(reg::STATUS, status::DRIVER_OK);
}

/// Status values one after the other, from a reset.
fn statuses(attack: &mut Attack, values: &[u32]) {
    attack.machine.set(reg::STATUS, 0);
    for value in values {
        attack.machine.set(reg::STATUS, *value);
        attack.machine.get(reg::STATUS);
    }
}

/// Every register, each with `value`; the status register last but one, as a reset would undo the others.
fn all_registers(attack: &mut Attack, value: u32) {
    for offset in (0..reg::CONFIG).step_by(4) {
        if offset != reg::STATUS {
            attack.machine.set(offset, value);
        }
        attack.machine.get(offset);
    }
}

/// Reads of every width at every offset, in and behind configuration space.
fn read_everywhere(attack: &Attack) {
    for width in [1, 2, 4, 8] {
        let near = reg::CONFIG - 8..reg::CONFIG + 300;
        let far = LEN - 16..=LEN - width;
        for offset in near.chain(far) {
            let width = usize::try_from(width).expect("small");
            let mut data = [0; 8];
            attack.machine.read(offset, &mut data[..width]);
        }
    }
}

/// Writes of every width at every offset of configuration space and behind.
fn write_everywhere(attack: &Attack, byte: u8) {
    for width in [1, 2, 4, 8] {
        let near = reg::CONFIG..reg::CONFIG + 300;
        let far = LEN - 16..=LEN - width;
        for offset in near.chain(far) {
            let width = usize::try_from(width).expect("small");
            attack.machine.write(offset, &[byte; 8][..width]);
        }
    }
}

/// Registers and values picked without sense, the same ones each time.
fn noise(attack: &mut Attack, seed: u64) {
    let mut state = seed;
    let mut random = move |below: u64| {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let values = [
        0,
        1,
        status::DRIVER,
        status::FEATURES_OK,
        status::DRIVER_OK,
        0x1_0000,
        u32::MAX,
    ];
    for _ in 0..2_000 {
        let offset = 4 * random(0x60);
        let value = u32::try_from(random(1 << 32)).unwrap_or(0);
        let value = match random(4) {
            0 => value,
            1 => value & 0x000f_fff0,
            2 => value & 3,
            _ => values[usize::try_from(random(7)).unwrap_or(0)],
        };
        attack.machine.set(offset, value);
        attack.machine.get(offset);
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = table(Scope::Device, ROWS);
    for seed in [0x2545_f491_4f6c_dd1d, 0x9e37_79b9_7f4a_7c15, 0x1234_5678] {
        let name = format!("register noise {seed:#x}");
        let act = move |a: &mut Attack| noise(a, seed);
        cases.push(Case::new(name, Scope::Device, Either, act));
    }
    cases
}

const ROWS: &[Row] = &[
    ("every feature that was not offered", Fine, |a| {
        let offered = a.machine.offered();
        for bit in (0..64).filter(|bit| offered & 1 << bit == 0) {
            let agreed = a.machine.negotiate(VERSION_1 | 1 << bit);
            assert!(!agreed, "agreed on feature {bit}");
        }
    }),
    ("each feature that was offered, alone", Fine, |a| {
        let offered = a.machine.offered();
        for bit in (0..64).filter(|bit| offered & 1 << bit != 0) {
            // Features that need others may be refused, not misused.
            if a.machine.negotiate(VERSION_1 | 1 << bit) {
                a.start_with(VERSION_1 | 1 << bit);
                for queue in 0..a.queues.len() {
                    a.queue = u16::try_from(queue).unwrap_or(0);
                    a.submit_request();
                    a.provoke();
                }
            }
        }
        a.queue = 0;
    }),
    ("all features there are", Reset, |a| refused(a, u64::MAX)),
    ("no features", Reset, |a| refused(a, 0)),
    ("everything offered but VERSION_1", Reset, |a| {
        let offered = a.machine.offered();
        refused(a, offered & !VERSION_1);
    }),
    ("features written half", Reset, |a| {
        a.machine.set(reg::STATUS, 0);
        a.machine.set(reg::STATUS, status::DRIVER);
        a.machine.set(reg::DRIVER_FEATURES_SEL, 0);
        a.machine.set(reg::DRIVER_FEATURES, u32::MAX);
        a.machine.set(reg::STATUS, status::FEATURES_OK);
        assert_eq!(a.machine.get(reg::STATUS), status::DRIVER);
        a.machine.set(reg::STATUS, status::DRIVER_OK);
    }),
    ("features at selectors that do not exist", Fine, |a| {
        for select in [2, 3, 31, u32::MAX] {
            a.machine.set(reg::DEVICE_FEATURES_SEL, select);
            assert_eq!(a.machine.get(reg::DEVICE_FEATURES), 0);
            a.machine.set(reg::DRIVER_FEATURES_SEL, select);
            a.machine.set(reg::DRIVER_FEATURES, u32::MAX);
        }
        a.start();
    }),
    ("features changed after they were agreed on", Fine, |a| {
        a.start();
        for select in 0..2 {
            a.machine.set(reg::DRIVER_FEATURES_SEL, select);
            a.machine.set(reg::DRIVER_FEATURES, u32::MAX);
        }
        a.machine.set(reg::STATUS, status::FEATURES_OK);
        a.submit_request();
    }),
    ("DRIVER_OK first", Reset, |a| statuses(a, &[4])),
    ("DRIVER_OK without FEATURES_OK", Reset, |a| {
        statuses(a, &[1, 3, 7]);
    }),
    ("every status bit at once", Reset, |a| statuses(a, &[0xff])),
    ("FEATURES_OK without features", Fine, |a| {
        statuses(a, &[1, 3, 11]);
        assert_eq!(a.machine.get(reg::STATUS), status::DRIVER);
    }),
    ("a status of more than eight bits", Fine, |a| {
        statuses(a, &[0x100, 0xffff_ff00, u32::MAX, 1 << 31]);
        assert_eq!(a.machine.get(reg::STATUS), 0);
    }),
    ("NEEDS_RESET written by the driver", Fine, |a| {
        statuses(a, &[1, 3, 3 | status::NEEDS_RESET]);
    }),
    ("FAILED, and on", Either, |a| {
        a.start();
        a.machine.set(reg::STATUS, 0x80 | status::DRIVER_OK);
        a.submit_request();
        a.provoke();
        a.machine.set(reg::STATUS, status::DRIVER_OK);
    }),
    ("status bits taken back", Fine, |a| {
        a.start();
        for bits in [1, 3, 11, 8, 4] {
            a.machine.set(reg::STATUS, bits);
        }
        assert_eq!(a.machine.get(reg::STATUS), status::DRIVER_OK);
        a.submit_request();
    }),
    ("DRIVER_OK again and again", Fine, |a| {
        a.start();
        for _ in 0..50 {
            a.machine.set(reg::STATUS, status::DRIVER_OK);
        }
        a.submit_request();
    }),
    ("DRIVER_OK after a fault", Reset, |a| {
        a.agree_on(VERSION_1);
        a.machine.set(reg::QUEUE_SEL, 0);
        a.machine.set(reg::QUEUE_SIZE, 3);
        a.machine.set(reg::STATUS, status::DRIVER_OK);
        a.kick_all();
        a.machine.set(reg::STATUS, status::DRIVER_OK);
    }),
    ("resets without end", Fine, |a| {
        for _ in 0..300 {
            a.machine.set(reg::STATUS, 0);
        }
    }),
    ("starts and resets without end", Fine, |a| {
        for _ in 0..30 {
            a.start();
            a.submit_request();
            a.kick();
            a.machine.set(reg::STATUS, 0);
        }
    }),
    ("a reset with every queue full", Fine, |a| {
        a.start();
        for queue in 0..a.queues.len() {
            a.queue = u16::try_from(queue).unwrap_or(0);
            let each = u16::try_from(a.request().len()).unwrap_or(1);
            for _ in 0..a.driver().size() / each - 1 {
                a.submit_request();
            }
            a.kick();
        }
        a.queue = 0;
        a.machine.set(reg::STATUS, 0);
    }),
    ("kicks of queues that do not exist", Fine, |a| {
        a.start();
        let first = u32::try_from(a.queues.len()).unwrap_or(0);
        for queue in [
            first,
            first + 1,
            63,
            64,
            255,
            256,
            0xffff,
            0x1_0000,
            u32::MAX,
        ] {
            a.machine.set(reg::QUEUE_NOTIFY, queue);
        }
        a.submit_request();
    }),
    ("kicks after the reset", Fine, |a| {
        a.start();
        a.submit_request();
        a.machine.set(reg::STATUS, 0);
        a.kick_all();
        a.machine.set(reg::QUEUE_NOTIFY, 0);
    }),
    ("registers of queues that do not exist", Fine, |a| {
        let first = u32::try_from(a.queues.len()).unwrap_or(0);
        a.agree_on(VERSION_1);
        for queue in [first, first + 1, 63, 64, 0xffff, 0x1_0000, u32::MAX] {
            a.machine.set(reg::QUEUE_SEL, queue);
            assert_eq!(a.machine.get(reg::QUEUE_SIZE_MAX), 0);
            a.machine.set(reg::QUEUE_SIZE, 3);
            a.machine.set_long(reg::DESCRIPTORS, u64::MAX);
            a.machine.set_long(reg::DRIVER_AREA, u64::MAX);
            a.machine.set_long(reg::DEVICE_AREA, u64::MAX);
            a.machine.set(reg::QUEUE_READY, 1);
            assert_eq!(a.machine.get(reg::QUEUE_READY), 0);
        }
    }),
    ("a queue made ready before the features", Reset, |a| {
        statuses(a, &[1, 3]);
        let driver = &a.drivers[0];
        a.machine.set_queue(0, driver);
    }),
    ("interrupts acknowledged that never came", Fine, |a| {
        a.start();
        for value in [1, 2, 3, 0x80, u32::MAX] {
            a.machine.set(reg::INTERRUPT_ACK, value);
            assert_eq!(a.machine.get(reg::INTERRUPT_STATUS) & !3, 0);
        }
        a.submit_request();
    }),
    ("interrupts never acknowledged", Fine, |a| {
        a.start();
        for _ in 0..20 {
            a.driver().recycle();
            a.submit_request();
            a.provoke();
            if a.driver().take_used().is_empty() {
                break;
            }
        }
    }),
    ("interrupt bits acknowledged all the time", Fine, |a| {
        a.start();
        a.submit_request();
        a.kick();
        for _ in 0..500 {
            a.machine.set(reg::INTERRUPT_ACK, u32::MAX);
        }
    }),
    ("reads of every width at every offset", Fine, |a| {
        read_everywhere(a);
        a.start();
        read_everywhere(a);
    }),
    ("configuration space of ones", Either, |a| {
        write_everywhere(a, 0xff);
        a.start();
        write_everywhere(a, 0xff);
        a.submit_request();
        read_everywhere(a);
    }),
    ("configuration space of zeroes", Either, |a| {
        a.start();
        write_everywhere(a, 0);
        a.submit_request();
        read_everywhere(a);
    }),
    ("configuration space of sevens", Either, |a| {
        write_everywhere(a, 7);
        a.start();
        write_everywhere(a, 7);
        a.submit_request();
    }),
    ("registers of odd widths", Fine, |a| {
        a.start();
        for offset in 0..reg::CONFIG {
            for width in [1, 2, 8] {
                a.machine.write(offset, &[0xff; 8][..width]);
                let mut data = [0; 8];
                a.machine.read(offset, &mut data[..width]);
                assert!(data[..width].iter().all(|byte| *byte == 0xff));
            }
        }
        assert_eq!(a.machine.get(reg::STATUS), status::DRIVER_OK);
        a.submit_request();
    }),
    ("words at odd offsets", Fine, |a| {
        a.start();
        for offset in (0..reg::CONFIG - 4).filter(|offset| offset % 4 != 0) {
            a.machine.set(offset, u32::MAX);
            assert_eq!(a.machine.get(offset), u32::MAX);
        }
        a.submit_request();
    }),
    ("every register of zeroes", Either, |a| {
        a.start();
        all_registers(a, 0);
        a.machine.set(reg::STATUS, status::DRIVER_OK);
    }),
    ("every register of ones", Either, |a| {
        a.agree_on(VERSION_1);
        all_registers(a, u32::MAX);
        a.machine.set(reg::STATUS, status::DRIVER_OK);
    }),
    ("every register of ones after the start", Either, |a| {
        a.start();
        all_registers(a, u32::MAX);
        a.submit_request();
    }),
    ("writes to registers that are only read", Fine, |a| {
        a.start();
        let read_only = [
            0x00,
            0x04,
            0x08,
            0x0c,
            reg::DEVICE_FEATURES,
            reg::QUEUE_SIZE_MAX,
            reg::INTERRUPT_STATUS,
            reg::CONFIG_GENERATION,
        ];
        for offset in read_only {
            let before = a.machine.get(offset);
            a.machine.set(offset, !before);
            assert_eq!(a.machine.get(offset), before, "{offset:#x}");
        }
        a.submit_request();
    }),
    ("shared memory regions that are not there", Either, |a| {
        for select in [0, 1, 255, u32::MAX] {
            // SHMSel, then SHMLen and SHMBase: ones where there is no region (§4.2.2).
            a.machine.set(0xac, select);
            for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
                a.machine.get(offset);
            }
        }
        a.start();
    }),
];
