//! The targets under libFuzzer: `MVM_FUZZ_TARGET` says which. Built and run by `cargo xtask fuzz`.

#![no_main]

use std::sync::OnceLock;

use fuzz::Target;

static TARGET: OnceLock<Box<dyn Target>> = OnceLock::new();

/// Writes every message and keeps none: what is logged of hostile input must not panic either.
#[derive(Debug)]
struct Nowhere;

impl log::Log for Nowhere {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        drop(record.args().to_string());
    }
    fn flush(&self) {}
}

fn target() -> Box<dyn Target> {
    let name = std::env::var("MVM_FUZZ_TARGET").unwrap_or_default();
    fuzz::find(&name).unwrap_or_else(|| panic!("MVM_FUZZ_TARGET='{name}' is no target"))
}

libfuzzer_sys::fuzz_target!(
    init: {
        fuzz::keep_files_short();
        if log::set_logger(&Nowhere).is_ok() {
            log::set_max_level(log::LevelFilter::Trace);
        }
    },
    |data: &[u8]| TARGET.get_or_init(target).run(data)
);
