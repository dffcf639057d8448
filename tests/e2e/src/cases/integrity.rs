//! Every engine, cache mode and format at once: sectors written at random, several requests at a time, are what they
//! must be, at once and on the next boot.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, ensure};

use super::image::empty_qcow2;
use super::tests;
use crate::context::{Context, Kernel};

tests! { "integrity":
    LONG of_every_engine_cache_and_format,
}

const MIB: u64 = 1 << 20;
/// Of each disk.
const SIZE: u64 = 4 * MIB;
/// Requests of each thread in the guest.
const STEPS: u32 = 120;

/// Engines, each with both cache modes. qcow2 has its own way, whatever the engine.
const ENGINES: [&str; 2] = ["engine=sync", "engine=io_uring"];
const CACHES: [&str; 2] = ["cache=writeback", "cache=none"];

/// Which of the formats is QEMU's.
const QCOW2: usize = 2;

/// A raw image, an overlay, a qcow2 image, and one of two files: the path, with what the option has beside it.
fn disk(context: &Context, format: usize, name: &str) -> Result<OsString> {
    Ok(match format {
        0 => context.image(name, SIZE)?.into_os_string(),
        1 => {
            let mut option = context.image(name, SIZE)?.into_os_string();
            option.push(",overlay=");
            option.push(context.path(&format!("{name}-overlay")));
            option
        }
        QCOW2 => {
            let path = context.path(&format!("{name}.qcow2"));
            empty_qcow2(&path, SIZE)?;
            path.into_os_string()
        }
        _ => {
            let mut option = context.image(name, SIZE / 2)?.into_os_string();
            option.push("+");
            option.push(context.image(&format!("{name}-more"), SIZE / 2)?);
            option.push(",layout=stripe:64K");
            option
        }
    })
}

fn of_every_engine_cache_and_format(context: &Context) -> Result<()> {
    let mut disks = Vec::new();
    let ways = ENGINES
        .iter()
        .flat_map(|engine| CACHES.map(|cache| (engine, cache)));
    for (turn, (engine, cache)) in ways.enumerate() {
        // The guest has more requests under way on some disks than on others; each format gets all of that.
        for place in 0..4 {
            let format = (place + turn) % 4;
            let mut option = disk(context, format, &format!("disk-{turn}-{format}"))?;
            let engine = if format == QCOW2 {
                "engine=auto"
            } else {
                engine
            };
            option.push(format!(",{engine},{cache}"));
            disks.push(option);
        }
    }
    let mut rootfs = context.guest("rootfs").into_os_string();
    rootfs.push(",ro");
    for what in ["write", "check"] {
        let script = format!("disks-random,{what},1,{STEPS}");
        let mvm = context.script(Kernel::TinyElf, Path::new(&rootfs), &script)?;
        let mvm = mvm.args("--cpus 2 --io-threads 2");
        let mvm = disks
            .iter()
            .fold(mvm, |mvm, disk| mvm.disk(Path::new(disk), ""));
        let outcome = mvm.exits_with(0)?;
        let count = outcome.value("disks as they must be")?;
        ensure!(count == disks.len().to_string(), "{count} disks");
    }
    Ok(())
}
