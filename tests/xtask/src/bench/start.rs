//! From spawn to the guest's first byte, which is its second instruction's.

use std::process::Command;

use anyhow::Result;

use super::process::{Timed, ms};
use super::table::{Case, Goal};
use super::{Tools, by_turns};

/// Measures mvm beside the floor, and beside QEMU where it is.
pub fn cases(tools: &Tools) -> Result<Vec<Case>> {
    let first_byte = |command: Command| -> Result<f64> {
        let mut process = Timed::spawn(command)?;
        Ok(ms(process.wait_for(b'h')?.duration_since(process.started)))
    };
    let (mvm, floor) = by_turns(
        tools.samples,
        || first_byte(tools.mvm("IDLE")),
        || first_byte(tools.floor("IDLE")),
    )?;
    let case = |mvm, beside, goal| Case {
        name: "1 CPU, 128 MiB".into(),
        unit: "ms",
        mvm,
        beside: Some(beside),
        goal,
    };
    let mut cases = vec![case(mvm, ("floor", floor), Some(Goal::Ratio(1.05)))];
    let qemu = || tools.qemu("IDLE_PVH").map(first_byte);
    match qemu() {
        None => println!("QEMU: not measured, there is no qemu-system-x86_64"),
        Some(Err(error)) => println!("QEMU: not measured: {error:#}"),
        Some(Ok(_)) => {
            let (mvm, other) = by_turns(
                tools.samples.min(10),
                || first_byte(tools.mvm("IDLE")),
                || qemu().unwrap_or(Ok(f64::NAN)),
            )?;
            cases.push(case(mvm, ("QEMU microvm", other), None));
        }
    }
    Ok(cases)
}
