//! A network of a test's own: a network namespace in which the test, its guests and its taps are alone.

use std::io;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::context::Skip;

/// Runs `test` on a thread that has a network namespace of its own, as have the processes it starts.
pub fn alone<T: Send>(test: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let body = || {
        // SAFETY: the call concerns this thread alone, which has nothing open yet.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let error = io::Error::last_os_error();
            return Err(Skip(format!(
                "no network namespace for the test: {error}; be root"
            ))
            .into());
        }
        ip("link set lo up")?;
        test()
    };
    thread::scope(|scope| scope.spawn(body).join())
        .unwrap_or_else(|_| Err(anyhow!("the test itself panicked")))
}

/// Runs `ip` with `words`.
pub fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .context("ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {words}: {}", said.trim());
    Ok(())
}

/// The host's two addresses on `tap`, and the tap up.
pub fn give_addresses(tap: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{tap}/accept_dad"), "0")?;
    ip(&format!("addr add 10.0.0.1/24 dev {tap}"))?;
    ip(&format!("addr add fd00::1/64 dev {tap}"))?;
    ip(&format!("link set {tap} up"))
}
