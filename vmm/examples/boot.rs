//! Boots a kernel on a disk image, as `mvm --kernel KERNEL --rootfs IMAGE` does: `boot KERNEL [IMAGE]`.

use std::env::args_os;
use std::error::Error;

use vmm::VmBuilder;
use vmm::config::{DiskConfig, VmConfig};
use vmm::console::{Console, ConsoleConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = args_os().skip(1);
    let mut config = VmConfig::new(args.next().ok_or("usage: boot KERNEL [IMAGE]")?);
    if let Some(image) = args.next() {
        config.rootfs = Some(image.to_string_lossy().parse::<DiskConfig>()?);
    }
    let console = Console::open(&ConsoleConfig::default())?;
    let vm = VmBuilder::new(config).console(console).build()?;
    let exit = vm.run()?.wait()?;
    eprintln!("the guest ended: {:?}", exit.reason);
    Ok(())
}
