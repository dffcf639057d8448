//! Puts what every boot runs next to each other in the release binary, with `layout.ld`.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=layout.ld");
    let is = |name, value| env::var_os(name).is_some_and(|found| found == value);
    // The linker that comes with Rust and GNU ld add such a script to their own; who has chosen another linker
    // may have one that refuses it.
    let chosen = env::var_os("RUSTC_LINKER").is_some()
        || env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("link"));
    let usual = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if is("PROFILE", "release") && usual && !chosen {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/layout.ld");
        println!("cargo::rustc-link-arg-bins=-T{script}");
    }
}
