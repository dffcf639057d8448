//! `--boot-chart`: where the time of a boot went, as a picture.
//!
//! [`log`] puts the kernel's log on the host's clock, [`rows`] makes stages of it, [`draw`] the picture.

mod draw;
pub mod log;
mod path;
mod rows;
mod words;

use std::io;

pub use path::ChartPath;

use crate::policy::Outcome;
use crate::record::Record;
use crate::run::RunError;
use draw::Title;
use rows::Boot;

/// The picture of a run, as SVG.
pub fn compose(record: &Record, result: Result<&Outcome, &RunError>) -> io::Result<String> {
    let vm = &record.vm;
    let kernel = vm.kernel.file_name().unwrap_or_default();
    let cpus = match vm.cpus {
        1 => "1 CPU".to_owned(),
        cpus => format!("{cpus} CPUs"),
    };
    let end = match result {
        Ok(outcome) => match &outcome.message {
            Some(message) => format!("status {}: {message}", outcome.status),
            None => format!("status {}", outcome.status),
        },
        Err(error) => crate::chain(error),
    };
    let title = Title {
        what: format!("Boot of {}", kernel.to_string_lossy()),
        how: words::short(&format!("{cpus}, {} of memory; {end}", vm.mem), 120),
    };
    draw::draw(&title, &Boot::of(record)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
