//! What the tests of the `mvm` binary share: running it under a time limit, and guests of a few bytes.

// Each test binary uses its part of this.
#![allow(dead_code)]

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

#[path = "../../../vmm/tests/guest/mod.rs"]
mod guest;

pub use guest::*;

/// Longer than anything here takes, shorter than anyone's patience.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test, with nothing on its standard input and no say of the environment.
pub fn mvm() -> Command {
    program(env!("CARGO_BIN_EXE_mvm"))
}

/// The same for a program that starts it.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("NO_COLOR");
    let prepare = || {
        // A background job of a shell, and what nohup(1) starts, ignore some, and mvm would go on to.
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTERM] {
            // SAFETY: setting the default handler of a signal touches no memory of this process.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called: these are system
    // calls, and nothing is allocated.
    unsafe { command.pre_exec(prepare) };
    command
}

/// A child that does not outlive a test that fails.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("mvm starts"))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("a child can be signalled");
    }

    /// Waits for the end; where it does not come the test fails.
    pub fn wait(&mut self) -> ExitStatus {
        let mut ended = None;
        until("mvm's end", || {
            ended = self.0.try_wait().expect("a child can be waited for");
            ended.is_some()
        });
        ended.expect("it has ended")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail for a child that has been waited for, as they should.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs to the end, or fails the test.
pub fn finish(command: &mut Command) -> Output {
    let mut running = Running::start(command);
    let child = &mut running.0;
    let drain = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_end(&mut text).expect("a pipe can be read");
            }
            text
        })
    };
    let stdout = drain(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = drain(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let status = running.wait();
    Output {
        status,
        stdout: stdout.join().expect("stdout is read"),
        stderr: stderr.join().expect("stderr is read"),
    }
}

/// Waits until something holds, or fails the test.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What was written, which is text.
pub fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("UTF-8")
}

/// Whether VMs can be made here; says so where not.
pub fn has_kvm() -> bool {
    let open = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    match open {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: /dev/kvm does not open: {error}");
            false
        }
    }
}

/// A directory of files for one test.
#[derive(Debug)]
pub struct Files(TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory for the test"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of these bytes.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a file for the test");
        path
    }

    /// A sparse file of zeroes.
    pub fn zeroes(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        let file = fs::File::create(&path).expect("a file for the test");
        file.set_len(len).expect("a sparse file");
        path
    }

    /// A kernel of this machine code.
    pub fn kernel(&self, code: &[u8]) -> PathBuf {
        self.file("kernel", &elf(code))
    }
}

/// The path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
