//! When a file that is the guest's memory lets it down.
//!
//! Where the host has no page for what the guest touches, because the file was truncated or cannot be read,
//! KVM_RUN can fail (EFAULT). Most often it does not: KVM leaves the page to a thread of the kernel's, does not
//! ask how that went, and lets the vCPU try again, for good (`virt/kvm/async_pf.c`, async_pf_execute). So the
//! files are watched, by inotify, which costs nothing until one changes. Runs on an I/O thread.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use devices::io::PreparedIo;
use devices::virtio::pmem::Window;
use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use vmm_sys_util::epoll::EventSet;

use crate::catalog::Windows;
use crate::error::VmError;
use crate::lifecycle::Lifecycle;

/// The first of the files that is shorter than it was when the guest got it.
fn cut_short(windows: &Windows) -> Option<VmError> {
    let mut files = windows.iter().map(|placed| &placed.window);
    let cut = files.find(|window| window.is_cut_short())?;
    Some(VmError::PmemTruncated(cut.path().to_owned()))
}

/// Why KVM found no page for the guest, if the guest has files for memory: one was truncated, or its file
/// system fails.
pub(crate) fn explain_fault(windows: &Windows) -> Option<VmError> {
    let first = windows.first()?;
    let failed = || VmError::PmemFault(first.window.path().to_owned());
    Some(cut_short(windows).unwrap_or_else(failed))
}

/// Has an I/O thread watch `windows`, if there are any.
pub(crate) fn watch(windows: &Windows, lifecycle: &Arc<Lifecycle>, thread: &mut PreparedIo) {
    if windows.is_empty() {
        return;
    }
    match WindowWatcher::new(windows.clone(), lifecycle.clone()) {
        Ok(watcher) => thread.add(Box::new(watcher)),
        Err(error) => log::warn!("{UNNOTICED}: {error}"),
    }
}

const UNNOTICED: &str = "a pmem that is truncated will not be noticed, and freeze the guest";

/// Ends the VM when one of its files is truncated.
#[derive(Debug)]
struct WindowWatcher {
    windows: Windows,
    changes: OwnedFd,
    lifecycle: Arc<Lifecycle>,
}

impl WindowWatcher {
    /// Watches `windows`.
    fn new(windows: Windows, lifecycle: Arc<Lifecycle>) -> io::Result<Self> {
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        for placed in &windows {
            inotify::add_watch(&changes, watched(&placed.window), WatchFlags::MODIFY)?;
        }
        Ok(Self {
            windows,
            changes,
            lifecycle,
        })
    }
}

/// The file that is open, whatever has its name by now.
fn watched(window: &Window) -> String {
    format!("/proc/self/fd/{}", window.fd().as_raw_fd())
}

impl MutEventSubscriber for WindowWatcher {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.changes, EventSet::IN)) {
            log::warn!("{UNNOTICED}: {error}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Which of them changed is no matter: they are few, and somebody who writes to one is rare.
        while matches!(rustix::io::read(&self.changes, &mut [0; 1024]), Ok(1..)) {}
        if let Some(error) = cut_short(&self.windows) {
            self.lifecycle.end(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, Instant};

    use devices::mem::GuestMemory;
    use devices::virtio::pmem::Pmem;
    use vm_memory::GuestAddress;

    use super::*;
    use crate::catalog::PlacedWindow;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_file_that_is_truncated_ends_the_vm_and_one_that_is_written_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = File::create(&path).unwrap();
        file.set_len(4 * MIB).unwrap();
        let pmem = Pmem::open(&path, false, 1 << 32).unwrap();
        // What has its name now is another file.
        std::fs::remove_file(&path).unwrap();
        File::create(&path).unwrap();

        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let lifecycle = Arc::new(Lifecycle::new(memory, None).unwrap());
        let windows = vec![PlacedWindow {
            start: pmem.start(),
            window: pmem.window(),
        }];
        let mut prepared = PreparedIo::new().unwrap();
        watch(&windows, &lifecycle, &mut prepared);
        let _thread = prepared
            .start("test", || (), |error| panic!("{error}"))
            .unwrap();
        assert!(matches!(
            explain_fault(&windows),
            Some(VmError::PmemFault(_))
        ));

        std::os::unix::fs::FileExt::write_at(&file, b"written", MIB).unwrap();
        file.set_len(5 * MIB).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!lifecycle.is_over());
        file.set_len(2 * MIB).unwrap();
        let limit = Instant::now() + Duration::from_secs(30);
        while !lifecycle.is_over() {
            assert!(Instant::now() < limit, "it was not noticed");
            std::thread::sleep(Duration::from_millis(5));
        }
        let why = explain_fault(&windows).unwrap().to_string();
        assert!(why.contains("was truncated"), "{why}");
        assert!(explain_fault(&Vec::new()).is_none());
    }
}
