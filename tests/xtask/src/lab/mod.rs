//! `cargo xtask lab`: a software-emulated host whose `/dev/kvm` runs stock kernels, on any machine.
//!
//! The main thread owns the machine and handles events one by one; a thread each reads the lab's port, this
//! process's input and its signals. See `wire` for what is said and `inside` for the other end.

mod image;
pub mod inside;
mod machine;
mod terminal;
mod wire;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

pub use self::image::{TOOLS, guest_files};
use self::machine::{Machine, Size};
pub use self::terminal::interactive;
use self::wire::{Frame, pump};
use crate::guest::Guests;
use crate::progress::Step;
use crate::{run, workspace};

/// A lab that has not come up by then does not come up.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// What to run in the lab, and in what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// CPUs of the emulated host. With more than one, the emulation of AMD-V loses its way sooner or later.
    #[arg(long, default_value_t = 1)]
    pub cpus: u32,
    /// Its memory in MiB.
    #[arg(long, default_value_t = 4096)]
    pub mem: u32,
    /// Have its clock count instructions, 16 ns for each, and no time: what takes long in there is then what is many
    /// instructions, and the same each time
    #[arg(long)]
    pub count_instructions: bool,
    /// End the lab when the command takes longer than this many seconds.
    #[arg(long)]
    pub timeout: Option<u64>,
    /// A file to take along, to /work; repeatable.
    #[arg(long = "with", value_name = "FILE")]
    pub with: Vec<PathBuf>,
    /// Where files that the command leaves in /out are put.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Run the debug build of mvm: slow in there, and quick to build.
    #[arg(long)]
    pub debug: bool,
    /// The command; none means a shell.
    #[arg(last = true)]
    pub command: Vec<OsString>,
}

impl Options {
    /// A command with everything else as usual.
    pub fn command(command: Vec<OsString>) -> Self {
        Self {
            cpus: 1,
            mem: 4096,
            count_instructions: false,
            timeout: None,
            with: Vec::new(),
            out: None,
            debug: false,
            command,
        }
    }
}

/// What becomes of the command's output, besides being passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// Nothing.
    Nothing,
    /// Its standard output is kept too.
    Output,
}

/// The stock kernel, its initrd and the root file system, in the lab.
pub const GUEST_FILES: [&str; 3] = ["/guest/vmlinuz", "/guest/initrd", "/guest/rootfs"];

/// How a lab run ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The command's exit status.
    pub status: u8,
    /// How long the lab took to come up.
    pub boot: Duration,
    /// How long the command took.
    pub command: Duration,
    /// Its standard output, where that was asked for.
    pub output: Vec<u8>,
}

/// Something that the main thread has to handle.
#[derive(Debug)]
enum Event {
    Frame(Frame),
    /// The lab's port is closed: the lab is gone.
    Closed(Option<anyhow::Error>),
    Signal(i32),
}

/// Builds what is needed and runs the command in the lab; its exit status.
pub fn lab(options: Options) -> Result<u8> {
    let guests = Guests::open()?;
    let build = if options.debug {
        workspace::debug
    } else {
        workspace::release
    };
    Ok(boot(&guests, &[build("mvm")?], &options, Capture::Nothing)?.status)
}

/// Runs the command in a lab with these programs in its `/bin`.
pub fn boot(
    guests: &Guests,
    programs: &[PathBuf],
    options: &Options,
    capture: Capture,
) -> Result<Ended> {
    let tiny = guests.tiny_if_built()?;
    let mut files = guest_files(guests, tiny.as_ref())?;
    let takes = [("bin", programs), ("work", &options.with)];
    for (place, sources) in takes {
        for source in sources {
            let name = source
                .file_name()
                .and_then(|name| name.to_str())
                .context("a file without a name")?;
            files.insert(format!("{place}/{name}"), source.clone());
        }
    }
    let image = image::make(guests, tiny.as_ref(), files)?;
    let size = Size {
        cpus: options.cpus,
        mib: options.mem,
        counts: options.count_instructions,
    };
    let log = log_path()?;
    let start = Instant::now();
    let step = Step::begin("booting the lab");
    let (machine, port) = Machine::start(&image, size, &log)?;
    drop(image);
    let (sender, events) = channel();
    watch_signals(sender.clone())?;
    read_port(port.try_clone()?, sender);
    let mut session = Session {
        machine,
        port,
        events,
        log,
        options,
        carried: None,
        output: (capture == Capture::Output).then(Vec::new),
    };
    session.wait_until_ready(start + BOOT_LIMIT)?;
    let boot = start.elapsed();
    step.done();
    let start = Instant::now();
    let status = session.run()?;
    Ok(Ended {
        status,
        boot,
        command: start.elapsed(),
        output: session.output.take().unwrap_or_default(),
    })
}

/// One lab from its start to its end.
#[derive(Debug)]
struct Session<'a> {
    machine: Machine,
    port: UnixStream,
    events: Receiver<Event>,
    log: PathBuf,
    options: &'a Options,
    /// The file that is being carried out.
    carried: Option<File>,
    /// What the command said, where that is kept.
    output: Option<Vec<u8>>,
}

