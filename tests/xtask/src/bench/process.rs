//! Processes that are timed by what comes out of them.

use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{hint, thread};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// After this a process that says nothing is given up: nothing measured here takes a tenth of it.
const PATIENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// A process whose output is read byte by byte. It ends with this.
#[derive(Debug)]
pub struct Timed {
    child: Child,
    output: ChildStdout,
    /// When it was started.
    pub started: Instant,
}

impl Timed {
    /// Starts a command.
    pub fn spawn(mut command: Command) -> Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("{}", command.get_program().display()))?;
        let output = child.stdout.take().context("no pipe")?;
        Ok(Self {
            child,
            output,
            started,
        })
    }

    /// When the guest's next byte arrives, which has to be this one.
    pub fn wait_for(&mut self, byte: u8) -> Result<Instant> {
        let mut ready = [PollFd::new(&self.output, PollFlags::IN)];
        if poll(&mut ready, Some(&PATIENCE))? == 0 {
            bail!("nothing in {} s", PATIENCE.tv_sec);
        }
        let mut said = [0];
        let count = self.output.read(&mut said)?;
        let now = Instant::now();
        if count == 0 || said[0] != byte {
            bail!(
                "the guest did not say what it should: {:?}",
                said.get(..count)
            );
        }
        Ok(now)
    }

    /// Types a byte.
    pub fn feed(&mut self, byte: u8) -> Result<()> {
        let input = self.child.stdin.as_mut().context("no pipe")?;
        Ok(input.write_all(&[byte])?)
    }

    /// When the process is over, which has to be without an error.
    pub fn wait(mut self) -> Result<Instant> {
        let status = self.child.wait()?;
        let now = Instant::now();
        if !status.success() {
            bail!("{status}");
        }
        Ok(now)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `floor` with a thread beside it that waits as the guests here do, which look at a ring until something is there.
/// That takes a processor, and a machine may have two: what is compared with a VM has as many to itself.
pub fn beside_a_busy_thread<T>(floor: impl FnOnce() -> T) -> T {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                hint::spin_loop();
            }
        });
        let _over = Over(&over);
        floor()
    })
}

/// In milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
