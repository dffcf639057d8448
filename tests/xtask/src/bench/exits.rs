//! Exits that a device in user space serves: a write to the serial port's scratch register, and a read of the first
//! virtio device's magic value. The guest makes them from CPL 3, so that no interpreter of its instructions counts in.

use std::process::Command;

use anyhow::Result;

use super::process::Timed;
use super::table::{Case, Goal};
use super::{EXITS, Tools, by_turns};

/// Measures mvm beside the floor, which does nothing at all on an exit.
pub fn cases(tools: &Tools) -> Result<Vec<Case>> {
    let exit = |command: Command| -> Result<f64> {
        let mut process = Timed::spawn(command)?;
        let first = process.wait_for(b'<')?;
        let last = process.wait_for(b'>')?;
        process.wait()?;
        Ok(last.duration_since(first).as_secs_f64() * 1e6 / f64::from(EXITS))
    };
    [("port write", "PORT"), ("MMIO read", "MMIO")]
        .into_iter()
        .map(|(name, guest)| {
            let (mvm, floor) = by_turns(
                tools.samples.min(10),
                || exit(tools.mvm(guest)),
                || exit(tools.floor(guest)),
            )?;
            Ok(Case {
                name: name.into(),
                unit: "us",
                mvm,
                beside: Some(("floor", floor)),
                goal: Some(Goal::Ratio(1.05)),
            })
        })
        .collect()
}