impl Session<'_> {
    fn wait_until_ready(&mut self, deadline: Instant) -> Result<()> {
        loop {
            match self.next(Some(deadline))? {
                Some(Event::Frame(Frame::Ready)) => return Ok(()),
                Some(Event::Signal(SIGWINCH) | Event::Frame(_)) => {}
                Some(Event::Signal(signal)) => bail!("ended by signal {signal}"),
                Some(Event::Closed(error)) => return Err(self.died(error)),
                None => {
                    self.machine.kill();
                    return Err(
                        self.failure(&format!("did not come up in {} s", BOOT_LIMIT.as_secs()))
                    );
                }
            }
        }
    }

    /// Runs the command to its end; its status.
    fn run(&mut self) -> Result<u8> {
        let shell = || vec!["sh".into(), "-l".into()];
        let argv = if self.options.command.is_empty() {
            shell()
        } else {
            self.options.command.clone()
        };
        let at_terminal = interactive();
        let window = at_terminal.then(terminal::size);
        Frame::Run {
            argv,
            terminal: window,
        }
        .write(&mut self.port)?;
        let _raw = at_terminal.then(terminal::Raw::enter).transpose()?;
        send_input(self.port.try_clone()?);

        let deadline = self
            .options
            .timeout
            .map(|seconds| Instant::now() + Duration::from_secs(seconds));
        loop {
            match self.next(deadline)? {
                Some(Event::Frame(Frame::Exit(status))) => {
                    self.carried = None;
                    Frame::Goodbye.write(&mut self.port)?;
                    self.machine.wait()?;
                    return Ok(status);
                }
                Some(Event::Frame(frame)) => self.take(frame)?,
                Some(Event::Signal(SIGWINCH)) if at_terminal => {
                    Frame::Resize(terminal::size()).write(&mut self.port)?;
                }
                Some(Event::Signal(SIGWINCH)) => {}
                Some(Event::Signal(signal)) => {
                    self.machine.kill();
                    return Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX));
                }
                Some(Event::Closed(error)) => return Err(self.died(error)),
                None => {
                    self.machine.kill();
                    let limit = self.options.timeout.unwrap_or_default();
                    return Err(
                        self.failure(&format!("was ended: the command took more than {limit} s"))
                    );
                }
            }
        }
    }

    /// The next event; none when the deadline comes first.
    fn next(&self, deadline: Option<Instant>) -> Result<Option<Event>> {
        let Some(deadline) = deadline else {
            return Ok(Some(self.events.recv()?));
        };
        match self
            .events
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn take(&mut self, frame: Frame) -> Result<()> {
        match frame {
            // Whoever reads this may have left (`| head`); the command goes on and its status still counts.
            Frame::Output(data) => {
                if let Some(output) = &mut self.output {
                    output.extend(&data);
                }
                ignore_broken_pipe(write_all(io::stdout(), &data))
            }
            Frame::Error(data) => ignore_broken_pipe(write_all(io::stderr(), &data)),
            Frame::File(name) => {
                self.carried = self.create(Path::new(&name))?;
                Ok(())
            }
            Frame::FileData(data) => match &mut self.carried {
                Some(file) => Ok(file.write_all(&data)?),
                None => Ok(()),
            },
            _ => bail!("the lab said something out of turn"),
        }
    }

    /// The file outside for a file that the command left; none where nobody asked for them.
    fn create(&self, name: &Path) -> Result<Option<File>> {
        let Some(out) = &self.options.out else {
            return Ok(None);
        };
        if !name
            .components()
            .all(|component| matches!(component, Component::Normal(_)))
        {
            bail!("the lab sent a file with the odd name {}", name.display());
        }
        let path = out.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(Some(File::create(path)?))
    }

    fn died(&mut self, error: Option<anyhow::Error>) -> anyhow::Error {
        self.machine.kill();
        let why = error.map_or(String::new(), |error| format!(" ({error:#})"));
        self.failure(&format!("died{why}"))
    }

    /// What happened to the lab, with the end of its console.
    fn failure(&self, what: &str) -> anyhow::Error {
        let console = fs::read(&self.log).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        anyhow::anyhow!(
            "the lab {what}; the last of its console, {}:\n{}",
            self.log.display(),
            run::tail(&console, 20)
        )
    }
}

fn write_all(mut to: impl Write, data: &[u8]) -> io::Result<()> {
    to.write_all(data)?;
    to.flush()
}

fn ignore_broken_pipe(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn read_port(mut port: UnixStream, events: Sender<Event>) {
    thread::spawn(move || {
        loop {
            let event = match Frame::read(&mut port) {
                Ok(Some(frame)) => Event::Frame(frame),
                Ok(None) => Event::Closed(None),
                Err(error) => Event::Closed(Some(error)),
            };
            let last = matches!(event, Event::Closed(_));
            if events.send(event).is_err() || last {
                return;
            }
        }
    });
}

/// Sends this process's input. The thread is left behind in its read when the lab ends.
fn send_input(mut port: UnixStream) {
    thread::spawn(move || {
        // An input that cannot be read is at its end.
        let _ = pump(&mut io::stdin().lock(), |data| {
            Frame::Input(data).write(&mut port)
        });
        let _ = Frame::InputEnd.write(&mut port);
    });
}

fn watch_signals(events: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGWINCH])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn log_path() -> Result<PathBuf> {
    let directory = workspace::target().join("lab");
    fs::create_dir_all(&directory)?;
    // One for each process: labs may run side by side. The oldest go first.
    let mut logs: Vec<_> = fs::read_dir(&directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    logs.sort_by_key(|path| {
        fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok()
    });
    for old in logs.iter().rev().skip(9) {
        let _ = fs::remove_file(old);
    }
    Ok(directory.join(format!("console-{}.log", std::process::id())))
}
