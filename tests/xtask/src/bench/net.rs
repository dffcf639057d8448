//! A network card: frames through a tap both ways, beside a loop of readv or writev on a tap of the same kind.
//!
//! What the guest sends ends in the host's network stack, which drops it. What it receives was put into the tap's queue
//! before, so that nobody sends meanwhile: a machine of two CPUs has none left for that.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::process::{Timed, beside_a_busy_thread};
use super::programs;
use super::stats::float;
use super::table::{Case, Goal};
use super::{Tools, by_turns};
use crate::run;

const TAP: &str = "mvmbench0";

/// Bytes of a frame, how many the guest sends, and how many a tap's queue can hold for it.
const SIZES: [(&str, u32, u32, u32); 3] = [
    ("64 B", 64, 100_000, 40_000),
    ("1514 B", 1514, 100_000, 40_000),
    ("64 KB", 65_000, 10_000, 4_000),
];

#[derive(Debug, Clone, Copy)]
enum Way {
    Send,
    Receive,
}

/// Measures each size both ways; nothing where taps cannot be made.
pub fn cases(tools: &Tools) -> Result<Vec<Case>> {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        println!("net: not measured, taps cannot be made here");
        return Ok(Vec::new());
    }
    let tap = programs::host(&tools.directory, "tap")?;
    programs::guest_in_c(&tools.directory, "net")?;
    let mut cases = Vec::new();
    for (name, size, sent, received) in SIZES {
        for (way, what, count) in [
            (Way::Send, "guest to tap", sent),
            (Way::Receive, "tap to guest", received),
        ] {
            let (mvm, floor) = by_turns(
                tools.samples.min(20),
                || rate(&tap, way, size, count, mvm(tools, way, size, count)),
                || {
                    let floor = floor(&tap, way, size, count);
                    beside_a_busy_thread(|| rate(&tap, way, size, count, floor))
                },
            )?;
            let (unit, scale) = match size {
                65_000.. => ("MB/s", f64::from(size) / 1e6),
                _ => ("k/s", 1e-3),
            };
            let samples = |rates: Vec<f64>| rates.iter().map(|rate| rate * scale).collect();
            cases.push(Case {
                name: format!("{name}, {what}"),
                unit,
                mvm: samples(mvm),
                beside: Some(("floor", samples(floor))),
                goal: Some(Goal::Share(0.9)),
            });
        }
    }
    Ok(cases)
}

fn mvm(tools: &Tools, way: Way, size: u32, count: u32) -> Command {
    let mut command = tools.mvm("net");
    let send = u8::from(matches!(way, Way::Send));
    command.args(["--net", &format!("tap={TAP}"), "--cmdline"]);
    command.arg(format!("send={send} size={size} count={count}"));
    command
}

fn floor(tap: &Path, way: Way, size: u32, count: u32) -> Command {
    let mut command = Command::new(tap);
    command.arg(match way {
        Way::Send => "send",
        Way::Receive => "receive",
    });
    command.args([TAP, &size.to_string(), &count.to_string()]);
    command
}

/// Frames a second of one that sends or receives so many.
fn rate(tap: &Path, way: Way, size: u32, count: u32, command: Command) -> Result<f64> {
    let mut process = Timed::spawn(command)?;
    if matches!(way, Way::Receive) {
        process.wait_for(b'r')?;
        let mut fill = Command::new(tap);
        run::quiet(fill.args(["fill", TAP, &size.to_string(), &count.to_string()]))?;
        process.feed(b'g')?;
    }
    let first = process.wait_for(b'<')?;
    let last = process.wait_for(b'>')?;
    process.wait()?;
    Ok(float(count.into()) / last.duration_since(first).as_secs_f64())
}
