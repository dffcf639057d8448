//! The list of targets.

use std::fmt::Debug;

use crate::targets::{command, config, devices, images, kernel, legacy, options, requests};

/// Something to fuzz.
pub trait Target: Debug + Send + Sync {
    /// Its name on the command line.
    fn name(&self) -> &str;
    /// What it is, in a few words.
    fn about(&self) -> String;
    /// Takes any bytes.
    fn run(&self, data: &[u8]);
    /// Bytes to begin with, each of them different in what it does.
    fn seeds(&self) -> Vec<Vec<u8>>;
    /// What the bytes mean, where they are not plain to see.
    fn explain(&self, _data: &[u8]) -> String {
        String::new()
    }
}

/// Every target there is.
#[must_use]
pub fn all() -> Vec<Box<dyn Target>> {
    let others: [Box<dyn Target>; 7] = [
        Box::new(command::Command),
        Box::new(legacy::Legacy),
        Box::new(kernel::Kernel),
        Box::new(options::Options),
        Box::new(config::Config),
        Box::new(images::Qcow2),
        Box::new(images::Overlay),
    ];
    devices::all()
        .into_iter()
        .chain(requests::all())
        .chain(others)
        .collect()
}

/// The target called `name`.
#[must_use]
pub fn find(name: &str) -> Option<Box<dyn Target>> {
    all().into_iter().find(|target| target.name() == name)
}
