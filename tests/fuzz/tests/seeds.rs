//! Every seed goes through its target.

use std::collections::BTreeSet;
use std::thread;

#[test]
fn every_target_takes_its_seeds() {
    let targets = fuzz::all();
    let names: BTreeSet<_> = targets.iter().map(|target| target.name()).collect();
    assert_eq!(names.len(), targets.len(), "two targets of one name");
    thread::scope(|scope| {
        for target in &targets {
            scope.spawn(|| {
                let seeds = target.seeds();
                assert!(!seeds.is_empty(), "{} has no seeds", target.name());
                for seed in &seeds {
                    target.run(seed);
                }
                println!("{}: {} seeds", target.name(), seeds.len());
            });
        }
    });
}
