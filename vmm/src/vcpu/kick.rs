//! Getting a vCPU thread out of KVM_RUN, without a lost wake-up.
//!
//! A signal alone races with the thread on its way into KVM_RUN; so the handler sets `immediate_exit`
//! in the thread's own `kvm_run` page, which makes the next KVM_RUN return at once
//! (Documentation/virt/kvm/api.rst, "immediate_exit"). The signal's handler is process-wide, as signals
//! are; it does nothing on threads that are not vCPUs.

use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// Where this thread's `immediate_exit` is, while it runs a vCPU.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal is the first real-time one; nothing else in a VMM uses those.
fn signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: non-null only between `Attached::new` and its drop on this very thread, while the
        // vCPU's `kvm_run` mapping is alive; a byte store is async-signal-safe.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler, once in the life of the process.
pub(crate) fn install() -> Result<(), errno::Error> {
    static INSTALLED: OnceLock<Result<(), errno::Error>> = OnceLock::new();
    *INSTALLED.get_or_init(|| register_signal_handler(signal(), on_kick))
}

/// Makes the vCPU that `thread` runs return from KVM_RUN.
pub(crate) fn kick<T>(thread: &JoinHandle<T>) {
    // Fails only for a thread that has ended, which is what was wanted.
    let _ = thread.kill(signal());
}

/// Says that this thread runs a vCPU, until it is dropped.
pub(crate) struct Attached(());

impl Attached {
    /// Kicks of this thread reach `vcpu` from now on.
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
