//! What the tests do to the host they run on: its programs, and its loop devices.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::context::Skip;

/// Runs a program of the host's; what it printed.
pub fn host<I: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = I>,
) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{program}: {said}");
    Ok(said)
}

/// A loop device of the host's. Dropped, it is let go.
pub struct Loop(pub String);

impl Loop {
    /// One that has this file behind it.
    pub fn over(file: &Path) -> Result<Self> {
        // Whoever else is at it may take the one that was free a moment ago.
        for _ in 0..20 {
            let Ok(free) = host("losetup", ["-f"]) else {
                return Err(Skip("this host has no loop devices".to_owned()).into());
            };
            let device = free.trim().to_owned();
            if host("losetup", [OsStr::new(&device), file.as_os_str()]).is_ok() {
                return Ok(Self(device));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Err(Skip("this host lends no loop device".to_owned()).into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = host("losetup", ["-d", &self.0]);
    }
}
