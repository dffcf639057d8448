//! The end of the wire inside the lab: runs the command it is told to, and sends back what comes of it. The lab's
//! init starts it as `xtask lab-inside PORT`.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::wire::{Frame, WindowSize, pump};

/// Files that the command leaves here are carried out of the lab.
pub const OUT: &str = "/out";

/// How long output may still come from processes that the command left behind.
const LINGER: Duration = Duration::from_secs(2);

/// The port, shared by the threads that send output.
type Port = Arc<Mutex<File>>;

/// Where the command's input goes.
#[derive(Debug)]
enum Input {
    Pipe(Option<std::process::ChildStdin>),
    Terminal(OwnedFd),
}

/// Serves one command and returns when the other end has everything.
pub fn serve(path: &Path) -> Result<()> {
    let mut reader = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| path.display().to_string())?;
    let port: Port = Arc::new(Mutex::new(reader.try_clone()?));
    send(&port, &Frame::Ready)?;
    let Some(Frame::Run { argv, terminal }) = Frame::read(&mut reader)? else {
        bail!("the first thing said was not a command");
    };
    fs::create_dir_all(OUT)?;
    let status = match start(&argv, terminal) {
        Ok((mut child, input, outputs)) => {
            thread::spawn(move || take_input(&mut reader, input));
            let drained = send_outputs(&port, outputs);
            let status = child.wait()?;
            let end = Instant::now() + LINGER;
            while drained
                .recv_timeout(end.saturating_duration_since(Instant::now()))
                .is_ok()
            {}
            code(status)
        }
        Err(error) => {
            send(
                &port,
                &Frame::Error(format!("lab: {error:#}\n").into_bytes()),
            )?;
            127
        }
    };
    send_files(&port, Path::new(OUT), Path::new(""))?;
    send(&port, &Frame::Exit(status))?;
    // The thread that takes input leaves the process when it is told goodbye; this is for a host that is gone.
    thread::sleep(Duration::from_secs(10));
    Ok(())
}

type Outputs = Vec<(fn(Vec<u8>) -> Frame, Box<dyn io::Read + Send>)>;

fn start(argv: &[OsString], terminal: Option<WindowSize>) -> Result<(Child, Input, Outputs)> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    let cannot = || format!("cannot run {}", program.display());
    let Some(size) = terminal else {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(cannot)?;
        let input = Input::Pipe(child.stdin.take());
        let mut outputs: Outputs = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            outputs.push((Frame::Output, Box::new(stdout)));
        }
        if let Some(stderr) = child.stderr.take() {
            outputs.push((Frame::Error, Box::new(stderr)));
        }
        return Ok((child, input, outputs));
    };
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    resize(&master, size)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(std::ffi::OsStr::from_bytes(name.as_bytes())))?;
    command
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    // SAFETY: both calls are plain system calls, which are safe between fork and exec; descriptor 0 is the terminal.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    let child = command.spawn().with_context(cannot)?;
    let output = File::from(master.try_clone()?);
    Ok((
        child,
        Input::Terminal(master),
        vec![(Frame::Output, Box::new(output))],
    ))
}

fn resize(terminal: impl AsFd, size: WindowSize) -> Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Sends each stream from a thread of its own; the receiver hears of each that ends.
fn send_outputs(port: &Port, outputs: Outputs) -> Receiver<()> {
    let (sender, ended) = channel();
    for (frame, mut stream) in outputs {
        let (port, sender) = (port.clone(), sender.clone());
        thread::spawn(move || {
            // A terminal whose last user is gone reads as EIO: that is its end.
            let _ = pump(&mut stream, |data| send(&port, &frame(data)));
            let _ = sender.send(());
        });
    }
    ended
}

/// Hands input on until the other end says goodbye or is gone, and then leaves.
fn take_input(reader: &mut File, mut input: Input) {
    while let Ok(Some(frame)) = Frame::read(reader) {
        match (frame, &mut input) {
            // A command that does not want its input closes it; what is left of it is dropped.
            (Frame::Input(data), Input::Pipe(pipe)) => {
                *pipe = pipe.take().filter(|mut pipe| pipe.write_all(&data).is_ok());
            }
            (Frame::Input(data), Input::Terminal(master)) => {
                let mut rest = data.as_slice();
                while !rest.is_empty() {
                    match rustix::io::write(&*master, rest) {
                        Ok(count) => rest = &rest[count..],
                        Err(_) => break,
                    }
                }
            }
            (Frame::InputEnd, Input::Pipe(pipe)) => *pipe = None,
            (Frame::Resize(size), Input::Terminal(master)) => {
                let _ = resize(master, size);
            }
            (Frame::Goodbye, _) => break,
            _ => {}
        }
    }
    std::process::exit(0);
}

fn send(port: &Port, frame: &Frame) -> io::Result<()> {
    frame.write(&mut *port.lock().unwrap_or_else(PoisonError::into_inner))
}

fn send_files(port: &Port, directory: &Path, relative: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = relative.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            send_files(port, &entry.path(), &name)?;
        } else if entry.file_type()?.is_file() {
            send(port, &Frame::File(name.into_os_string()))?;
            pump(&mut File::open(entry.path())?, |data| {
                send(port, &Frame::FileData(data))
            })?;
        }
    }
    Ok(())
}

/// The status as a shell gives it.
fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}
