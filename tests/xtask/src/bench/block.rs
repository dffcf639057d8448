//! A disk: a guest that drives the ring by itself, beside fio on the same file from the host, with the same pattern.
//!
//! The guest looks at the ring until something is there, so what is measured is the way of a request through KVM's
//! doorbell, the I/O thread and the host's file, without an interrupt. So does a thread beside fio: where the kernel has
//! threads of its own at work, as for what io_uring writes to the page cache, they have one processor less in both.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::process::{Timed, beside_a_busy_thread};
use super::programs;
use super::stats::{count, float};
use super::table::{Case, Goal};
use super::{Tools, by_turns};
use crate::debian::{self, Program};
use crate::run;

/// Of the file. It stays in the host's page cache, where that is used: the host's disk is not what is measured.
const LEN: u64 = 128 << 20;
/// What each sample takes of fio, and about what it takes of mvm.
const SECONDS: f64 = 0.25;
const DEPTH: u32 = 32;

#[derive(Debug, Clone, Copy)]
struct Pattern {
    name: &'static str,
    /// fio's name of it.
    rw: &'static str,
    write: bool,
    random: bool,
    size: u32,
}

const PATTERNS: [Pattern; 4] = [
    Pattern::new("4 KiB random read", "randread", false, true, 4 << 10),
    Pattern::new("4 KiB random write", "randwrite", true, true, 4 << 10),
    Pattern::new("128 KiB read", "read", false, false, 128 << 10),
    Pattern::new("128 KiB write", "write", true, false, 128 << 10),
];

/// How the file is read and written.
#[derive(Debug, Clone, Copy)]
struct Way {
    /// mvm's engine.
    engine: &'static str,
    /// fio's that makes the same system calls.
    fio: &'static str,
    /// How many requests are under way at most, whatever the guest gives, and so how many buffers are in use.
    most: u32,
    /// Around the page cache.
    direct: bool,
}

impl Way {
    const ALL: [Self; 4] = [
        Self::new("sync", "psync", 1, false),
        Self::new("io_uring", "io_uring", DEPTH, false),
        Self::new("sync", "psync", 1, true),
        Self::new("io_uring", "io_uring", DEPTH, true),
    ];

    const fn new(engine: &'static str, fio: &'static str, most: u32, direct: bool) -> Self {
        Self {
            engine,
            fio,
            most,
            direct,
        }
    }

    /// mvm's word for whether the page cache is used.
    fn cache(self) -> &'static str {
        if self.direct { "none" } else { "writeback" }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = if self.direct { ", cache=none" } else { "" };
        write!(f, "{}{direct}", self.engine)
    }
}

impl Pattern {
    const fn new(
        name: &'static str,
        rw: &'static str,
        write: bool,
        random: bool,
        size: u32,
    ) -> Self {
        Self {
            name,
            rw,
            write,
            random,
            size,
        }
    }
}

/// Measures each pattern in each way; nothing where there is no fio.
pub fn cases(tools: &Tools) -> Result<Vec<Case>> {
    if let Err(error) = debian::require(&[Program("fio", "fio")]) {
        println!("block: not measured: {error:#}");
        return Ok(Vec::new());
    }
    programs::guest_in_c(&tools.directory, "block")?;
    let file = tools.directory.join("block.img");
    fs::write(&file, vec![0xa5; usize::try_from(LEN)?])?;
    let mut cases = Vec::new();
    for way in Way::ALL {
        // A host may have no io_uring, a file system no O_DIRECT.
        if let Err(error) = fio(&file, PATTERNS[0], way, 1) {
            println!("block with {way}: not measured: {error:#}");
            continue;
        }
        for pattern in PATTERNS {
            for depth in [DEPTH, 1] {
                cases.push(case(tools, &file, pattern, way, depth)?);
            }
        }
    }
    fs::remove_file(&file)?;
    Ok(cases)
}

fn case(tools: &Tools, file: &Path, pattern: Pattern, way: Way, depth: u32) -> Result<Case> {
    let rate = fio(file, pattern, way, depth)?;
    let requests = count(rate * SECONDS).max(u64::from(depth) * 16);
    let (mvm, fio) = by_turns(
        tools.samples.min(7),
        || mvm(tools, file, pattern, way, (depth, requests)),
        || beside_a_busy_thread(|| fio(file, pattern, way, depth)),
    )?;
    let (unit, goal, of): (_, _, fn(f64, u32) -> f64) = match (depth, pattern.random) {
        (1, _) => ("us each", Goal::Added(15.0), |rate, _| 1e6 / rate),
        (_, true) => ("k/s", Goal::Share(0.9), |rate, _| rate / 1e3),
        (_, false) => ("MB/s", Goal::Share(0.9), |rate, size| {
            rate * f64::from(size) / 1e6
        }),
    };
    let samples = |rates: Vec<f64>| rates.iter().map(|rate| of(*rate, pattern.size)).collect();
    Ok(Case {
        name: format!("{}, {way}, depth {depth}", pattern.name),
        unit,
        mvm: samples(mvm),
        beside: Some(("fio", samples(fio))),
        goal: Some(goal),
    })
}

