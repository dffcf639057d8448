//! One case in a process of its own, which ends with it, and with mvm if that is killed.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, set_parent_process_death_signal,
};
use serde::Deserialize;

use super::case::Case;
use crate::report::Ran;

/// How a case went.
#[derive(Debug)]
pub struct Ended {
    /// Whether it passed.
    pub result: Ran,
    /// The exit status; none where a signal ended mvm.
    pub status: Option<u8>,
    /// How the VM ended, in a word.
    pub how: String,
    /// Why it did not pass, in one line; empty where it did.
    pub message: String,
    /// What there is to read where it did not pass.
    pub text: String,
    /// How long it took.
    pub time: Duration,
}

/// What is read of a case's report.
#[derive(Debug, Deserialize)]
struct Report {
    result: Ran,
    ended: String,
    message: Option<String>,
    kernel_errors: Vec<KernelError>,
    console_tail: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct KernelError {
    text: Vec<String>,
}

/// Most of a command's output that goes into the report.
const OUTPUT: u64 = 8 << 10;

/// Runs a case to its end, or until `stop` becomes readable. A case that passed leaves nothing behind.
pub fn run(case: &Case, stop: BorrowedFd<'_>) -> Ended {
    let start = Instant::now();
    let ended = start_and_wait(case, stop);
    let time = start.elapsed();
    let mut ended = match ended {
        Ok((_, true)) => Ended::unfit(Ran::Skipped, "it was interrupted".to_owned()),
        Ok((status, false)) => judge(case, status),
        Err(error) => Ended::unfit(Ran::Error, format!("it cannot be run: {error}")),
    };
    ended.time = time;
    if ended.result == Ran::Passed {
        // What cannot be removed does no harm.
        let _ = fs::remove_dir_all(&case.directory);
    }
    ended
}

impl Ended {
    /// Nothing came of it.
    pub fn unfit(result: Ran, message: String) -> Self {
        Self {
            result,
            status: None,
            how: "not-run".to_owned(),
            message,
            text: String::new(),
            time: Duration::ZERO,
        }
    }
}

/// The exit status, and whether it was interrupted.
fn start_and_wait(case: &Case, stop: BorrowedFd<'_>) -> io::Result<(ExitStatus, bool)> {
    let directory = &case.directory;
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(directory)?,
    }
    let settings = directory.join("settings.json");
    fs::write(&settings, serde_json::to_vec_pretty(&case.settings)?)?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--config")
        .arg(&settings)
        .stdin(Stdio::null())
        .stdout(File::create(directory.join("output.log"))?)
        .stderr(File::create(directory.join("stderr.log"))?)
        // A Ctrl-C at the terminal is this process's to pass on.
        .process_group(0);
    let prepare = || {
        // Also where this process ignores it, as under nohup(1): it is how a case is ended.
        // SAFETY: setting the default handler of a signal touches no memory of this process.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        Ok(set_parent_process_death_signal(Some(Signal::HUP))?)
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called: these are two system
    // calls, and nothing is allocated.
    unsafe { command.pre_exec(prepare) };
    wait(command.spawn()?, stop)
}

fn wait(mut child: Child, stop: BorrowedFd<'_>) -> io::Result<(ExitStatus, bool)> {
    let pid = Pid::from_child(&child);
    let watched = pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| {
        let mut fds = [
            PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
        ];
        while fds.iter().all(|fd| fd.revents().is_empty()) {
            match poll(&mut fds, None) {
                Err(error) if error != rustix::io::Errno::INTR => return Err(error),
                _ => {}
            }
        }
        Ok(fds[0].revents().is_empty())
    });
    let interrupted = match watched {
        Ok(interrupted) => interrupted,
        Err(error) => {
            let _ = kill_process(pid, Signal::HUP);
            let _ = child.wait();
            return Err(error.into());
        }
    };
    if interrupted {
        // Not waited for yet, so the number is still the child's.
        let _ = kill_process(pid, Signal::HUP);
    }
    Ok((child.wait()?, interrupted))
}

/// What the case's own report says, and where it says nothing, what its end does.
fn judge(case: &Case, status: ExitStatus) -> Ended {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    let report = fs::read(case.directory.join("report.json")).ok();
    let report = report.and_then(|bytes| serde_json::from_slice::<Report>(&bytes).ok());
    let stderr = end_of(&case.directory.join("stderr.log"));
    let Some(report) = report else {
        let how = match status.signal() {
            Some(signal) => format!("mvm was ended by signal {signal}"),
            None => "mvm wrote no report".to_owned(),
        };
        return Ended {
            status: code,
            text: stderr,
            ..Ended::unfit(Ran::Error, how)
        };
    };
    let mut ended = Ended {
        result: report.result,
        status: code,
        how: report.ended.clone(),
        ..Ended::unfit(Ran::Passed, String::new())
    };
    if report.result != Ran::Passed {
        ended.text = what_to_read(case, &report, &stderr);
        // A command that fails says why itself.
        ended.message = report
            .message
            .unwrap_or_else(|| format!("exit status {}", code.unwrap_or_default()));
    }
    ended
}

fn what_to_read(case: &Case, report: &Report, stderr: &str) -> String {
    // What it says last has been said.
    let message = report.message.as_deref().map(|it| format!("mvm: {it}"));
    let stderr = stderr.trim_end();
    let stderr = message.map_or(stderr, |it| stderr.strip_suffix(&it).unwrap_or(stderr));
    let errors = report.kernel_errors.iter().map(|it| it.text.join("\n"));
    let parts = [
        ("kernel errors", errors.collect::<Vec<_>>().join("\n\n")),
        ("console", report.console_tail.join("\n")),
        ("output", end_of(&case.directory.join("output.log"))),
        ("standard error", stderr.to_owned()),
    ];
    let mut text = String::new();
    for (title, part) in parts.iter().filter(|(_, part)| !part.trim().is_empty()) {
        text.push_str(&format!("--- {title}\n{}\n", part.trim_end()));
    }
    text.push_str(&format!("--- more in {}\n", case.directory.display()));
    text
}

/// The last of a file, as text.
fn end_of(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(len.saturating_sub(OUTPUT)))?;
        let mut bytes = Vec::new();
        file.take(OUTPUT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}
