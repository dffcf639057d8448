//! Runs a command in a VM, and prints what came of it: `command KERNEL IMAGE PROGRAM [ARG]...`.

use std::env;
use std::error::Error;
use std::time::Duration;

use vmm::config::VmConfig;
use vmm::run::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let mut config = VmConfig::new(args.next().ok_or("no kernel")?);
    config.rootfs = Some(args.next().ok_or("no image")?.parse()?);
    let output = Command::new(config, args.next().ok_or("no program")?)
        .args(args)
        .timeout(Duration::from_secs(60))
        .output()?;
    print!("{output}");
    Ok(())
}
