//! Runs tests, several at a time, and says how it went.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::context::{Context, Setting, Skip};

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// Its name: `room::what it shows`.
    pub name: &'static str,
    /// How long it may take at most. Time in the lab is not the host's: it is some twenty times slower.
    pub limit: Duration,
    /// What it does; [`Skip`] is the error of one that cannot be run here.
    pub run: fn(&Context) -> Result<()>,
}

#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: Vec<&'static str>,
    skipped: usize,
}

/// Runs the tests; whether none failed. The last line is the count.
pub fn run(tests: &[Test], setting: &Setting, jobs: usize) -> bool {
    let next = AtomicUsize::new(0);
    let tally = Mutex::new(Tally::default());
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run_one(test, setting, &tally);
                }
            });
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
    let result = Context::new(test.name, setting, start + test.limit).and_then(|context| {
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
