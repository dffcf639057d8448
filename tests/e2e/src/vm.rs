//! One run of `mvm`: its command line, its streams, and how it ended.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::context::{Context, Skip};

/// A user without privileges, and a group (Debian's nobody and nogroup).
pub const NOBODY: u32 = 65534;

/// What a run says, as it says it.
#[derive(Debug)]
pub struct Transcript {
    command: String,
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Streams that are still open.
    open: usize,
}

/// Which stream something came from.
#[derive(Debug, Clone, Copy)]
pub enum Stream {
    /// Standard output: the guest's console.
    Stdout,
    /// Standard error: mvm's own words.
    Stderr,
}

impl Transcript {
    /// Nothing said yet.
    pub fn new(command: String) -> Self {
        Self {
            command,
            said: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything on standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.lock().stdout).into_owned()
    }

    /// Everything on standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.lock().stderr).into_owned()
    }

    /// Reads a stream to its end in a thread of its own, resting between reads if so told.
    pub fn follow(
        self: &Arc<Self>,
        mut from: impl Read + Send + 'static,
        stream: Stream,
        rest: Duration,
    ) -> JoinHandle<()> {
        self.lock().open += 1;
        let transcript = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            // A terminal whose last user has gone reads as an error: its end too.
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let mut said = transcript.lock();
                match stream {
                    Stream::Stdout => said.stdout.extend(&buffer[..count]),
                    Stream::Stderr => said.stderr.extend(&buffer[..count]),
                }
                drop(said);
                transcript.changed.notify_all();
                if !rest.is_zero() {
                    thread::sleep(rest);
                }
            }
            transcript.lock().open -= 1;
            transcript.changed.notify_all();
        })
    }

    /// Waits until `text` has been said on either stream.
    pub fn wait_for(&self, text: &str, deadline: Instant) -> Result<()> {
        let heard = |bytes: &[u8]| {
            bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        };
        let mut said = self.lock();
        loop {
            if heard(&said.stdout) || heard(&said.stderr) {
                return Ok(());
            }
            ensure!(said.open > 0, "it ended without saying '{text}'");
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "it did not say '{text}' in time");
            said = self
                .changed
                .wait_timeout(said, left)
                .map_or_else(|error| error.into_inner().0, |(said, _)| said);
        }
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ {}", self.command)?;
        writeln!(f, "--- standard output\n{}", self.stdout())?;
        writeln!(f, "--- standard error\n{}", self.stderr())
    }
}

/// A command line that is being put together.
#[derive(Debug)]
pub struct Mvm<'a> {
    context: &'a Context,
    program: OsString,
    args: Vec<OsString>,
    append: Vec<String>,
    /// What comes after `--`.
    command: Vec<OsString>,
    reading_rest: Duration,
    user: Option<u32>,
    environment: Vec<(&'static str, OsString)>,
}

impl<'a> Mvm<'a> {
    /// The bare command.
    pub fn new(context: &'a Context, program: &Path) -> Self {
        Self {
            context,
            program: program.into(),
            args: Vec::new(),
            append: Vec::new(),
            command: Vec::new(),
            reading_rest: Duration::ZERO,
            user: None,
            environment: Vec::new(),
        }
    }

    /// One argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Several, separated by spaces.
    #[must_use]
    pub fn args(self, args: &str) -> Self {
        args.split_whitespace().fold(self, Self::arg)
    }

    /// A further disk: a path, and what comes after it in the option.
    #[must_use]
    pub fn disk(self, path: &Path, options: &str) -> Self {
        let mut disk = path.as_os_str().to_owned();
        disk.push(options);
        self.arg("--disk").arg(disk)
    }

    /// Words for the end of the kernel command line.
    #[must_use]
    pub fn append(mut self, words: &str) -> Self {
        self.append.push(words.to_owned());
        self
    }

    /// One of the root file system's scripts, with arguments after commas.
    #[must_use]
    pub fn script(self, script: &str) -> Self {
        self.append(&format!("mvm.test={script}"))
    }

    /// A command for the guest.
    #[must_use]
    pub fn command<T: Into<OsString>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.command.extend(words.into_iter().map(Into::into));
        self
    }

    /// A command for the guest's shell.
    #[must_use]
    pub fn shell(self, text: &str) -> Self {
        self.command(["/bin/sh", "-c", text])
    }

    /// Reads the output slowly: a few bytes, then a rest.
    #[must_use]
    pub fn read_slowly(mut self, rest: Duration) -> Self {
        self.reading_rest = rest;
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((key, value.as_ref().to_owned()));
        self
    }

    /// Runs it as somebody without privileges, whom the test's files are given to.
    ///
    /// # Errors
    /// A [`Skip`] where an ordinary user may not open `/dev/kvm` or `/dev/net/tun`.
    pub fn ordinary(self, context: &Context) -> Result<Self> {
        if !geteuid().is_root() {
            return Ok(self);
        }
        for device in ["/dev/kvm", "/dev/net/tun"] {
            let mode = fs::metadata(device)?.permissions().mode();
            if mode & 0o6 != 0o6 {
                return Err(Skip(format!("{device} is not everybody's")).into());
            }
        }
        for path in [context.path(""), context.path("rootfs.ext4")] {
            chown(path, Some(NOBODY), Some(NOBODY))?;
        }
        Ok(self.user(NOBODY))
    }

    /// Runs it as another user, who is in the group of the same number and in no other.
    #[must_use]
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// The arguments as they will be given.
    pub fn finish(&self) -> Vec<OsString> {
        let mut args = self.args.clone();
        if !self.append.is_empty() {
            args.extend(["--append".into(), self.append.join(" ").into()]);
        }
        if !self.command.is_empty() {
            args.push("--".into());
            args.extend(self.command.iter().cloned());
        }
        args
    }

    /// The program.
    pub fn program(&self) -> &OsStr {
        &self.program
    }

    /// As people would type it.
    pub fn to_line(&self) -> String {
        let args: Vec<_> = self
            .finish()
            .iter()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        format!("mvm {}", args.join(" "))
    }

    /// Starts it with pipes on all three streams.
    pub fn spawn(&self) -> Result<Vm> {
        let mut command = Command::new(&self.program);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let mut child = command
            .args(self.finish())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let transcript = self.context.transcript(self.to_line());
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(transcript.follow(stdout, Stream::Stdout, self.reading_rest));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(transcript.follow(stderr, Stream::Stderr, Duration::ZERO));
        }
        Ok(Vm {
            stdin: child.stdin.take(),
            child,
            transcript,
            readers,
            deadline: self.context.deadline,
        })
    }

    /// Starts it and waits for its end.
    pub fn run(&self) -> Result<Outcome> {
        let mut vm = self.spawn()?;
        // Nothing to say to it, but the end of input is a test of its own.
        vm.wait()
    }

    /// Runs it and checks its exit status.
    pub fn exits_with(&self, status: i32) -> Result<Outcome> {
        let outcome = self.run()?;
        outcome.check(status)?;
        Ok(outcome)
    }
}

