//! A vsock: streams to a unix socket of the host and back, beside a socketpair, which copies each byte in and out once
//! as mvm does.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::process::{Timed, beside_a_busy_thread};
use super::programs;
use super::stats::float;
use super::table::{Case, Goal};
use super::{Tools, by_turns};

/// What the guest connects to (`vsock.c`).
const PORT: u32 = 52;

#[derive(Debug, Clone, Copy)]
struct Stream {
    name: &'static str,
    /// Of the guest's end: sends, receives, or both by turns (`vsock.c`, `stream.c`).
    mode: u8,
    /// Of a packet.
    size: u32,
    count: u32,
}

const STREAMS: [Stream; 5] = [
    Stream::new("64 KiB, guest to host", 1, 64 << 10, 4_000),
    Stream::new("64 KiB, host to guest", 2, 64 << 10, 4_000),
    Stream::new("4 KiB, guest to host", 1, 4 << 10, 20_000),
    Stream::new("4 KiB, host to guest", 2, 4 << 10, 20_000),
    Stream::new("round trips of a byte", 3, 1, 4_000),
];

impl Stream {
    const fn new(name: &'static str, mode: u8, size: u32, count: u32) -> Self {
        Self {
            name,
            mode,
            size,
            count,
        }
    }

    /// MODE SIZE COUNT of `stream.c`.
    fn arguments(self) -> [String; 3] {
        [
            self.mode.to_string(),
            self.size.to_string(),
            self.count.to_string(),
        ]
    }
}

/// Measures each stream.
pub fn cases(tools: &Tools) -> Result<Vec<Case>> {
    let peer = programs::host(&tools.directory, "stream")?;
    programs::guest_in_c(&tools.directory, "vsock")?;
    let mut cases = Vec::new();
    for stream in STREAMS {
        let (mvm, floor) = by_turns(
            tools.samples.min(20),
            || mvm(tools, &peer, stream),
            || {
                let mut command = Command::new(&peer);
                command.arg("pair").args(stream.arguments());
                beside_a_busy_thread(|| rate(Timed::spawn(command)?, stream.count))
            },
        )?;
        let (unit, scale) = match stream.mode {
            3 => ("k/s", 1e-3),
            _ => ("MB/s", f64::from(stream.size) / 1e6),
        };
        let samples = |rates: Vec<f64>| rates.iter().map(|rate| rate * scale).collect();
        cases.push(Case {
            name: stream.name.into(),
            unit,
            mvm: samples(mvm),
            beside: Some(("socketpair", samples(floor))),
            goal: Some(Goal::Share(0.8)),
        });
    }
    Ok(cases)
}

/// Packets a second of a guest's.
fn mvm(tools: &Tools, peer: &Path, stream: Stream) -> Result<f64> {
    let socket = tools.directory.join("vsock.socket");
    let door = format!("{}_{PORT}", socket.display());
    let mut listen = Command::new(peer);
    listen.arg("listen").args(stream.arguments()).arg(&door);
    let mut host = Timed::spawn(listen)?;
    host.wait_for(b'r')?;
    let mut command = tools.mvm("vsock");
    command
        .arg("--vsock")
        .arg(format!("cid=3,uds={}", socket.display()))
        .arg("--cmdline")
        .arg(format!(
            "mode={} size={} count={}",
            stream.mode, stream.size, stream.count
        ));
    let rate = rate(Timed::spawn(command)?, stream.count)?;
    host.wait()?;
    fs::remove_file(door)?;
    Ok(rate)
}

/// So many a second, from the first byte that is said to the last.
fn rate(mut process: Timed, count: u32) -> Result<f64> {
    let first = process.wait_for(b'<')?;
    let last = process.wait_for(b'>')?;
    process.wait()?;
    Ok(float(count.into()) / last.duration_since(first).as_secs_f64())
}
