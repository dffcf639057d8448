//! Memory of an idle VMM, without the guest's own.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Tools;
use super::process::Timed;
use super::stats::float;
use super::table::{Case, Goal};

/// Long enough for threads to have come to rest.
pub const REST: Duration = Duration::from_millis(300);

/// kB of a process, its guest's memory left out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Written by this process, and nobody else's.
    pub private_dirty: u64,
    /// Its own, and its share of what it shares.
    pub pss: u64,
}

/// Measures mvm with one disk and the devices that are there by default; with a card too where taps can be made.
pub fn cases(tools: &Tools) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, arguments) in devices(&tools.directory)? {
        let mut samples = Vec::new();
        for _ in 0..tools.samples.min(5) {
            let mut command = tools.mvm("IDLE");
            command.args(&arguments);
            let mut process = Timed::spawn(command)?;
            process.wait_for(b'h')?;
            thread::sleep(REST);
            samples.push(of(process.pid())?);
        }
        cases.extend(both(name, &samples));
    }
    Ok(cases)
}

/// Sets of devices that an idle VM has, the largest last, with their files in `directory`.
pub fn devices(directory: &Path) -> Result<Vec<(&'static str, Vec<String>)>> {
    let disk = directory.join("disk.img");
    fs::File::create(&disk)?.set_len(64 << 20)?;
    let mut sets = vec![(
        "one disk",
        vec!["--disk".to_owned(), disk.display().to_string()],
    )];
    if rustix::process::geteuid().is_root() && Path::new("/dev/net/tun").exists() {
        let mut with_net = sets[0].1.clone();
        with_net.extend(["--net".to_owned(), "tap=mvmbench0".to_owned()]);
        sets.push(("one disk, one tap", with_net));
    } else {
        println!("one tap: not measured, taps cannot be made here");
    }
    Ok(sets)
}

/// Both kinds of memory as cases, with what a VMM may have of each.
pub fn both(name: &str, samples: &[Memory]) -> [Case; 2] {
    let case = |what, most, kb: fn(&Memory) -> u64| Case {
        name: format!("{name}: {what}"),
        unit: "kB",
        mvm: samples.iter().map(|sample| float(kb(sample))).collect(),
        beside: None,
        goal: Some(Goal::Most(most)),
    };
    [
        case("private dirty", 300.0, |memory| memory.private_dirty),
        case("PSS", 2000.0, |memory| memory.pss),
    ]
}

/// What a process with a guest of 128 MiB has.
pub fn of(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = fs::read_to_string(&path).with_context(|| path)?;
    Ok(sum(&smaps, 128 << 10))
}

/// Adds up the mappings of less than `guest` kB.
fn sum(smaps: &str, guest: u64) -> Memory {
    let mut memory = Memory::default();
    let mut size = 0;
    for line in smaps.lines() {
        let Some((key, rest)) = line.split_once(':') else {
            continue;
        };
        let Some(kb) = rest
            .trim()
            .strip_suffix(" kB")
            .and_then(|kb| kb.trim().parse::<u64>().ok())
        else {
            continue;
        };
        match key {
            "Size" => size = kb,
            _ if size >= guest => {}
            "Private_Dirty" => memory.private_dirty += kb,
            "Pss" => memory.pss += kb,
            _ => {}
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_left_out() {
        let smaps = "7f00-7f10 rw-p 00000000 00:00 0 \nSize: 131072 kB\nPss: 4096 kB\nPrivate_Dirty: 4096 kB\n\
            5500-5510 r-xp 00000000 08:01 77   /bin/mvm\nSize: 64 kB\nPss: 32 kB\nPrivate_Dirty: 4 kB\n\
            5510-5520 rw-p 00000000 00:00 0 \nSize: 8 kB\nPss: 8 kB\nPss_Dirty: 8 kB\nPrivate_Dirty: 8 kB\n";
        let expected = Memory {
            private_dirty: 12,
            pss: 40,
        };
        assert_eq!(sum(smaps, 128 << 10), expected);
    }
}
