//! Whole kernels in the lab, from spawn to their init, beside QEMU's microvm where it boots them there. The lab is
//! slow, so only ratios mean something: mvm's to QEMU's, and that of mvm's own time to the whole. The second is of a lab
//! whose clock counts instructions: its emulator takes long for code that is run once, such as that of mvm's start, and
//! its ticks are too few for what takes so short.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Tools;
use super::programs;
use super::stats::float;
use super::table::{Case, Goal};
use crate::cpio::Archive;
use crate::debian;
use crate::guest::Guests;
use crate::lab::{self, Capture};

/// Of the lab: room for a guest of 4 GiB.
const LAB_MIB: u32 = 6144;
/// For the lab's command, which takes a tenth of it.
const LIMIT: u64 = 1200;
/// What QEMU needs beside itself.
const FIRMWARE: [&str; 5] = [
    "bios-microvm.bin",
    "qboot.rom",
    "pvh.bin",
    "linuxboot_dma.bin",
    "kvmvapic.bin",
];

/// One way to boot: what differs from an ELF kernel that is quiet, with 1 CPU and 128 MiB.
#[derive(Debug, Clone, Copy)]
struct Way {
    name: &'static str,
    kernel: &'static str,
    words: &'static str,
    cpus: u32,
    mib: u32,
}

const PLAIN: Way = Way {
    name: "ELF, quiet, 1 CPU, 128 MiB",
    kernel: "tiny-vmlinux",
    words: "quiet",
    cpus: 1,
    mib: 128,
};

const WAYS: [Way; 5] = [
    PLAIN,
    Way {
        name: "loud",
        words: "",
        ..PLAIN
    },
    Way {
        name: "bzImage",
        kernel: "tiny-bzimage",
        ..PLAIN
    },
    Way {
        name: "4 CPUs",
        cpus: 4,
        ..PLAIN
    },
    Way {
        name: "4 GiB",
        mib: 4096,
        ..PLAIN
    },
];

impl Way {
    /// The command of mvm's, in the lab.
    fn mvm(self) -> String {
        let Self {
            kernel,
            words,
            cpus,
            mib,
            ..
        } = self;
        format!(
            "mvm --kernel /guest/{kernel} --initrd /work/boot.cpio --cpus {cpus} --mem {mib}M --append '{words}'"
        )
    }

    /// QEMU's with the same.
    fn qemu(self) -> String {
        let Self {
            kernel,
            words,
            cpus,
            mib,
            ..
        } = self;
        format!(
            "/work/qemu-system-x86_64 -L /work -M microvm,rtc=off -accel kvm -cpu host -smp {cpus} -m {mib} \
             -nodefaults -no-user-config -display none -serial stdio -kernel /guest/{kernel} -initrd /work/boot.cpio \
             -append 'console=ttyS0 reboot=t panic=-1 {words}'"
        )
    }
}