/// A running `mvm`. Dropped, it is killed.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    stdin: Option<ChildStdin>,
    transcript: Arc<Transcript>,
    readers: Vec<JoinHandle<()>>,
    deadline: Instant,
}

impl Vm {
    /// Waits until the guest or mvm says this.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.transcript.wait_for(text, self.deadline)
    }

    /// Waits until the guest has said a line that begins like this; the rest of it.
    pub fn wait_for_line(&self, start: &str) -> Result<String> {
        let mut line = String::new();
        until(self.deadline, &format!("line '{start}…'"), || {
            let said = self.stdout();
            let rest = said
                .split_once(start)
                .map(|(_, rest)| rest.split_once('\n'));
            let Some(Some((rest, _))) = rest else {
                return Ok(false);
            };
            rest.trim_end().clone_into(&mut line);
            Ok(true)
        })?;
        Ok(line)
    }

    /// Bytes of memory that its process has from the host.
    pub fn resident(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path)?;
        let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = field.and_then(|field| field.trim().strip_suffix(" kB"));
        let kib: u64 = kib.context("no VmRSS; has it ended?")?.parse()?;
        Ok(kib << 10)
    }

    /// What has been said so far on standard output.
    pub fn stdout(&self) -> String {
        self.transcript.stdout()
    }

    /// What has been said so far on standard error.
    pub fn stderr(&self) -> String {
        self.transcript.stderr()
    }

    /// Types into the console.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        Ok(stdin.write_all(text.as_bytes())?)
    }

    /// The pipe to its standard input, for somebody else to write to.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Ends its input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<Outcome> {
        let status = wait_until(&mut self.child, self.deadline)?;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        Ok(Outcome {
            status,
            stdout: self.transcript.stdout(),
            stderr: self.transcript.stderr(),
        })
    }

    /// Waits for its end and checks its exit status.
    pub fn exits_with(&mut self, status: i32) -> Result<Outcome> {
        let outcome = self.wait()?;
        outcome.check(status)?;
        Ok(outcome)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again and again until it holds, or the test's time is up.
pub fn until(deadline: Instant, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    while !holds()? {
        ensure!(Instant::now() < deadline, "no {what} in time");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Waits for a child's end, and kills it when it comes too late.
pub fn wait_until(child: &mut Child, deadline: Instant) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("mvm had not ended by the test's time limit");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its status.
    pub status: ExitStatus,
    /// The guest's console.
    pub stdout: String,
    /// mvm's own words.
    pub stderr: String,
}

impl Outcome {
    /// Fails unless the exit status is this one.
    pub fn check(&self, status: i32) -> Result<()> {
        let got = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => code.to_string(),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "neither status nor signal".to_owned(),
        };
        ensure!(
            self.status.code() == Some(status),
            "mvm ended with {got}, not {status}; its last words:\n{}",
            last_lines(&format!("{}\n{}", self.stdout, self.stderr), 8)
        );
        Ok(())
    }

    /// Fails unless the console has a line that contains this.
    pub fn says(&self, text: &str) -> Result<()> {
        ensure!(
            self.stdout.contains(text),
            "the guest did not say '{text}'; its last words:\n{}",
            last_lines(&self.stdout, 8)
        );
        Ok(())
    }

    /// Fails if the console has this.
    pub fn does_not_say(&self, text: &str) -> Result<()> {
        ensure!(!self.stdout.contains(text), "the guest said '{text}'");
        Ok(())
    }

    /// The rest of the first console line that begins with `key` and a colon.
    pub fn value(&self, key: &str) -> Result<&str> {
        let start = format!("{key}: ");
        let value = self
            .stdout
            .lines()
            .find_map(|line| line.trim_end().strip_prefix(start.as_str()));
        value.with_context(|| {
            format!(
                "no '{key}:' among the guest's last words:\n{}",
                last_lines(&self.stdout, 8)
            )
        })
    }
}

/// The end of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_heard_across_reads_and_its_absence_noticed() {
        let transcript = Arc::new(Transcript::new(String::new()));
        let soon = Instant::now() + Duration::from_secs(10);
        let reader = transcript.follow(&b"some words"[..], Stream::Stdout, Duration::ZERO);
        transcript.wait_for("words", soon).unwrap();
        reader.join().unwrap();
        let error = transcript.wait_for("others", soon).unwrap_err();
        assert_eq!(error.to_string(), "it ended without saying 'others'");
    }
}
