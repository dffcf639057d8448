//! The life of passt: begun early, waited for late, and over with the VM.
//!
//! ```text
//! begin ──► Starting ── ready ──► (runs) ──┬── its socket ends: it died, the card has no link
//!              │ drop                      └── the card is dropped: it is killed and waited for
//! ```
//!
//! Whatever becomes of this process, the socket closes, and passt ends by that (`--fd` implies
//! `--one-off`). The kernel's signal at a parent's death would add nothing but harm: it is sent when the
//! *thread* that began the child ends.

use std::io::{self, ErrorKind, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::virtio::net::stream::make_room;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::{SendFlags, send, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::UserNetError;
use super::arguments::Plan;

/// It takes some 20 ms; a host that needs so much longer is not going to make it.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a helper that closed its socket may take to end. Nothing waits for it but the log.
const END_LIMIT: Duration = Duration::from_millis(200);

/// A running helper. It ends with its last owner.
#[derive(Debug)]
pub(super) struct Helper(Mutex<Process>);

#[derive(Debug)]
struct Process {
    child: Child,
    /// Its standard error. Never full, as far as it can tell: what does not fit is lost.
    words: PipeReader,
}

/// A helper of which nobody knows yet whether it can do what it is to do.
#[derive(Debug)]
pub(crate) struct Starting {
    helper: Arc<Helper>,
    /// The card's end of the stream, once more.
    socket: UnixStream,
    /// How large its buffer is to be.
    buffer: usize,
}

/// The card's end of the stream.
#[derive(Debug)]
pub(super) struct End {
    pub socket: UnixStream,
    /// Bytes that passt can send at once.
    pub room: u32,
}

fn host(what: &'static str) -> impl Fn(io::Error) -> UserNetError {
    move |source| UserNetError::Host { what, source }
}

/// Begins `command` with what `plan` adds to it, for the card with address `mac`. The stream is for the
/// card.
pub(super) fn begin(
    mut command: Command,
    plan: &Plan<'_>,
    mac: [u8; 6],
) -> Result<(Starting, End), UserNetError> {
    let (ours, theirs) = UnixStream::pair().map_err(host("a socket for passt"))?;
    let room = make_room(&theirs).map_err(host("a socket for passt"))?;
    let (words, stderr) = io::pipe().map_err(host("a pipe for passt"))?;
    // What nobody reads must not stop it.
    for end in [words.as_fd(), stderr.as_fd()] {
        ioctl_fionbio(end, true).map_err(|errno| host("a pipe for passt")(errno.into()))?;
    }
    command
        .args(plan.arguments(theirs.as_raw_fd()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        // Out of reach of the terminal's Ctrl-C, which is for the guest.
        .process_group(0);
    // SAFETY: between fork and exec runs one system call, on a descriptor that the closure owns.
    unsafe { command.pre_exec(move || Ok(fcntl_setfd(&theirs, FdFlags::empty())?)) };
    let child = command.spawn().map_err(|source| match source.kind() {
        ErrorKind::NotFound => UserNetError::NoHelper,
        _ => host("passt cannot be run")(source),
    })?;
    // With it goes this process's copy of the other end.
    drop(command);
    let helper = Arc::new(Helper(Mutex::new(Process { child, words })));
    let socket = ours.try_clone().map_err(host("a socket for passt"))?;
    let buffer = greet(&ours, mac).map_err(host("the socket of passt"))?;
    let starting = Starting {
        helper,
        socket,
        buffer,
    };
    let end = End { socket: ours, room };
    Ok((starting, end))
}

/// Sends a frame that passt ignores, but for its source, through a socket that has no room for another:
/// when there is room again, passt is up. Returns the size that the socket's buffer had.
fn greet(socket: &UnixStream, mac: [u8; 6]) -> io::Result<usize> {
    /// More than a quarter of the smallest buffer there is: unix(7) counts it as full.
    const LEN: usize = 1400;
    /// IEEE 802 Local Experimental Ethertype 1: no protocol that passt knows.
    const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
    let buffer = sockopt::socket_send_buffer_size(socket)?;
    sockopt::set_socket_send_buffer_size(socket, 0)?;
    let mut frame = vec![0; LEN];
    let header = [[0xff; 6].as_slice(), &mac, &ETHERTYPE].concat();
    frame[..header.len()].copy_from_slice(&header);
    let prefix = u32::try_from(LEN).unwrap_or(0).to_be_bytes();
    match send(socket, &[&prefix, &frame[..]].concat(), SendFlags::NOSIGNAL) {
        // A helper that is gone already is noticed by whoever waits for it.
        Ok(_) | Err(Errno::PIPE) => Ok(buffer),
        Err(errno) => Err(errno.into()),
    }
}

impl Starting {
    /// Waits until the helper is up.
    ///
    /// # Errors
    /// It gave up, and why.
    pub(crate) fn ready(&self) -> Result<(), UserNetError> {
        let limit = Timespec::try_from(START_LIMIT).ok();
        let mut socket = [PollFd::new(&self.socket, PollFlags::OUT)];
        loop {
            match poll(&mut socket, limit.as_ref()) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(host("the socket of passt")(errno.into())),
                Ok(0) => return Err(UserNetError::Silent(START_LIMIT.as_secs())),
                Ok(_) => break,
            }
        }
        let gone = PollFlags::HUP | PollFlags::ERR;
        if socket[0].revents().intersects(gone) {
            return Err(UserNetError::Refused(self.helper.end()));
        }
        for line in self.helper.lock().words().lines() {
            log::debug!("passt: {line}");
        }
        // The kernel doubles what it is given: socket(7).
        sockopt::set_socket_send_buffer_size(&self.socket, self.buffer / 2)
            .map_err(|errno| host("the socket of passt")(errno.into()))
    }

    /// The helper, for the card.
    pub(super) fn helper(&self) -> Arc<Helper> {
        self.helper.clone()
    }
}

impl Helper {
    /// Ends the helper if it has not ended by itself, and says why it has.
    pub(super) fn end(&self) -> String {
        let mut process = self.lock();
        match process.end() {
            Ok(status) => cause(status, &process.words()),
            Err(error) => error.to_string(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Process> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// What it has said since the last time.
    fn words(&mut self) -> String {
        let mut words = Vec::new();
        // Non-blocking: all there is, and then an error.
        let _ = self.words.read_to_end(&mut words);
        String::from_utf8_lossy(&words).into_owned()
    }

    /// Gives the helper a moment to end by itself, then none.
    fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        if let Ok(pidfd) = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()) {
            let limit = Timespec::try_from(END_LIMIT).ok();
            // Whatever comes of it, the helper is ended.
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], limit.as_ref());
        }
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone; what counts is that no zombie stays.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why the helper ended: the last thing it said, if it ended itself.
fn cause(status: ExitStatus, words: &str) -> String {
    words
        .lines()
        .map(str::trim)
        // Without a syslog it says so after each of its lines.
        .rfind(|line| !line.is_empty() && !line.starts_with("Failed to send "))
        .filter(|_| status.code().is_some_and(|code| code != 0))
        .map_or_else(|| status.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UserConfig;
    use crate::net::resolver::Resolver;
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    use std::time::Instant;

    /// Begins a shell script in place of passt; its `$4` is the descriptor. Debian's sh, dash, knows none above 9,
    /// bash does; where there is no bash, in the lab, sh is busybox's, which does too.
    fn begin_script(script: &str) -> (Starting, UnixStream) {
        let bash = "/bin/bash";
        let has_bash = std::path::Path::new(bash).exists();
        let mut command = Command::new(if has_bash { bash } else { "sh" });
        command.args(["-c", script, "passt"]);
        let plan = Plan {
            user: &UserConfig::default(),
            mtu: None,
            resolver: &Resolver::AsTheHost,
            routed: true,
        };
        let (starting, end) = begin(command, &plan, [2; 6]).unwrap();
        (starting, end.socket)
    }

    /// Reads what comes and does nothing with it.
    const READS: &str = "eval \"exec cat <&$4 >/dev/null\"";

    fn pid(starting: &Starting) -> u32 {
        starting.helper.lock().child.id()
    }

    /// Whether there is a process, a zombie included.
    fn exists(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn one_that_gives_up_says_why() {
        let (starting, _socket) = begin_script("echo 'port 1 is in use' >&2; exit 1");
        let line = starting.ready().unwrap_err().to_string();
        assert_eq!(
            line,
            "user-mode networking: passt does not start: port 1 is in use"
        );
        let (starting, _socket) = begin_script("kill -9 $$");
        let line = starting.ready().unwrap_err().to_string();
        assert!(line.ends_with("signal: 9 (SIGKILL)"), "{line}");
    }

    #[test]
    fn one_that_is_not_installed_is_named_with_its_package() {
        let plan = Plan {
            user: &UserConfig::default(),
            mtu: None,
            resolver: &Resolver::AsTheHost,
            routed: true,
        };
        let missing = begin(Command::new("no-such-passt"), &plan, [2; 6]).unwrap_err();
        assert!(missing.to_string().contains("apt-get install passt"));
    }

    #[test]
    fn one_that_reads_is_up_and_ends_with_its_owner() {
        let (starting, mut socket) = begin_script(READS);
        let pid = pid(&starting);
        starting.ready().unwrap();
        // There is as much room as there was before.
        socket.set_nonblocking(true).unwrap();
        socket.write_all(&[0; 64 << 10]).unwrap();
        assert!(exists(pid));
        drop(starting);
        assert!(!exists(pid), "it is killed and waited for");
    }

    #[test]
    fn one_that_closes_its_socket_and_stays_is_ended() {
        let (starting, socket) = begin_script("eval \"exec $4<&-\"; exec sleep 1000");
        assert!(starting.ready().is_err());
        drop(socket);
        assert!(!exists(pid(&starting)));
    }

    #[test]
    fn one_that_dies_later_is_told_apart_from_its_last_words() {
        let (starting, _socket) = begin_script(&format!("echo warning >&2; {READS}"));
        starting.ready().unwrap();
        let pid = Pid::from_raw(pid(&starting).try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(starting.helper.end(), "signal: 15 (SIGTERM)");
        assert_eq!(starting.helper.end(), "signal: 15 (SIGTERM)");
    }

    #[test]
    fn one_that_says_more_than_anybody_reads_goes_on() {
        let flood = format!(
            "i=0; while [ $i -lt 3000 ]; do echo {:0100} >&2; i=$((i+1)); done 2>/dev/null; {READS}",
            0
        );
        let start = Instant::now();
        let (starting, _socket) = begin_script(&flood);
        starting.ready().unwrap();
        assert!(start.elapsed() < START_LIMIT);
    }

    #[test]
    fn the_last_words_of_one_that_gave_up_are_the_cause() {
        let words = "No external routable interface for IPv4\nFailed to send 46 bytes to syslog\n\
                     External interface not usable\nFailed to send 36 bytes to syslog\n\n";
        let gave_up = ExitStatus::from_raw(1 << 8);
        assert_eq!(cause(gave_up, words), "External interface not usable");
        assert_eq!(cause(gave_up, "\n"), "exit status: 1");
        let killed = ExitStatus::from_raw(9);
        assert_eq!(cause(killed, words), "signal: 9 (SIGKILL)");
    }
}
