//! What this process has used of its host.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// CPU time and memory, the guest's included: its vCPUs are threads of this process, its memory is mapped
/// into it. getrusage(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Time in user space, and in the guest.
    pub user: Duration,
    /// Time in the kernel.
    pub system: Duration,
    /// The most memory it had at any time, in KiB.
    pub peak_kib: u64,
}

impl Usage {
    /// So far.
    pub fn now() -> io::Result<Self> {
        let mut usage = MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: getrusage writes one rusage to the pointer given.
        if unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so it is written.
        let usage = unsafe { usage.assume_init() };
        Ok(Self {
            user: duration(usage.ru_utime),
            system: duration(usage.ru_stime),
            peak_kib: u64::try_from(usage.ru_maxrss).unwrap_or_default(),
        })
    }
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default())
        + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_uses_time() {
        let before = Usage::now().unwrap();
        assert!(before.peak_kib > 100, "{before:?}");
        let busy = || {
            let after = Usage::now().unwrap();
            after.user + after.system > before.user + before.system
        };
        while !busy() {}
    }
}
