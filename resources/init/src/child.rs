//! The command: a process with the streams, the environment and the directory that the host asks for.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char};
use core::ptr;

use init_lib::spec::{self, key};
use init_lib::{Mux, Stream};
use rustix::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, chdir, ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::say;
use crate::sys::{self, Forked};

/// Where a program without a slash in its name is looked for, unless the environment says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running command.
pub struct Child {
    /// Its process, and the process group it leads.
    pub pid: Pid,
    /// Its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
}

/// Why there is none: the status the host ends with, and a line.
pub struct NotStarted {
    /// 127, 126 or 125.
    pub status: u8,
    /// What, on what, and why.
    pub reason: String,
}

impl NotStarted {
    fn system(what: &str, errno: Errno) -> Self {
        Self {
            status: 125,
            reason: format!("{what}: {}", say(errno)),
        }
    }
}

/// The child's ends of its streams.
struct Streams([OwnedFd; 3]);

/// Starts the command of `spec`, and gives `mux` this end of its streams.
pub fn start(spec: &[u8], mux: &mut Mux) -> Result<Child, NotStarted> {
    let system = |what: &'static str| move |errno| NotStarted::system(what, errno);
    let program = Program::of(spec);
    let directory = spec::value(spec, key::DIRECTORY).map(string);
    let (terminal, streams) = match spec::value(spec, key::TERMINAL) {
        Some(size) => at_terminal(size, mux).map_err(system("no terminal for the command"))?,
        None => (
            None,
            in_pipes(mux).map_err(system("no pipes for the command"))?,
        ),
    };
    // Tells why the child could not become the command; closed by becoming it.
    let (report, reporter) = pipe_with(PipeFlags::CLOEXEC).map_err(system("no pipe"))?;
    match sys::fork().map_err(system("cannot start a process"))? {
        Forked::Child => {
            let (stage, errno) =
                become_command(&program, directory.as_deref(), &streams, terminal.is_some());
            let [a, b, c, d] = errno.raw_os_error().to_ne_bytes();
            let _ = write(&reporter, &[stage as u8, a, b, c, d]);
            sys::exit(127)
        }
        Forked::Parent(pid) => {
            drop((streams, reporter));
            let mut told = [0; 5];
            match read(&report, &mut told) {
                Ok(5) => Err(program.refused(told, directory.as_deref())),
                _ => Ok(Child {
                    pid: Pid::from_raw(pid).unwrap_or(Pid::INIT),
                    terminal,
                }),
            }
        }
    }
}

/// What the child was doing when it failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Setup = 0,
    Directory = 1,
    Execute = 2,
}

fn become_command(
    program: &Program,
    directory: Option<&CStr>,
    streams: &Streams,
    terminal: bool,
) -> (Stage, Errno) {
    let set_up = || -> rustix::io::Result<()> {
        setsid()?;
        let Streams([stdin, stdout, stderr]) = streams;
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        if terminal {
            ioctl_tiocsctty(stdin)?;
        }
        sys::unblock_signals()
    };
    if let Err(errno) = set_up() {
        return (Stage::Setup, errno);
    }
    if let Some(directory) = directory
        && let Err(errno) = chdir(directory)
    {
        return (Stage::Directory, errno);
    }
    (Stage::Execute, program.execute())
}

/// What is executed.
struct Program {
    argv: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    fn of(spec: &[u8]) -> Self {
        let mut environment: Vec<CString> = spec::values(spec, key::ENV).map(string).collect();
        let mut default = |name: &str, value: &str| {
            let is_set = environment.iter().any(|variable| {
                let rest = variable.to_bytes().strip_prefix(name.as_bytes());
                rest.is_some_and(|rest| rest.starts_with(b"="))
            });
            if !is_set {
                environment.push(string(format!("{name}={value}").as_bytes()));
            }
        };
        default("PATH", PATH);
        default("HOME", "/root");
        if spec::value(spec, key::TERMINAL).is_some() {
            default("TERM", "linux");
        }
        Self {
            argv: spec::values(spec, key::ARG).map(string).collect(),
            environment,
        }
    }

