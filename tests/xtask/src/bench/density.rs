//! Many idle VMs on one machine: what each takes, whether that is more than where there are few, and whether any of
//! them wakes up.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Tools;
use super::memory::{self, Memory};
use super::process::Timed;
use super::stats::float;
use super::table::{Case, Goal};

const VMS: usize = 100;
/// What these are compared to.
const FEW: (usize, &str) = (10, "10 VMs");
/// What each of many may have in place of each of few. What it writes itself does not depend on others: a page or
/// two is by chance.
const GROWTH: f64 = 1.05;
/// After the last one has started.
const REST: Duration = Duration::from_secs(2);
/// How long nothing shall happen.
const IDLE: Duration = Duration::from_secs(10);

/// Starts them, looks, waits, and looks again. Each is a sample.
pub fn cases(tools: &Tools) -> Result<Vec<Case>> {
    let mut vms = Vec::new();
    start(tools, &mut vms, FEW.0)?;
    let few = each(&vms, memory::of)?;
    start(tools, &mut vms, VMS)?;
    let before = each(&vms, switches)?;
    thread::sleep(IDLE);
    let after = each(&vms, switches)?;
    let woken = before
        .iter()
        .zip(&after)
        .map(|(before, after)| float(after - before));
    let memory = each(&vms, memory::of)?;
    let name = format!("{VMS} VMs");
    let mut cases = vec![Case {
        name: format!("{name}: wake-ups in 10 s"),
        unit: "each",
        mvm: woken.collect(),
        beside: None,
        goal: Some(Goal::Most(0.0)),
    }];
    cases.extend(memory::both(&name, &memory));
    let written = |samples: &[Memory]| {
        let kb = samples.iter().map(|memory| float(memory.private_dirty));
        kb.collect()
    };
    cases.push(Case {
        name: format!("{name}, beside few: private dirty"),
        unit: "kB",
        mvm: written(&memory),
        beside: Some((FEW.1, written(&few))),
        goal: Some(Goal::Ratio(GROWTH)),
    });
    Ok(cases)
}

/// Starts VMs until there are so many, and lets them come to rest.
fn start(tools: &Tools, vms: &mut Vec<Timed>, count: usize) -> Result<()> {
    while vms.len() < count {
        let mut vm = Timed::spawn(tools.mvm("IDLE"))?;
        vm.wait_for(b'h')?;
        vms.push(vm);
    }
    thread::sleep(REST);
    Ok(())
}

fn each<T>(vms: &[Timed], ask: impl Fn(u32) -> Result<T>) -> Result<Vec<T>> {
    vms.iter().map(|vm| ask(vm.pid())).collect()
}

/// How often threads of a process were switched to and away from.
fn switches(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        sum += status
            .lines()
            .filter_map(|line| {
                line.split_once("ctxt_switches:")?
                    .1
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .sum::<u64>();
    }
    Ok(sum)
}