/// Measures each way; nothing where there is no lab.
pub fn cases(tools: &Tools) -> Result<Vec<Case>> {
    let guests = match Guests::open().and_then(|guests| guests.tiny().map(|_| guests)) {
        Ok(guests) => guests,
        Err(error) => {
            println!("boot: not measured: {error:#}");
            return Ok(Vec::new());
        }
    };
    let boot = programs::host(&tools.directory, "boot")?;
    let mut options = lab::Options::command(Vec::new());
    options.with = vec![archive(tools, &boot)?, boot];
    let with_qemu = debian::find("qemu-system-x86_64")
        .map(|qemu| options.with.extend(firmware().into_iter().chain([qemu])))
        .is_some();
    let mut ways = WAYS.to_vec();
    if available_mib() > u64::from(LAB_MIB) + 1024 {
        options.mem = LAB_MIB;
    } else {
        println!("4 GiB: not measured, this machine has no memory for it");
        ways.retain(|way| way.mib < options.mem / 2);
    }
    let samples = tools.samples.min(3);
    options.timeout = Some(LIMIT);
    let mut run = |with_qemu, count| -> Result<String> {
        let script = script(&ways, samples, with_qemu);
        options.command = vec!["sh".into(), "-c".into(), script.into()];
        options.count_instructions = count;
        let mvm = std::slice::from_ref(&tools.mvm);
        let ended = lab::boot(&guests, mvm, &options, Capture::Output)?;
        ensure!(ended.status == 0, "the lab was ended early");
        Ok(String::from_utf8_lossy(&ended.output).into_owned())
    };
    let said = run(with_qemu, false)?;
    let counted = run(false, true)?;
    let mut cases = Vec::new();
    for (number, way) in ways.iter().enumerate() {
        let mvm = times(&said, &format!("mvm{number}"));
        let whole: Vec<f64> = mvm.iter().map(|(whole, _)| *whole).collect();
        let instructions = times(&counted, &format!("mvm{number}"));
        if whole.len() < 3 || instructions.len() < 3 {
            println!("{}: not measured, mvm did not get to init", way.name);
            continue;
        }
        let qemu: Vec<f64> = times(&said, &format!("qemu{number}"))
            .into_iter()
            .map(|(whole, _)| whole / 1e3)
            .collect();
        let beside = (qemu.len() == whole.len()).then_some(("QEMU microvm", qemu));
        if beside.is_none() {
            println!(
                "{}: not measured beside QEMU, which did not get to init",
                way.name
            );
        }
        cases.push(Case {
            name: way.name.into(),
            unit: "ms",
            mvm: whole.iter().map(|whole| whole / 1e3).collect(),
            goal: beside.as_ref().map(|_| Goal::Ratio(1.0)),
            beside,
        });
        let share = instructions.iter().map(|(whole, own)| 100.0 * own / whole);
        cases.push(Case {
            name: format!("{}: mvm's own instructions", way.name),
            unit: "%",
            mvm: share.collect(),
            beside: None,
            goal: Some(Goal::Most(3.0)),
        });
    }
    Ok(cases)
}

/// An initramfs whose init is `boot.c`.
fn archive(tools: &Tools, boot: &Path) -> Result<PathBuf> {
    let path = tools.directory.join("boot.cpio");
    let mut archive =
        Archive::new(File::create(&path).with_context(|| path.display().to_string())?);
    archive.directory("dev")?;
    archive.file("init", boot)?;
    archive.finish()?;
    Ok(path)
}

fn firmware() -> Vec<PathBuf> {
    let files = FIRMWARE.map(|name| Path::new("/usr/share/qemu").join(name));
    files.into_iter().filter(|file| file.exists()).collect()
}

/// All ways by turns; the first turn is not counted.
fn script(ways: &[Way], samples: u32, with_qemu: bool) -> String {
    let mut script = format!("for turn in $(seq 0 {samples}); do\n");
    for (number, way) in ways.iter().enumerate() {
        let mut line = |who: &str, command: &str| {
            let case = format!("{who}{number}");
            script.push_str(&format!("/work/boot $turn:{case} {command} 2>/dev/null\n"));
        };
        line("mvm", &way.mvm());
        if with_qemu {
            line("qemu", &way.qemu());
        }
    }
    // The status is whether all was run, not whether the last one booted.
    script + "done\ntrue\n"
}

/// What `boot.c` said of a case: the whole and the VMM's own, in microseconds.
fn times(said: &str, case: &str) -> Vec<(f64, f64)> {
    let counted = |line: &&str| !line.starts_with("boot 0:");
    let time = |line: &str| {
        let mut words = line.strip_prefix("boot ")?.split_whitespace();
        let (_, of) = words.next()?.split_once(':')?;
        let mut number = || words.next()?.parse::<u64>().ok().map(float);
        (of == case).then_some((number()?, number()?))
    };
    said.lines().filter(counted).filter_map(time).collect()
}

/// Memory that can be had here.
fn available_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default() / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_one_case_without_its_first_turn() {
        let said = "boot 0:mvm1 900 90\nboot 1:mvm1 100 3\nboot 1:mvm10 7 7\nboot 1:qemu1 failed: no 1 2\n\
            noise\nboot 2:mvm1 110 4\n";
        assert_eq!(times(said, "mvm1"), [(100.0, 3.0), (110.0, 4.0)]);
        assert_eq!(times(said, "qemu1"), []);
    }

    #[test]
    fn both_have_the_same_guest() {
        let script = script(&WAYS, 3, true);
        for way in WAYS {
            for size in [
                format!("--cpus {} --mem {}M", way.cpus, way.mib),
                format!("-smp {} -m {}", way.cpus, way.mib),
            ] {
                assert!(script.contains(&size), "{size}");
            }
        }
        assert!(!self::script(&WAYS, 3, false).contains("qemu"));
    }
}