/// Requests a second of a guest that makes so many.
fn mvm(
    tools: &Tools,
    file: &Path,
    pattern: Pattern,
    way: Way,
    (depth, requests): (u32, u64),
) -> Result<f64> {
    let mut command = tools.mvm("block");
    command
        .arg("--disk")
        .arg(format!(
            "{},engine={},cache={}",
            file.display(),
            way.engine,
            way.cache()
        ))
        .arg("--cmdline")
        .arg(format!(
            "write={} random={} size={} depth={depth} buffers={} count={requests} blocks={} seed={requests}",
            u8::from(pattern.write),
            u8::from(pattern.random),
            pattern.size,
            depth.min(way.most),
            LEN / u64::from(pattern.size),
        ));
    warm(file, way)?;
    let mut process = Timed::spawn(command)?;
    let first = process.wait_for(b'<')?;
    let last = process.wait_for(b'>')?;
    process.wait()?;
    Ok(float(requests) / last.duration_since(first).as_secs_f64())
}

/// Requests a second of fio's, which looks at no clock meanwhile.
fn fio(file: &Path, pattern: Pattern, way: Way, depth: u32) -> Result<f64> {
    let mut command = Command::new("fio");
    command
        .args(["--name=bench", "--allow_file_create=0"])
        .args(["--thread", "--norandommap", "--gtod_reduce=1"])
        .args(["--time_based", "--output-format=json"])
        .arg(format!("--runtime={}ms", SECONDS * 1e3))
        .arg(format!("--filename={}", escaped(file)))
        .arg(format!("--rw={}", pattern.rw))
        .arg(format!("--bs={}", pattern.size))
        .arg(format!("--direct={}", u8::from(way.direct)))
        .arg(format!("--invalidate={}", u8::from(way.direct)))
        .arg(format!("--ioengine={}", way.fio))
        .arg(format!("--iodepth={}", depth.min(way.most)));
    warm(file, way)?;
    let output = command.output().context("fio")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("fio: {}: {}", output.status, run::tail(&said, 1));
    }
    rate_of(&String::from_utf8_lossy(&output.stdout), pattern.write)
}

/// Sees to it that the file is in the page cache, where that is used, as a host may take what is cold out of it; and that
/// the host does not write during a sample what was written before it.
fn warm(file: &Path, way: Way) -> Result<()> {
    let mut file = fs::File::open(file)?;
    file.sync_all()?;
    if !way.direct {
        std::io::copy(&mut file, &mut std::io::sink())?;
    }
    Ok(())
}

/// A colon separates files for fio.
fn escaped(file: &Path) -> String {
    file.display().to_string().replace(':', "\\:")
}

/// The rate that fio's report tells.
fn rate_of(report: &str, write: bool) -> Result<f64> {
    // Notes may come before it.
    let json = report.find('{').map_or("", |start| &report[start..]);
    let report: Value = serde_json::from_str(json).context("fio's report")?;
    let job = &report["jobs"][0];
    if let Some(error) = job["error"].as_i64().filter(|error| *error != 0) {
        bail!(
            "fio: {}",
            std::io::Error::from_raw_os_error(i32::try_from(error)?)
        );
    }
    let rate = job[if write { "write" } else { "read" }]["iops"].as_f64();
    rate.filter(|rate| *rate > 0.0)
        .context("fio's report tells no rate")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"note: something
{ "fio version": "fio-3.33", "jobs": [ { "error": 0, "read": { "iops": 1234.5 }, "write": { "iops": 0.0 } } ] }"#;

    #[test]
    fn a_report_of_fios_tells_the_rate() {
        assert_eq!(rate_of(REPORT, false).expect("a rate"), 1234.5);
    }

    #[test]
    fn no_rate_is_an_error_and_no_number() {
        let error = |report: &str| rate_of(report, true).expect_err("no rate").to_string();
        assert_eq!(error(REPORT), "fio's report tells no rate");
        assert_eq!(error("fio: nothing to do"), "fio's report");
        let failed = REPORT.replace("\"error\": 0", "\"error\": 38");
        assert!(error(&failed).starts_with("fio: Function not implemented"));
    }
}
