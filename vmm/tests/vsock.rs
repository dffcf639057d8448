//! A real guest's vsock in the hands of the process that embeds the VM, with nothing in the file system. The guest
//! files are those of the lab, where `cargo xtask test` runs this; elsewhere it says that it was skipped.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use probe::talk;
use vmm::config::{DiskConfig, VmConfig, VsockConfig};
use vmm::vsock::VsockError;
use vmm::{ExitReason, VmBuilder};

const KERNEL: &str = "/guest/tiny-vmlinux";
const ROOTFS: &str = "/guest/rootfs";
/// Longer than a guest in the lab takes for anything.
const LIMIT: Duration = Duration::from_secs(120);
const PORT: u32 = 1024;

fn exchange(stream: impl Into<OwnedFd>, len: u64) -> JoinHandle<std::io::Result<u64>> {
    let stream = stream.into();
    thread::spawn(move || talk::exchange(stream, 1, len))
}

#[test]
fn the_embedder_and_its_guest_connect_to_each_other() {
    for file in [KERNEL, ROOTFS] {
        if !Path::new(file).exists() {
            println!("skipped: there is no {file}; cargo xtask test runs this in the lab");
            return;
        }
    }
    let mut config = VmConfig::new(KERNEL);
    config.rootfs = Some(DiskConfig {
        read_only: true,
        ..DiskConfig::new(ROOTFS)
    });
    config.append = Some(format!("mvm.test=probe,vsock,both,3,5000,{PORT}"));
    config.vsock = Some(VsockConfig::new(3));
    let vm = VmBuilder::new(config).build().unwrap();
    let vsock = vm.handle().vsock().unwrap().clone();
    // Before the guest runs, so that its first connection finds somebody.
    let listener = vsock.listen(PORT).unwrap();
    assert!(matches!(vsock.listen(PORT), Err(VsockError::InUse(PORT))));
    let running = vm.run().unwrap();

    let mut talks: Vec<_> = (0..3)
        .map(|_| exchange(listener.accept(Some(LIMIT)).unwrap(), 7000))
        .collect();
    // The guest connects at about the time it listens.
    let deadline = Instant::now() + LIMIT;
    while talks.len() < 6 {
        match vsock.connect(PORT, LIMIT) {
            Ok(stream) => talks.push(exchange(stream, 7000)),
            Err(VsockError::Refused(PORT)) if Instant::now() < deadline => {}
            Err(error) => panic!("{error}"),
        }
    }
    for talk in talks {
        assert_eq!(talk.join().unwrap().unwrap(), 5000);
    }
    assert_eq!(running.wait().unwrap().reason, ExitReason::PoweredOff);
    assert!(matches!(listener.accept(None), Err(VsockError::Over)));
    assert!(matches!(vsock.connect(PORT, LIMIT), Err(VsockError::Over)));
}
