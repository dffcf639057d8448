//! What is fuzzed, apart from what fuzzes: targets that take any bytes, and the seeds they begin with.
//!
//! A target is a function of bytes that must return whatever they are; a panic, a hang or a crash is a
//! finding. Each [device](targets::devices) is one, with the attacks of its hostile-guest table for seeds, and so
//! is each parser of files and options. `cargo xtask fuzz` runs them under libFuzzer; the tests of this crate
//! run every seed through its target, without it.

pub mod encoding;
pub mod target;
pub mod targets;

pub use target::{Target, all, find};

/// The most bytes of a file that an input may make.
const LONGEST_FILE: libc::rlim_t = 16 << 20;

/// Keeps the files of this process short, with errors where they would be longer: a guest with a shared
/// directory may ask for any length, and would have it.
pub fn keep_files_short() {
    let limit = libc::rlimit {
        rlim_cur: LONGEST_FILE,
        rlim_max: LONGEST_FILE,
    };
    // SAFETY: the limit is read during the call, and the signal is ignored, for which there is no handler that
    // could do anything wrong.
    unsafe {
        libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
