//! One odd request per line: what the driver makes, and what must come of it. Every case runs through a
//! real ring, on a device of its own.

use super::*;

/// What must come of a case.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expect {
    /// NEEDS_RESET, for a reason that has these words in it.
    Fault(&'static str),
    /// A status and a used length.
    Answer(u8, u32),
}
pub(super) use Expect::{Answer, Fault};

/// A case: its name, what is expected, and how the driver makes it. An answer is looked for where the
/// maker says the status byte is.
pub(super) type Case = (&'static str, Expect, fn(&mut Driver) -> u64);

pub(super) fn check(cases: &[Case]) {
    for (name, expect, make) in cases {
        let mut bench = Bench::new(info());
        let mut worker = bench.worker();
        let status = make(&mut bench.driver);
        let result = bench.kick(worker.as_mut());
        let used = bench.driver.take_used();
        match expect {
            Fault(words) => {
                let fault = result.expect_err(name).to_string();
                assert!(fault.contains(words), "{name}: {fault}");
                assert_eq!(used, [], "{name}");
                assert_eq!(bench.ops(), [], "{name}");
            }
            Answer(code, len) => {
                result.expect(name);
                let lens: Vec<u32> = used.iter().map(|(_, len)| *len).collect();
                assert_eq!(lens, [*len], "{name}");
                assert_eq!(bench.driver.read(status, 1), [*code], "{name}");
                if *code != OK {
                    assert_eq!(bench.ops(), [], "{name}");
                }
                // And the device goes on.
                bench.driver.recycle();
                let (_, next) = ask(&mut bench.driver, IN, 1, &[], 512);
                bench.kick(worker.as_mut()).expect(name);
                assert_eq!(bench.driver.read(next, 1), [OK], "{name}");
            }
        }
    }
}

/// Submits descriptors as they are; the status byte is the last byte of the last one.
pub(super) fn submit(driver: &mut Driver, chain: &[Descriptor]) -> u64 {
    driver.submit(chain);
    let last = chain[chain.len() - 1];
    last.address + u64::from(last.len.saturating_sub(1))
}

/// As [`submit`], in an indirect table.
pub(super) fn submit_indirect(driver: &mut Driver, chain: &[Descriptor]) -> u64 {
    driver.submit_indirect(chain);
    let last = chain[chain.len() - 1];
    last.address + u64::from(last.len.saturating_sub(1))
}

pub(super) fn status_of(asked: (u16, u64)) -> u64 {
    asked.1
}

/// A usual read of one sector with its middle descriptor replaced.
pub(super) fn with_data(driver: &mut Driver, data: Descriptor) -> u64 {
    let mut chain = request(driver, IN, 0, &[], 512);
    chain[1] = data;
    submit(driver, &chain)
}
