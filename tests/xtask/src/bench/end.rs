//! From the guest's last byte, right before it powers off, to the end of the process.

use std::process::Command;

use anyhow::Result;

use super::process::{Timed, ms};
use super::table::{Case, Goal};
use super::{Tools, by_turns};

/// Measures mvm beside the floor.
pub fn cases(tools: &Tools) -> Result<Vec<Case>> {
    let end = |command: Command| -> Result<f64> {
        let mut process = Timed::spawn(command)?;
        let last = process.wait_for(b'h')?;
        Ok(ms(process.wait()?.duration_since(last)))
    };
    let (mvm, floor) = by_turns(
        tools.samples,
        || end(tools.mvm("END")),
        || end(tools.floor("END")),
    )?;
    Ok(vec![Case {
        name: "power off".into(),
        unit: "ms",
        mvm,
        beside: Some(("floor", floor)),
        goal: Some(Goal::Ratio(1.1)),
    }])
}
