//! Every device against every case.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

use super::{Case, Subject, cases, subjects, trial};

/// What a device has to endure at least.
const LEAST: usize = 100;

#[test]
fn every_device_endures_all_that_a_guest_can_make_up() {
    let failures: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> = subjects()
            .into_iter()
            .map(|subject| scope.spawn(move || endures(subject)))
            .collect();
        let ended = running.into_iter().map(|device| device.join());
        ended
            .flat_map(|failures| failures.expect("the test itself panicked"))
            .collect()
    });
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Tries all cases on one device; what went wrong.
fn endures(subject: Subject) -> Vec<String> {
    let cases: Vec<Arc<Case>> = cases(&subject).into_iter().map(Arc::new).collect();
    let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases of the same name");
    assert!(
        cases.len() >= LEAST,
        "{}: {} cases",
        subject.name,
        cases.len()
    );
    let mut trials = trial::Trials::new(subject);
    let failures: Vec<_> = cases
        .iter()
        .flat_map(|case| trials.failures(case))
        .collect();
    println!(
        "{}: {} cases, {} failed",
        subject.name,
        cases.len(),
        failures.len()
    );
    failures
}
