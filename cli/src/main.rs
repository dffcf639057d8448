//! The `mvm` command: reads what is asked for, does it, and ends with a status that says how it went.

mod api;
mod args;
mod chart;
mod config;
mod ctl;
mod descriptors;
mod doctor;
mod duration;
mod emulation;
mod host;
mod keys;
mod logging;
mod matrix;
mod policy;
mod record;
mod report;
mod run;
mod script;
mod signals;
mod software_kvm;
mod status;
mod streams;
mod terminal;
mod usage;
mod watch;

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use args::{Command, CommandLine, Refusal};
use config::Settings;
use record::Start;

fn main() -> ExitCode {
    let start = Start::now();
    share_one_heap();
    let line = match CommandLine::read(env::args_os()) {
        Ok(line) => line,
        Err(Refusal::Usage(message)) => return fail(&message),
        Err(Refusal::Text(text)) => {
            // A reader that has seen enough of the help is no error.
            let _ = text.print();
            return ExitCode::SUCCESS;
        }
    };
    let done = match line.command {
        Some(Command::Doctor(args)) => doctor::run(&args).map_err(Into::into),
        Some(Command::Ctl(args)) => ctl::run(args).map_err(Into::into),
        Some(Command::Test(args)) => matrix::run(&args, start).map_err(Into::into),
        None => boot(line.vm.settings, line.vm.config.as_deref(), start),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&chain(&*error)),
    }
}

/// Makes all threads allocate from one heap. By default each gets one of its own: three system calls as it
/// begins, and memory that stays its own. What a guest keeps busy does not allocate, so nobody waits.
fn share_one_heap() {
    // SAFETY: sets a number in the allocator, before there is another thread. If it is refused, nothing
    // but memory is lost.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

fn boot(settings: Settings, file: Option<&Path>, start: Start) -> Result<u8, Box<dyn Error>> {
    Ok(run::run(settings.resolve(file)?, start)?)
}

/// mvm's own failure: one line, whatever the message quotes.
fn fail(message: &str) -> ExitCode {
    terminal::say(&logging::one_line(message));
    ExitCode::from(status::MVM_FAILED)
}

/// An error and its causes in one line, each said once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}
