//! Many idle VMs on one machine: what each takes, and whether any of them wakes up.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::Timed;
use super::stats::float;
use super::table::{Case, Goal};
use super::{Tools, memory};

const VMS: usize = 100;
/// After the last one has started.
const REST: Duration = Duration::from_secs(2);
/// How long nothing shall happen.
const IDLE: Duration = Duration::from_secs(10);

/// Starts them, looks, waits, and looks again. Each is a sample.
pub fn cases(tools: &Tools) -> Result<Vec<Case>> {
    let mut vms = Vec::new();
    for _ in 0..VMS {
        let mut vm = Timed::spawn(tools.mvm("IDLE"))?;
        vm.wait_for(b'h')?;
        vms.push(vm);
    }
    thread::sleep(REST);
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
    Ok(cases)
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
