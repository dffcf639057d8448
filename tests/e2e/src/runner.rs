//! Runs tests, several at a time, and says how it went.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};
use std::vec;

use anyhow::Result;

use crate::context::{Context, Setting, Skip};

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// Its name: `room::what it shows`.
    pub name: &'static str,
    /// How long it may take.
    pub length: Length,
    /// What it does; [`Skip`] is the error of one that cannot be run here.
    pub run: fn(&Context) -> Result<()>,
}

/// How long a test may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    /// At most. Time in the lab is not the host's: it is some twenty times slower.
    pub limit: Duration,
    /// Whether most of it is a clock's: such tests leave the CPUs to others, and do not mind these.
    pub waits: bool,
}

#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: Vec<&'static str>,
    skipped: usize,
}

/// Runs the tests, `jobs` at a time and one of those that wait beside them; whether none failed. The last line is the
/// count.
pub fn run(tests: &[Test], setting: &Setting, jobs: usize) -> bool {
    let lanes = [(false, jobs.max(1)), (true, 1)].map(|(waits, jobs)| {
        let lane = tests.iter().filter(|test| test.length.waits == waits);
        let lane: Vec<&Test> = lane.collect();
        (Mutex::new(lane.into_iter()), jobs)
    });
    let tally = Mutex::new(Tally::default());
    let start = Instant::now();
    let work = |lane: &Mutex<vec::IntoIter<&Test>>| {
        let next = || lane.lock().ok()?.next();
        while let Some(test) = next() {
            run_one(test, setting, &tally);
        }
    };
    thread::scope(|scope| {
        for (lane, jobs) in &lanes {
            for _ in 0..*jobs {
                scope.spawn(|| work(lane));
            }
        }
    });
    let tally = tally.into_inner().unwrap_or_default();
    if !tally.failed.is_empty() {
        println!("failed: {}", tally.failed.join(", "));
    }
    println!(
        "{} end-to-end tests in {:.1} s",
        tests.len(),
        start.elapsed().as_secs_f64()
    );
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed,
        tally.failed.len(),
        tally.skipped
    );
    tally.failed.is_empty()
}

fn run_one(test: &Test, setting: &Setting, tally: &Mutex<Tally>) {
    let start = Instant::now();
    let result = Context::new(test.name, setting, start + test.length.limit).and_then(|context| {
        let result = catch_unwind(AssertUnwindSafe(|| (test.run)(&context)))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the test itself panicked")));
        // Only a failed test leaves something behind.
        if let Err(error) = &result
            && !error.is::<Skip>()
        {
            context.keep_logs(&format!("{error:?}"));
        }
        result
    });
    let took = start.elapsed().as_secs_f64();
    let Ok(mut tally) = tally.lock() else { return };
    match result {
        Ok(()) => {
            tally.passed += 1;
            println!("test {} ... ok ({took:.1} s)", test.name);
        }
        Err(error) if error.is::<Skip>() => {
            tally.skipped += 1;
            println!("test {} ... skipped: {error}", test.name);
        }
        Err(error) => {
            tally.failed.push(test.name);
            println!(
                "test {} ... FAILED ({took:.1} s)\n    {}",
                test.name,
                format!("{error:#}").replace('\n', "\n    ")
            );
        }
    }
}
