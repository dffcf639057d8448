//! Boots a guest with a virtio device of the embedder's own: `custom_device KERNEL IMAGE PROGRAM [ARG]...`.
//!
//! The device is a source of entropy that gives out nothing but sixes; Linux drives it like any other, and
//! `head -c 4 /dev/hwrng` in the guest shows it. For a program in the guest it is what a die of one's own
//! is at a table, so it takes the place of the VM's random number generator.

use std::env;
use std::error::Error;
use std::io;
use std::sync::Arc;

use vmm::config::{CommandConfig, VmConfig};
use vmm::console::Console;
use vmm::devices::io::QueueIo;
use vmm::devices::virtio::{
    ActivateError, DeviceFault, Features, Lane, QueueIndex, QueueWorker, VirtioDevice, VirtioKind,
};
use vmm::{ThreadHooks, VmBuilder};

/// What the driver sees beside the queue: Virtio 1.2 §5.4.
#[derive(Debug)]
struct LoadedDie;

impl VirtioDevice for LoadedDie {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> Features {
        Features::VERSION_1
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _acked: Features) -> Result<Vec<Lane>, ActivateError> {
        Ok(Lane::whole(Sixes))
    }
}

/// The data path, on an I/O thread.
struct Sixes;

impl QueueWorker for Sixes {
    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while let Some(chain) = io.pop(queue)? {
            let mut written = 0;
            for buffer in &chain.writable {
                buffer.copy_from(&vec![b'6'; buffer.len()]);
                written += u32::try_from(buffer.len()).unwrap_or(0);
            }
            io.complete(queue, chain.head, written)?;
        }
        Ok(())
    }
}

/// Is told of each thread that runs or serves the guest: the place to pin it, or to confine it.
#[derive(Debug)]
struct Tell;

impl ThreadHooks for Tell {
    fn started(&self, thread: &str) {
        eprintln!("thread: {thread}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let mut config = VmConfig::new(args.next().ok_or("no kernel")?);
    config.rootfs = Some(args.next().ok_or("no image")?.parse()?);
    config.rng.off = true;
    config.command = Some(CommandConfig::new(args));
    let vm = VmBuilder::new(config)
        .device(Box::new(LoadedDie))
        .hooks(Arc::new(Tell))
        // A console sink of one's own: any writer.
        .console(Console::from_parts(None, Box::new(io::sink())))
        .build()?;
    let exit = vm.run()?.wait()?;
    eprintln!("{exit:?}");
    Ok(())
}