    /// Becomes the program, or says why not.
    fn execute(&self) -> Errno {
        let Some(name) = self.argv.first() else {
            return Errno::NOENT;
        };
        let argv = list(&self.argv);
        let environment = list(&self.environment);
        if name.to_bytes().contains(&b'/') {
            return sys::execve(name, &argv, &environment);
        }
        let path = self
            .environment
            .iter()
            .find_map(|variable| variable.to_bytes().strip_prefix(b"PATH="));
        let mut reason = Errno::NOENT;
        for directory in path.unwrap_or_default().split(|byte| *byte == b':') {
            let directory = if directory.is_empty() {
                b"."
            } else {
                directory
            };
            let full = [directory, b"/", name.to_bytes()].concat();
            match sys::execve(&string(&full), &argv, &environment) {
                Errno::NOENT | Errno::NOTDIR => {}
                // One that may not be executed does not hide another one further on.
                errno => reason = errno,
            }
        }
        reason
    }

    fn refused(&self, told: [u8; 5], directory: Option<&CStr>) -> NotStarted {
        let [stage, errno @ ..] = told;
        let errno = Errno::from_raw_os_error(i32::from_ne_bytes(errno));
        if stage == Stage::Setup as u8 {
            return NotStarted::system("cannot set the command up", errno);
        }
        if stage == Stage::Directory as u8 {
            let directory = directory.unwrap_or_default().to_string_lossy();
            let reason = format!(
                "the working directory {directory} cannot be entered in the guest: {}",
                say(errno)
            );
            return NotStarted {
                status: 125,
                reason,
            };
        }
        let name = self
            .argv
            .first()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        match errno {
            Errno::NOENT | Errno::NOTDIR => NotStarted {
                status: 127,
                reason: format!("{name}: not found in the guest, or its interpreter is not"),
            },
            errno => NotStarted {
                status: 126,
                reason: format!("{name}: cannot be executed in the guest: {}", say(errno)),
            },
        }
    }
}

fn at_terminal(size: &[u8], mux: &mut Mux) -> rustix::io::Result<(Option<OwnedFd>, Streams)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = openat(CWD, name.as_c_str(), flags, Mode::empty())?;
    let size = String::from_utf8_lossy(size).into_owned();
    if let Some((columns, rows)) = size.split_once('x')
        && let (Ok(columns), Ok(rows)) = (columns.parse(), rows.parse())
    {
        resize(&master, columns, rows);
    }
    ioctl_fionbio(&master, true)?;
    let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 0);
    mux.sink(Stream::Stdin, copy(&master)?);
    mux.source(Stream::Stdout, copy(&master)?);
    let streams = Streams([copy(&slave)?, copy(&slave)?, slave]);
    Ok((Some(master), streams))
}

/// Tells the terminal its size.
pub fn resize(terminal: &OwnedFd, columns: u16, rows: u16) {
    let _ = tcsetwinsize(
        terminal,
        Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    );
}

fn in_pipes(mux: &mut Mux) -> rustix::io::Result<Streams> {
    let (stdin, stdin_writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stdout_reader, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr_reader, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    for ours in [&stdin_writer, &stdout_reader, &stderr_reader] {
        ioctl_fionbio(ours.as_fd(), true)?;
    }
    mux.sink(Stream::Stdin, stdin_writer);
    mux.source(Stream::Stdout, stdout_reader);
    mux.source(Stream::Stderr, stderr_reader);
    Ok(Streams([stdin, stdout, stderr]))
}

fn string(bytes: &[u8]) -> CString {
    // Records of the spec have no NUL inside.
    CString::new(bytes).unwrap_or_default()
}

fn list(strings: &[CString]) -> Vec<*const c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr());
    pointers.chain([ptr::null()]).collect()
}

/// Makes sure that descriptors 0 to 2 are taken, so that none of ours gets their numbers.
pub fn occupy_stdio() {
    let flags = OFlags::RDWR;
    while let Ok(null) = openat(CWD, "/dev/null", flags, Mode::empty()) {
        if null.as_raw_fd() > 2 {
            return;
        }
        // Stays open for good.
        let _ = null.into_raw_fd();
    }
}
